"""Discovery: the address and the credentials, found where Prefect's own command finds them."""

import base64
import io
import logging
from pathlib import Path

import pytest

from flowfleet import logs
from flowfleet.api.client import Job, RunState, StateType
from flowfleet.api.connect import connect
from flowfleet.api.prefect3.access import find_address
from flowfleet.api.prefect3.settings import prefect_settings
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import resolve

URL = "PREFECT_API_URL"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


class Project:
    """A project's folder, a home, and what the client finds there."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self.home = path, path / "project", path / "home"
        self.folder.mkdir()
        (self.home / ".prefect").mkdir(parents=True)

    def profile(self, settings: str) -> None:
        """The active profile with these settings."""
        (self.home / ".prefect" / "profiles.toml").write_text(f'active = "p"\n[profiles.p]\n{settings}\n')

    def address(self, environ=None, **settings):
        environ = environ or {}
        return find_address(CommonSettings(**settings), environ, prefect_settings(environ, self.folder, self.home))

    def connect(self, environ, settings=None):
        return connect(settings or CommonSettings(), environ, folder=self.folder, home=self.home)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.parametrize("text", ["127.0.0.1:4200", "ftp://h/api", "http://", "http://h:port/api", "http://[::1/api"])
def test_an_address_that_is_none_names_its_setting(project, text):
    with pytest.raises(SettingsError, match=r"PREFECT_API_URL \(environment\) is not the address"):
        project.address({URL: text})


@pytest.mark.parametrize(
    ("environ", "settings", "authorization"),
    [
        ({"PREFECT_API_KEY": "theirs"}, {}, "Bearer theirs"),
        ({"PREFECT_API_KEY": "theirs"}, {"token": "older"}, "Bearer older"),
        ({"PREFECT_API_KEY": "theirs"}, {"token": "older", "key": "ours"}, "Bearer ours"),
        ({"PREFECT_API_KEY": "k", "PREFECT_API_AUTH_STRING": "admin:pass"}, {}, basic("admin:pass")),
    ],
    ids=[
        "a key is a bearer token",
        "ours is nearer",
        "a newer word is nearer",
        "an auth string beats it, as in prefect",
    ],
)
def test_credentials_are_found_and_the_nearest_wins(project, environ, settings, authorization):
    assert project.address({URL: "http://h/api", **environ}, **settings).authorization == authorization


def test_user_and_password_leave_the_address(project):
    found = project.address({URL: "http://us%40er:hun%2Fter2@h:4200/api/"})
    assert (found.url, found.authorization) == ("http://h:4200/api", basic("us@er:hun/ter2"))


def test_the_flag_beats_the_environment(project):
    assert project.address({URL: "http://environ/api"}, api="http://flag/api/").url == "http://flag/api"


def test_custom_headers_come_from_text_and_from_toml(project):
    environ = {URL: "http://h/api", "PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-A": "1", "User-Agent": "no"}'}
    assert project.address(environ).headers == {"X-A": "1"}
    (project.folder / "prefect.toml").write_text('[client.custom_headers]\nX-B = "2"\n')
    assert project.address({URL: "http://h/api"}).headers == {"X-B": "2"}
    with pytest.raises(SettingsError, match="PREFECT_CLIENT_CUSTOM_HEADERS"):
        project.address({**environ, "PREFECT_CLIENT_CUSTOM_HEADERS": "hunter2"})


def test_tls_settings_are_found(project):
    ca = project.path / "ca.pem"
    ca.write_text("")
    tls = {"PREFECT_API_SSL_CERT_FILE": str(ca), "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "True"}
    found = project.address({URL: "https://h/api", **tls})
    assert found.ca_file == ca
    assert found.insecure
    with pytest.raises(SettingsError, match=r"missing\.pem does not exist"):
        project.address({URL: "https://h/api", **tls}, ca_file=project.path / "missing.pem")


def test_neither_broken_files_nor_what_was_found_is_shown(project):
    found = prefect_settings({"PREFECT_API_KEY": "hunter2"}, project.folder, project.home)
    assert "hunter2" not in repr(found)
    assert found["PREFECT_API_KEY"].source == "environment"

    (project.folder / "prefect.toml").write_text('key = "hunter2')
    with pytest.raises(SettingsError, match=r"prefect\.toml is not valid TOML") as caught:
        project.address()
    assert "hunter2" not in str(caught.value)


def engine_env(client, env=None, run_id="r"):
    """What the engine of a run with this environment gets."""
    state = RunState(run_id=run_id, run_name="r", kind=StateType.PENDING, name="Submitted")
    return client.jobs.equip(Job(state=state, env=env or {}, flow_name="flow")).engine_env


def test_children_get_the_settings_that_were_found(project):
    """A run starts in an empty folder, where neither the project's files nor another profile may decide."""
    project.profile(f'{URL} = "http://p/api"\nPREFECT_LOGGING_LEVEL = "DEBUG"\nPREFECT_SERVER_UI_ENABLED = "x"')
    (project.folder / ".env").write_text('PREFECT_API_KEY="k"\nOTHER=1\n')
    environ = {"PREFECT__FLOW_RUN_ID": "of somebody else", "PREFECT_HOME": ""}
    client = project.connect(environ, CommonSettings(name="w", host="h"))
    run_id = "11111111-1111-4111-8111-111111111111"
    assert engine_env(client, run_id=run_id) == {
        "PREFECT_API_URL": "http://p/api",
        "PREFECT_API_KEY": "k",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT__FLOW_RUN_ID": run_id,
        "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
        "PREFECT__WORKER_NAME": "w@h",
        "PREFECT__FLOW_NAME": "flow",
    }
    assert "PREFECT_LOGGING_LEVEL" not in engine_env(client, {"PREFECT_LOGGING_LEVEL": "ERROR"})


