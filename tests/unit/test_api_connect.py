"""Connect: which of the two Prefect APIs is meant, by the settings or by asking, and the error where there is none."""

import socket
from collections.abc import Iterator

import pytest

from flowfleet.api.connect import Connector, connect
from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused, SettingsError
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import resolve
from tests.lawless_api import LawlessApi
from tests.scripted_graphql import HELLO, Said, ScriptedGraphQL, error, page

TENANT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def prefect3() -> Iterator[LawlessApi]:
    with LawlessApi() as served:
        yield served


@pytest.fixture
def prefect1() -> Iterator[ScriptedGraphQL]:
    with ScriptedGraphQL() as served:
        yield served


@pytest.fixture
def nowhere() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def home(tmp_path):
    (tmp_path / ".prefect").mkdir()
    return tmp_path


def connector(home, environ=None, settings=None, **given) -> Connector:
    return Connector(settings or CommonSettings(**given), environ or {}, folder=home, home=home, pause=lambda _: None)


# by the settings alone


@pytest.mark.parametrize(
    ("environ", "backend"),
    [
        ({"PREFECT_API_URL": "http://h/api"}, "prefect3"),
        ({"PREFECT__CLOUD__API": "http://h"}, "prefect1"),
        ({"PREFECT__SERVER__HOST": "http://h"}, "prefect1"),
        ({"PREFECT__CLOUD__API_KEY": "k"}, "prefect1"),
        ({"PREFECT__BACKEND": "server"}, "prefect1"),
        # a worker started inside a flow of Prefect 3: facts of that run
        ({"PREFECT_API_URL": "http://h/api", "PREFECT__FLOW_RUN_ID": "r"}, "prefect3"),
    ],
)
def test_settings_that_name_one_api_decide_and_nobody_is_asked(home, environ, backend):
    assert connector(home, environ).open().backend == backend


def test_what_prefect_1_has_left_behind_decides_only_where_prefect_3_has_no_address(home):
    (home / ".prefect" / "backend.toml").write_text('backend = "server"\n')
    assert connector(home).open().backend == "prefect1"
    assert connector(home, {"PREFECT_API_URL": "http://h/api"}).open().backend == "prefect3"


def test_the_flag_decides_whatever_else_is_set(home):
    both = {"PREFECT_API_URL": "http://three/api", "PREFECT__CLOUD__API": "http://one"}
    assert connector(home, both, backend="prefect3").open().address == "http://three/api"
    assert connector(home, both, backend="prefect1").open().address == "http://one"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, r"no Prefect API is set.*PREFECT_API_URL.*PREFECT__CLOUD__API"),
        ({"backend": "prefect1"}, "You have not set an API key"),
        ({"backend": "prefect3"}, "no Prefect API is set.*--api.*PREFECT_API_URL.*prefect config set"),
        ({"backend": "prefect2"}, "--backend prefect2 is unknown"),
    ],
)
def test_settings_that_cannot_be_used_are_told_before_anybody_is_asked(home, given, words):
    with pytest.raises(SettingsError, match=words):
        connector(home, **given)


# by asking


def test_it_is_asked_once_and_a_prefect_3_not_whether_it_is_prefect_1(home, prefect1, prefect3):
    opened = connector(home, api=prefect1.url)
    assert opened.open() is opened.open()
    assert [asked.method for asked in prefect1.asked] == ["GET", "POST"]
    connector(home, api=prefect3.api_url).open()
    assert prefect3.counted() == 1


def test_a_prefect_1_that_greets_nobody_still_speaks_graphql(home, prefect1):
    prefect1.say({"errors": [error("Cannot query field hello")]})
    assert connector(home, api=prefect1.url).open().backend == "prefect1"


def test_what_prefect_1s_settings_lack_matters_only_where_prefect_3_is_not_there(home, prefect3, prefect1):
    of_cloud = {"PREFECT__BACKEND": "cloud"}
    assert connector(home, of_cloud, api=prefect3.api_url).open().backend == "prefect3"
    with pytest.raises(SettingsError, match="You have not set an API key"):
        connector(home, of_cloud, api=prefect1.url).open()


def test_of_two_addresses_the_one_that_answers_is_meant_and_two_that_do_need_a_word(home, prefect3, prefect1):
    both = connector(home, {"PREFECT_API_URL": prefect3.api_url, "PREFECT__CLOUD__API": prefect1.url})
    with pytest.raises(SettingsError, match=r"both answer: say which is meant by --backend prefect3 or --backend pref"):
        both.open()
    prefect1.say(page(404))
    assert both.open().backend == "prefect3"


# nobody there


def test_nobody_there_is_asked_again_by_whoever_waits(home, nowhere):
    waiting = connector(home, api=nowhere)
    for _ in range(2):
        with pytest.raises(ApiUnavailable, match=f"the Prefect API at {nowhere} cannot be reached: Connection refused"):
            waiting.open()
    both = connector(home, {"PREFECT_API_URL": f"{nowhere}/api", "PREFECT__CLOUD__API": nowhere})
    with pytest.raises(ApiUnavailable, match=f"no Prefect API answers: .*{nowhere}/api cannot.*{nowhere} cannot"):
        both.open()


