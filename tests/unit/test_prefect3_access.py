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


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "project"
    place.mkdir()
    return place


@pytest.fixture
def home(tmp_path):
    place = tmp_path / "home"
    (place / ".prefect").mkdir(parents=True)
    return place


def profile(home: Path, text: str) -> None:
    (home / ".prefect" / "profiles.toml").write_text(text)


def address(folder, home, environ=None, **settings):
    environ = environ or {}
    return find_address(CommonSettings(**settings), environ, prefect_settings(environ, folder, home))


def test_the_ladder_is_walked_rung_by_rung(folder, home):
    """Each nearer place beats all farther ones."""
    profile(home, 'active = "p"\n[profiles.p]\nPREFECT_API_URL = "http://profile/api"\n')
    assert address(folder, home).url == "http://profile/api"
    (folder / "pyproject.toml").write_text('[tool.prefect.api]\nurl = "http://pyproject/api"\n')
    assert address(folder, home).url == "http://pyproject/api"
    (folder / "prefect.toml").write_text('[api]\nurl = "http://toml/api"\n')
    assert address(folder, home).url == "http://toml/api"
    (folder / ".env").write_text("# mine\nexport PREFECT_API_URL='http://dotenv/api'  # near\n")
    assert address(folder, home).url == "http://dotenv/api"
    environ = {URL: "http://environ/api"}
    assert address(folder, home, environ).url == "http://environ/api"
    assert address(folder, home, environ, api="http://flag/api/").url == "http://flag/api"


def test_the_profile_may_be_named_by_a_variable(folder, home):
    profile(
        home,
        'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://a/api"\n[profiles.b]\nPREFECT_API_URL = "http://b/api"\n',
    )
    assert address(folder, home, {"PREFECT_PROFILE": "b"}).url == "http://b/api"


def test_prefect_home_moves_the_profiles(folder, home, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "profiles.toml").write_text(
        'active = "x"\n[profiles.x]\nPREFECT_API_URL = "http://moved/api"\n'
    )
    assert address(folder, home, {"PREFECT_HOME": str(tmp_path / "elsewhere")}).url == "http://moved/api"


def test_profiles_path_moves_them_too(folder, home, tmp_path):
    (tmp_path / "my.toml").write_text('active = "x"\n[profiles.x]\nPREFECT_API_URL = "http://named/api"\n')
    assert address(folder, home, {"PREFECT_PROFILES_PATH": str(tmp_path / "my.toml")}).url == "http://named/api"


def test_no_address_is_one_sentence_with_the_remedy(folder, home):
    with pytest.raises(SettingsError, match=r"no Prefect API is set.*--api.*PREFECT_API_URL.*prefect config set"):
        address(folder, home)


@pytest.mark.parametrize("text", ["127.0.0.1:4200", "ftp://h/api", "http://", "http://h:port/api", "http://[::1/api"])
def test_an_address_that_is_none_names_its_setting(folder, home, text):
    with pytest.raises(SettingsError, match=r"PREFECT_API_URL \(environment\) is not the address"):
        address(folder, home, {URL: text})


def test_a_key_is_a_bearer_token_and_the_nearest_wins(folder, home):
    environ = {URL: "http://h/api", "PREFECT_API_KEY": "theirs"}
    assert address(folder, home, environ).authorization == "Bearer theirs"
    assert address(folder, home, environ, token="older").authorization == "Bearer older"
    assert address(folder, home, environ, token="older", key="ours").authorization == "Bearer ours"


def test_an_auth_string_is_basic_and_beats_a_key_as_in_prefect(folder, home):
    environ = {URL: "http://h/api", "PREFECT_API_KEY": "k", "PREFECT_API_AUTH_STRING": "admin:pass"}
    assert address(folder, home, environ).authorization == "Basic " + base64.b64encode(b"admin:pass").decode()


def test_user_and_password_leave_the_address(folder, home):
    found = address(folder, home, {URL: "http://us%40er:hun%2Fter2@h:4200/api/"})
    assert found.url == "http://h:4200/api"
    assert found.authorization == "Basic " + base64.b64encode(b"us@er:hun/ter2").decode()


def test_custom_headers_come_from_text_and_from_toml(folder, home):
    environ = {URL: "http://h/api", "PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-A": "1", "User-Agent": "no"}'}
    assert address(folder, home, environ).headers == {"X-A": "1"}
    (folder / "prefect.toml").write_text('[client.custom_headers]\nX-B = "2"\n')
    assert address(folder, home, {URL: "http://h/api"}).headers == {"X-B": "2"}
    with pytest.raises(SettingsError, match="PREFECT_CLIENT_CUSTOM_HEADERS"):
        address(folder, home, {**environ, "PREFECT_CLIENT_CUSTOM_HEADERS": "hunter2"})


