"""Prefect1Settings: what Prefect 1's own command would find, in its order, and what of it becomes a default of ours."""

import base64
import io
import logging
from pathlib import Path

import pytest

from flowfleet import LocalAgent, logs
from flowfleet.agents.arguments import poller_settings
from flowfleet.api.prefect1.access import find_access
from flowfleet.api.prefect1.defaults import applied
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import resolve

TENANT = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
CLOUD = "https://api.prefect.io"


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".prefect").mkdir()
    return tmp_path


def write(home: Path, name: str, text: str) -> Path:
    path = home / ".prefect" / name
    path.write_text(text)
    return path


def access(home, environ=None, **settings):
    return find_access(CommonSettings(**settings), Prefect1Settings(environ or {}, home))


def worker(home, environ, flags=None, config=None):
    settings = resolve(WorkerSettings, flags or {}, environ, config or {}, {"host": "h", "log_level": "INFO"})
    return applied(settings, Prefect1Settings(environ, home))


# the address


def test_the_ladder_of_the_address_is_walked_rung_by_rung(home):
    key = {"PREFECT__CLOUD__API_KEY": "k"}
    assert access(home, key).address.url == CLOUD
    write(home, "backend.toml", 'backend = "server"\n')
    assert access(home, key).address.url == "http://localhost:4200"
    write(home, "config.toml", '[server]\nhost = "http://file"\n')
    assert access(home, key).address.url == "http://file:4200"
    key["PREFECT__SERVER__PORT"] = "4321"
    assert access(home, key).address.url == "http://file:4321"
    key["PREFECT__SERVER__ENDPOINT"] = "http://endpoint:1/"
    assert access(home, key).address.url == "http://endpoint:1"
    write(home, "config.toml", '[cloud]\napi = "http://api:2"\n')
    assert access(home, key).address.url == "http://api:2"
    key["PREFECT__CLOUD__API"] = "http://environ:3"
    assert access(home, key).address.url == "http://environ:3"
    assert access(home, key, api="http://flag:4/graphql/").address.url == "http://flag:4/graphql"


def test_backend_toml_beats_the_users_config_and_the_environment_beats_both(home):
    write(home, "config.toml", 'backend = "cloud"\n[cloud]\napi_key = "k"\n')
    assert access(home).server_backend == "cloud"
    write(home, "backend.toml", 'backend = "server"\n')
    assert access(home).server_backend == "server"
    assert access(home, {"PREFECT__BACKEND": "cloud"}).server_backend == "cloud"


def test_values_refer_to_other_settings_variables_and_the_home(home):
    write(home, "elsewhere.toml", '[team]\nport = 77\n[cloud]\napi = "http://${team.host}:${team.port}$SUFFIX"\n')
    environ = {
        "PREFECT__USER_CONFIG_PATH": "~/.prefect/elsewhere.toml",
        "PREFECT__TEAM__HOST": "'quoted'",
        "SUFFIX": "/graphql",
    }
    assert access(home, environ).address.url == "http://quoted:77/graphql"


def test_references_that_go_round_in_a_circle_end(home):
    settings = Prefect1Settings({"PREFECT__A__B": "${a.c}", "PREFECT__A__C": "${a.b}"}, home)
    assert settings.get("a.b") is None


def test_a_server_that_is_described_is_the_one_that_is_meant(home):
    """Prefect 1's own default is Cloud, where it would end without a key."""
    found = access(home, {"PREFECT__SERVER__HOST": "http://mine"})
    assert (found.address.url, found.address.authorization) == ("http://mine:4200", None)
    assert found.server_backend == access(home, api="http://flag:4200").server_backend == "server"


API = "PREFECT__CLOUD__API in the environment is not the address .*http://HOST:4200"
ID = "cannot be 'mine': it must be a tenant's id such as"
BACKEND = "PREFECT__BACKEND in the environment cannot be 'orion': use server or cloud"


@pytest.mark.parametrize(
    ("environ", "settings", "says"),
    [
        ({"PREFECT__CLOUD__API": "127.0.0.1:4200"}, {}, API),
        ({"PREFECT__CLOUD__API": "ftp://h"}, {}, API),
        ({"PREFECT__CLOUD__API": "http://h:port"}, {}, API),
        ({"PREFECT__BACKEND": "orion"}, {}, BACKEND),
        ({}, {"tenant_id": "mine"}, f"^--tenant-id {ID}"),
        ({"PREFECT__CLOUD__TENANT_ID": "mine"}, {}, f"^PREFECT__CLOUD__TENANT_ID in the environment {ID}"),
    ],
)
def test_what_is_no_address_backend_or_tenant_names_its_setting(home, environ, settings, says):
    with pytest.raises(SettingsError, match=says):
        access(home, environ, **({} if says == API else {"api": "http://h:4200"}), **settings)


# key and tenant