def test_an_api_that_comes_back_is_found(home, prefect1):
    prefect1.say(page(502))
    waiting = connector(home, api=prefect1.url)
    with pytest.raises(ApiUnavailable, match="502 Bad Gateway"):
        waiting.open()
    prefect1.say({"data": {"hello": "x"}})
    assert waiting.open().backend == "prefect1"


def test_an_address_where_neither_is_says_what_was_tried(home, prefect1):
    prefect1.say(page(404))
    tried = r"is no Prefect API: it answers 404 to Prefect 3's GET /admin/version and 404 to Prefect 1's POST \{query"
    with pytest.raises(ApiRejected, match=tried):
        connect(CommonSettings(api=prefect1.url), {}, folder=home, home=home)
    prefect1.say(page())
    with pytest.raises(ApiRejected, match="it answers something else to Prefect 3's"):
        connect(CommonSettings(api=prefect1.url), {}, folder=home, home=home)


def test_another_path_of_the_same_server_is_a_remedy(home, prefect1):
    for verb, path in (("GET", "/api/admin/version"), ("POST", "/api")):
        prefect1.paths[verb, path] = page(404)
    with pytest.raises(ApiRejected, match=f", but Prefect 1 is at {prefect1.url}$"):
        connector(home, api=f"{prefect1.url}/api").open()
    prefect1.say(page(404))
    prefect1.paths["GET", "/api/admin/version"] = Said("3.8.8")
    with pytest.raises(ApiRejected, match=f", but Prefect 3 is at {prefect1.url}/api$"):
        connector(home, api=prefect1.url).open()


# credentials


def test_who_refuses_a_key_in_its_own_words_is_known_by_them(home, prefect1):
    """Then it is the client that tells it, with the remedy of that API."""
    prefect1.authorization = "Bearer right"
    prefect1.paths["GET", "/admin/version"] = page(400)
    held = connector(home, {"PREFECT__CLOUD__API_KEY": "wrong"}, api=prefect1.url)
    with pytest.raises(KeyRefused, match="set PREFECT__CLOUD__API_KEY or FLOWFLEET_KEY_FILE"):
        held.open().probe()
    assert held.key_refused
    prefect1.paths["GET", "/admin/version"] = Said({"exception_message": "Unauthorized"}, 401)
    with pytest.raises(KeyRefused, match="set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"):
        connector(home, api=prefect1.url).open().probe()


def test_a_key_that_both_refuse_names_both_remedies(home, prefect1):
    prefect1.say(Said({}, 401))
    with pytest.raises(KeyRefused, match=r"PREFECT_API_KEY or PREFECT_API_AUTH_STRING; .*set PREFECT__CLOUD__API_KEY"):
        connector(home, {"PREFECT_API_KEY": "x", "PREFECT__CLOUD__API_KEY": "y"}, api=prefect1.url).open()


def keyed(home, prefect1, environ=None):
    """A connector whose key stands in a file, and that file."""
    key = home / "key"
    key.write_text("first")
    environ = {**(environ or {}), "FLOWFLEET_KEY_FILE": str(key)}
    return connector(home, environ, resolve(PollerSettings, {"api": prefect1.url}, environ, {})), key


@pytest.mark.parametrize("environ", [{}, {"PREFECT__BACKEND": "cloud"}])
def test_a_replaced_key_is_found_before_and_after_the_api_is_known(home, prefect1, environ):
    prefect1.say(Said({}, 401))
    held, key = keyed(home, prefect1, environ)
    with pytest.raises(KeyRefused):
        held.open()
    assert held.key_refused
    assert held.renew() is False
    key.write_text("second")
    assert held.renew() is True
    prefect1.authorization = "Bearer second"
    prefect1.paths["GET", "/admin/version"] = page(400)
    prefect1.say(HELLO)
    client = held.open()
    assert not held.key_refused
    assert client.probe().backend == "prefect1"
    key.write_text("third")
    assert held.renew() is True
    prefect1.authorization = "Bearer third"
    assert client.probe().backend == "prefect1"
    assert held.renew() is False


def test_a_key_file_that_is_just_being_replaced_ends_nothing(home, prefect1, caplog):
    held, key = keyed(home, prefect1)
    key.write_text("")
    assert held.open().backend == "prefect1"
    assert "credentials could not be read again" in caplog.text


def test_key_and_tenant_go_with_each_request_and_the_agents_settings_with_the_client(home, prefect1):
    environ = {
        "PREFECT__CLOUD__API": prefect1.url,
        "PREFECT__CLOUD__API_KEY": "k",
        "PREFECT__CLOUD__TENANT_ID": TENANT,
        "PREFECT__CLOUD__AGENT__LABELS": "['a']",
    }
    held = connector(home, environ, WorkerSettings(hostname_label=False))
    held.open().probe()
    shown = prefect1.asked[-1].headers
    assert (shown["Authorization"], shown["X-PREFECT-TENANT-ID"]) == ("Bearer k", TENANT)
    assert held.defaults(WorkerSettings()).labels == ("a",)


def test_prefect_1s_agent_settings_are_nothing_to_prefect_3(home):
    held = connector(home, {"PREFECT_API_URL": "http://h/api", "PREFECT__CLOUD__AGENT__LABELS": "['a']"})
    held.open()
    assert held.defaults(WorkerSettings()).labels == ()