def test_tls_settings_are_found(folder, home, tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    environ = {
        URL: "https://h/api",
        "PREFECT_API_SSL_CERT_FILE": str(ca),
        "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "True",
    }
    found = address(folder, home, environ)
    assert found.ca_file == ca
    assert found.insecure
    with pytest.raises(SettingsError, match=r"missing\.pem does not exist"):
        address(folder, home, environ, ca_file=tmp_path / "missing.pem")


def test_broken_files_are_named_and_not_shown(folder, home):
    (folder / "prefect.toml").write_text('key = "hunter2')
    with pytest.raises(SettingsError, match=r"prefect\.toml is not valid TOML") as caught:
        address(folder, home)
    assert "hunter2" not in str(caught.value)


def test_what_was_found_shows_no_value(folder, home):
    found = prefect_settings({"PREFECT_API_KEY": "hunter2"}, folder, home)
    assert "hunter2" not in repr(found)
    assert found["PREFECT_API_KEY"].source == "environment"


def test_children_get_the_settings_that_were_found(folder, home):
    """A run starts in an empty folder, where neither the project's files nor another profile may decide."""
    settings = 'PREFECT_API_URL = "http://p/api"\nPREFECT_LOGGING_LEVEL = "DEBUG"\nPREFECT_SERVER_UI_ENABLED = "x"\n'
    profile(home, 'active = "p"\n[profiles.p]\n' + settings)
    (folder / ".env").write_text('PREFECT_API_KEY="k"\nOTHER=1\n')
    environ = {"PREFECT__FLOW_RUN_ID": "of somebody else", "PREFECT_HOME": ""}
    client = connect(CommonSettings(name="w", host="h"), environ, folder=folder, home=home)
    run_id = "11111111-1111-4111-8111-111111111111"
    env = client.jobs.equip(_job({}, run_id)).engine_env
    assert env == {
        "PREFECT_API_URL": "http://p/api",
        "PREFECT_API_KEY": "k",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT__FLOW_RUN_ID": run_id,
        "PREFECT__WORKER_NAME": "w@h",
        "PREFECT__FLOW_NAME": "flow",
    }
    assert "PREFECT_LOGGING_LEVEL" not in client.jobs.equip(_job({"PREFECT_LOGGING_LEVEL": "ERROR"})).engine_env


def test_a_key_given_to_us_goes_to_children_too(folder, home):
    environ = {URL: "http://h/api", "PREFECT_API_AUTH_STRING": "a:b"}
    client = connect(CommonSettings(key="ours"), environ, folder=folder, home=home)
    env = client.jobs.equip(_job({})).engine_env
    assert env["PREFECT_API_KEY"] == "ours"
    assert "PREFECT_API_AUTH_STRING" not in env


def _job(env, run_id="r"):
    return Job(
        state=RunState(run_id=run_id, run_name="r", kind=StateType.PENDING, name="Submitted"), env=env, flow_name="flow"
    )


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_prefects_own_settings_hold_never_shows_in_our_logs(folder, home, style):
    profile(
        home,
        f'active = "p"\n[profiles.p]\n{URL} = "http://user:url-pass-1@api/api"\nPREFECT_API_KEY = "profile-key-2"\n'
        'PREFECT_API_AUTH_STRING = "admin:auth-pass-3"\nPREFECT_CLIENT_CUSTOM_HEADERS = \'{"X-Token": "header-4"}\'\n',
    )
    stream = io.StringIO()
    handler = logs.configure("DEBUG", style, stream=stream)
    try:
        connect(CommonSettings(), {}, folder=folder, home=home)
        secrets = [
            "url-pass-1",
            "profile-key-2",
            "auth-pass-3",
            "header-4",
            base64.b64encode(b"admin:auth-pass-3").decode(),
        ]
        logging.getLogger("anybody").debug("said %s", " ".join(secrets), extra={"env": {"A": secrets}})
    finally:
        logging.getLogger().removeHandler(handler)
    assert stream.getvalue().count(logs.MASK) >= len(secrets)
    assert [secret for secret in secrets if secret in stream.getvalue()] == []


def test_a_key_that_was_replaced_is_used_by_us_and_by_the_runs(folder, home):
    key = home / "key"
    key.write_text("first-key")
    environ = {"FLOWFLEET_KEY_FILE": str(key), URL: "http://api/api"}
    settings = resolve(WorkerSettings, {}, environ, {}, {"host": "h"})
    client = connect(settings, environ, folder=folder, home=home)
    job = Job(state=RunState(run_id="r", run_name="n", kind=StateType.PENDING, name="Pending"))
    assert client.jobs.equip(job).engine_env["PREFECT_API_KEY"] == "first-key"
    assert client.renew() is False
    key.write_text("second-key")
    assert client.renew() is True
    assert client.jobs.equip(job).engine_env["PREFECT_API_KEY"] == "second-key"

    # Prefect's own profile is looked at again too
    bare = {URL: "http://api/api"}
    profile(home, 'active = "p"\n[profiles.p]\nPREFECT_API_KEY = "third-key"\n')
    client = connect(CommonSettings(), bare, folder=folder, home=home)
    profile(home, 'active = "p"\n[profiles.p]\nPREFECT_API_KEY = "fourth-key"\n')
    assert client.renew() is True
    assert client.jobs.equip(job).engine_env["PREFECT_API_KEY"] == "fourth-key"