def test_a_login_in_the_address_is_shown_as_prefect_1s_own_client_shows_it(home):
    found = access(home, {"PREFECT__CLOUD__API_KEY": "key"}, api="http://ann:p%C3%A4ss@h:4200")
    assert found.address.authorization == "Basic " + base64.b64encode("ann:päss".encode("latin-1")).decode()
    assert found.address.url == "http://h:4200"
    with pytest.raises(SettingsError, match="beyond latin-1, which Prefect 1's engines cannot send"):
        access(home, api="http://ann:p%C5%82ss@h:4200")


def test_the_ladder_of_the_key_is_walked_rung_by_rung(home):
    environ = {"PREFECT__CLOUD__AGENT__API_TOKEN": "rung-1"}

    def shown(**settings):
        return access(home, environ, **settings).address.authorization

    assert shown() == "Bearer rung-1"
    environ["PREFECT__CLOUD__AUTH_TOKEN"] = "rung-2"
    assert shown() == "Bearer rung-2"
    environ["PREFECT__CLOUD__AGENT__AUTH_TOKEN"] = "rung-3"
    assert shown() == "Bearer rung-3"
    write(home, "auth.toml", f'["api.prefect.io"]\napi_key = "rung-4"\ntenant_id = "{TENANT}"\n')
    assert shown() == "Bearer rung-4"
    write(home, "config.toml", '[cloud]\napi_key = "rung-5"\n')
    assert shown() == "Bearer rung-5"
    environ["PREFECT__CLOUD__API_KEY"] = "rung-6"
    assert shown() == "Bearer rung-6"
    assert shown(token="rung-7") == "Bearer rung-7"
    assert shown(token="rung-7", key="rung-8") == "Bearer rung-8"


def test_logins_are_kept_by_the_host_of_the_api(home):
    mine = f'[my-host-4200]\napi_key = "of-mine"\ntenant_id = "{OTHER}"\n'
    write(home, "auth.toml", f'["api.prefect.io"]\napi_key = "of-cloud"\n{mine}')
    found = access(home, api="http://My_Host:4200/graphql")
    assert (found.address.authorization, found.tenant) == ("Bearer of-mine", OTHER)
    assert access(home, api="http://third:4200").address.authorization is None


def test_prefects_home_moves_the_logins(home):
    (home / "moved").mkdir()
    (home / "moved" / "auth.toml").write_text('["api.prefect.io"]\napi_key = "moved"\n')
    assert access(home, {"PREFECT__HOME_DIR": "~/moved"}).address.authorization == "Bearer moved"


def test_the_nearest_tenant_wins(home):
    write(home, "auth.toml", f'["api.prefect.io"]\napi_key = "k"\ntenant_id = "{TENANT}"\n')
    assert access(home).tenant == TENANT
    environ = {"PREFECT__CLOUD__TENANT_ID": OTHER}
    assert access(home, environ).tenant == OTHER
    assert access(home, environ, tenant_id=TENANT.upper()).tenant == TENANT


def test_cloud_without_a_key_is_one_sentence_with_the_remedy(home):
    for environ in ({"PREFECT__BACKEND": "cloud"}, {}):
        with pytest.raises(SettingsError, match=r"You have not set an API key .*PREFECT__CLOUD__API_KEY.*auth login"):
            access(home, environ)


def test_what_they_hold_never_shows_in_our_logs(home):
    write(home, "auth.toml", '["api.prefect.io"]\napi_key = "login-1"\n[other]\napi_key = "login-2"\n')
    write(home, "config.toml", '[cloud.agent]\nauth_token = "token-3"\n')
    stream = io.StringIO()
    logs.configure("DEBUG", stream=stream)
    access(home, {"PREFECT__CLOUD__API_KEY": "key-4"}, api="http://u:url-5@h")
    logging.getLogger("anybody").info("said login-1 login-2 token-3 key-4 url-5")
    assert stream.getvalue().count(logs.MASK) == 5
    assert "hunter2" not in repr(Prefect1Settings({"PREFECT__CLOUD__API_KEY": "hunter2"}, home).get("cloud.api_key"))


# what becomes a default of ours


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("['a', \"b\"]", ("a", "b")),
        ("('a', 'b')", ("a", "b")),
        ("'a', 'b'", ("a", "b")),
        ("a, b", ("a", "b")),
        ("a", ("a",)),
        ("'a'", ("a",)),
        ("[]", ()),
        ("", ()),
    ],
)
def test_labels_are_pythons_text_of_a_list_or_texts_with_commas(home, text, labels):
    assert worker(home, {"PREFECT__CLOUD__AGENT__LABELS": text}).labels == labels


def test_labels_of_a_file_may_be_a_list_or_its_text(home):
    for text in ('["a", "b"]', "\"['a', 'b']\""):
        path = write(home, "config.toml", f"[cloud.agent]\nlabels = {text}\n")
        found = worker(home, {})
        assert found.labels == ("a", "b")
        assert str(found.origins["labels"]) == f"cloud.agent.labels in {path}"