def test_a_key_given_to_us_goes_to_children_too(project):
    environ = {URL: "http://h/api", "PREFECT_API_AUTH_STRING": "a:b"}
    env = engine_env(project.connect(environ, CommonSettings(key="ours")))
    assert env["PREFECT_API_KEY"] == "ours"
    assert "PREFECT_API_AUTH_STRING" not in env


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_prefects_own_settings_hold_never_shows_in_our_logs(project, style):
    project.profile(
        f'{URL} = "http://user:url-pass-1@api/api"\nPREFECT_API_KEY = "profile-key-2"\n'
        'PREFECT_API_AUTH_STRING = "admin:auth-pass-3"\nPREFECT_CLIENT_CUSTOM_HEADERS = \'{"X-Token": "header-4"}\''
    )
    stream = io.StringIO()
    logs.configure("DEBUG", style, stream=stream)
    project.connect({})
    auth = basic("admin:auth-pass-3").removeprefix("Basic ")
    secrets = ["url-pass-1", "profile-key-2", "auth-pass-3", "header-4", auth]
    logging.getLogger("anybody").debug("said %s", " ".join(secrets), extra={"env": {"A": secrets}})
    assert stream.getvalue().count(logs.MASK) >= len(secrets)
    assert [secret for secret in secrets if secret in stream.getvalue()] == []


def test_a_key_that_was_replaced_is_used_by_us_and_by_the_runs(project):
    key = project.home / "key"
    key.write_text("first-key")
    environ = {"FLOWFLEET_KEY_FILE": str(key), URL: "http://api/api"}
    client = project.connect(environ, resolve(WorkerSettings, {}, environ, {}, {"host": "h"}))
    assert engine_env(client)["PREFECT_API_KEY"] == "first-key"
    assert client.session.renew() is False
    key.write_text("second-key")
    assert client.session.renew() is True
    assert engine_env(client)["PREFECT_API_KEY"] == "second-key"
    # Prefect's own profile is looked at again too
    project.profile('PREFECT_API_KEY = "third-key"')
    client = project.connect({URL: "http://api/api"})
    project.profile('PREFECT_API_KEY = "fourth-key"')
    assert client.session.renew() is True
    assert engine_env(client)["PREFECT_API_KEY"] == "fourth-key"