@pytest.mark.parametrize("text", ["{'a': 1}", "['a'", "[1, 2]", "('a'", "['']", "[['a']]"])
def test_labels_that_are_no_list_are_one_sentence(home, text):
    says = r"^PREFECT__CLOUD__AGENT__LABELS in the environment is not a list of labels"
    with pytest.raises(SettingsError, match=says):
        worker(home, {"PREFECT__CLOUD__AGENT__LABELS": text})


def test_a_flag_a_variable_and_a_config_file_of_ours_come_before(home):
    theirs = {
        "PREFECT__CLOUD__AGENT__LABELS": "['theirs']",
        "PREFECT__CLOUD__AGENT__NAME": "theirs",
        "PREFECT__CLOUD__AGENT__LEVEL": "debug",
        "PREFECT__CLOUD__SEND_FLOW_RUN_LOGS": "false",
        "PREFECT__CLOUD__AGENT__ENV_VARS": "{'A': 'theirs'}",
    }
    found = worker(home, theirs)
    assert (found.labels, found.name, found.log_level) == (("theirs",), "theirs", "DEBUG")
    assert (found.cloud_logs, found.env) == (False, ("A=theirs",))
    assert str(found.origins["name"]) == "PREFECT__CLOUD__AGENT__NAME in the environment"
    ours = worker(
        home,
        {**theirs, "FLOWFLEET_NAME": "ours", "FLOWFLEET_LOG_LEVEL": "error"},
        {"label": ("ours",), "cloud-logs": True},
        {"env": ["A=ours"]},
    )
    assert (ours.labels, ours.name, ours.log_level) == (("ours",), "ours", "ERROR")
    assert (ours.cloud_logs, ours.env) == (True, ("A=ours",))


def test_the_variables_of_every_run_may_be_a_table_of_the_file(home):
    write(home, "config.toml", '[cloud.agent.env_vars]\nMY_Var = "x=y"\n')
    assert worker(home, {}).env == ("MY_Var=x=y",)
    with pytest.raises(SettingsError, match="ENV_VARS in the environment is not a table of variables"):
        worker(home, {"PREFECT__CLOUD__AGENT__ENV_VARS": "A=1"})


def test_the_agents_address_is_the_pollers_and_its_labels_are_the_workers(home):
    name = "PREFECT__CLOUD__AGENT__AGENT_ADDRESS"
    environ = {name: "http://:8080", "PREFECT__CLOUD__AGENT__LABELS": "['a']"}
    poller = applied(PollerSettings(), Prefect1Settings(environ, home))
    assert (poller.agent_address, poller.labels) == ("http://:8080", ())
    assert worker(home, environ).agent_address is None
    none = Prefect1Settings({**environ, name: "http://127.0.0.1"}, home)
    says = r"AGENT_ADDRESS in the environment cannot be .*: it must be http://HOST:PORT"
    with pytest.raises(SettingsError, match=says):
        applied(PollerSettings(), none)


@pytest.mark.parametrize("given", ["flag", "FLOWFLEET_NAME", "PREFECT__CLOUD__AGENT__NAME", "LocalAgent"])
def test_an_agents_name_may_be_any_text_wherever_it_is_given_and_its_identity_is_made_of_it(
    given, home, monkeypatch, caplog
):
    caplog.set_level("INFO")
    name = "the big agent \u6d77\u8c79"
    if given == "LocalAgent":
        monkeypatch.setenv("PREFECT__USER_CONFIG_PATH", str(home / "none.toml"))
        agent = LocalAgent(name=name)
        settings = agent.worker_settings()
        poller = poller_settings(agent.given(), settings, {})
        assert (agent.name, poller.name, poller.own_name) == (name, name, "the-big-agent-")
    else:
        flags = {"name": name} if given == "flag" else {}
        found = Prefect1Settings({given: name}, home)
        settings = applied(resolve(PollerSettings, flags, {given: name}, {}), found)
    settings.tell_identity()
    (said,) = caplog.records
    assert (settings.name, settings.own_name) == (name, "the-big-agent-")
    assert (said.called, said.identity) == (name, settings.identity)
    assert settings.identity == f"the-big-agent-@{settings.host}"


def test_of_a_name_that_fits_nothing_is_said_and_of_none_that_does_there_is_an_identity_all_the_same(caplog):
    caplog.set_level("INFO")
    resolve(WorkerSettings, {"name": "etl-1"}, {}, {}).tell_identity()
    assert caplog.records == []
    assert resolve(WorkerSettings, {"name": "\u6d77\u8c79"}, {}, {}).own_name == "agent"
    with pytest.raises(SettingsError, match=r"--name cannot be .*: it must be some text in one line, of at most 255"):
        resolve(WorkerSettings, {"name": "two\nlines"}, {}, {})


def test_the_log_level_of_runs_is_prefects_own_and_nothing_set_leaves_our_own_settings_as_they_are(home):
    settings = WorkerSettings()
    assert applied(settings, Prefect1Settings({}, home)) is settings
    assert Prefect1Settings({}, home).log_level_of_runs == "INFO"
    write(home, "config.toml", '[logging]\nlevel = "debug"\n')
    assert Prefect1Settings({}, home).log_level_of_runs == "DEBUG"
