"""GraphQL: what goes over the wire to a Prefect 1 API, and how its answers are read."""

import json
import re
from collections.abc import Iterator

import pytest

from flowfleet.api.prefect1.graphql import PREFECT1, GraphError, GraphQL, QueryRejected, Reply
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.responses import ResponseRefused
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused
from tests.scripted_graphql import HELLO, Said, ScriptedGraphQL, error, page
from tests.waiting import until

QUERY = "query($input: x!) { first: get_runs(input: $input) { id } }"
TENANT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def server() -> Iterator[ScriptedGraphQL]:
    with ScriptedGraphQL() as served:
        yield served


HELLO_QUERY = "query { hello }"


def client(
    server: ScriptedGraphQL, pauses: list[float] | None = None, *, path: str = "", key: str = "", tenant=None, **options
) -> GraphQL:
    address = Address(url=server.url + path, authorization=f"Bearer {key}" if key else None)
    pause = [].append if pauses is None else pauses.append
    return GraphQL(Session(address, flavour=PREFECT1, pause=pause, dice=lambda: 0.5, **options), tenant=tenant)


def refusal(server: ScriptedGraphQL, error: type[Exception], match: str, *, query=HELLO_QUERY, path="", **how):
    """The error that the question meets, which says this."""
    pauses: list[float] = []
    with pytest.raises(error, match=match) as caught:
        client(server, pauses, path=path).ask(query, **how)
    assert pauses == [] or "tries" in how
    return caught.value


def test_a_request_is_what_prefect_1s_own_client_sends(server):
    client(server, key="k", tenant=TENANT).ask(QUERY, {"input": {"labels": ["a"]}}, agent="agent-id")
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/")
    assert asked.body == {"query": QUERY, "variables": json.dumps({"input": {"labels": ["a"]}})}
    assert asked.headers["X-PREFECT-CORE-VERSION"] == "1.4.1"
    assert asked.headers["Authorization"] == "Bearer k"
    assert asked.headers["X-PREFECT-TENANT-ID"] == TENANT
    assert asked.headers["X-PREFECT-AGENT-ID"] == "agent-id"


def test_without_a_key_no_tenant_is_told_without_an_agent_no_agent_and_no_variables_are_null_in_json(server):
    client(server, tenant=TENANT).ask(HELLO_QUERY)
    assert server.asked[0].body["variables"] == "null"
    assert not {"Authorization", "X-PREFECT-TENANT-ID", "X-PREFECT-AGENT-ID"} & set(server.asked[0].headers)


def test_an_address_that_ends_in_graphql_is_used_as_it_stands(server):
    assert client(server, path="/graphql").ask(HELLO_QUERY).data == HELLO["data"]
    assert server.asked[0].path == "/graphql"


def test_each_root_field_has_its_own_answer_and_its_own_error(server):
    server.say({"data": {"a": {"id": 1}, "b": None}, "errors": [error("State update failed", "b", "states", 0)]})
    reply = client(server).ask("mutation { a: x { id } b: x { id } }")
    assert reply.data == {"a": {"id": 1}, "b": None}
    assert reply.error_of("a") is None
    assert reply.error_of("b") == GraphError("State update failed", ("b", "states", 0))


def test_an_error_without_a_path_is_every_fields():
    general = GraphError("broken", code="INTERNAL_SERVER_ERROR")
    reply = Reply({"a": None}, (general, GraphError("its own", ("a",))))
    assert reply.error_of("a") == GraphError("its own", ("a",))
    assert reply.error_of("b") == general


@pytest.mark.parametrize("data", [None, {}])
def test_errors_without_any_data_are_a_definite_no(server, data):
    server.say({"data": data, "errors": [error("no such field", code="GRAPHQL_VALIDATION_FAILED"), error("nor that")]})
    caught = refusal(server, QueryRejected, r"refuses get_runs: no such field; nor that$", query=QUERY)
    assert caught.errors[0].code == "GRAPHQL_VALIDATION_FAILED"
    assert len(server.asked) == 1


def test_400_is_a_definite_no_with_the_apis_own_words(server):
    server.say(Said({"errors": [error('Cannot query field "x"')]}, 400))
    words = r'refuses get_runs with 400 Bad Request: Cannot query field "x"'
    refusal(server, ResponseRefused, words, query=QUERY)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_by_status(server, status):
    server.say(Said({"errors": []}, status))
    asked = client(server, key="k")
    with pytest.raises(KeyRefused, match="set PREFECT__CLOUD__API_KEY or FLOWFLEET_KEY_FILE"):
        asked.ask(HELLO_QUERY)
    assert asked.session.key_refused
    assert len(server.asked) == 1, "no CSRF token is asked for, that is Prefect 3's"


@pytest.mark.parametrize(
    "entry", [error("Unauthenticated", code="UNAUTHENTICATED"), error("Malformed Authorization header", "hello")]
)
@pytest.mark.parametrize("status", [200, 400])
def test_refused_credentials_in_the_body(server, entry, status):
    server.say(Said({"data": {"hello": None}, "errors": [entry]}, status), HELLO)
    asked = client(server, key="k")
    said = entry["message"] if status == 200 else "400 Bad Request to hello"
    with pytest.raises(KeyRefused, match=re.escape(f"refuses our credentials ({said}), set")):
        asked.ask(HELLO_QUERY)
    assert asked.session.key_refused
    asked.ask(HELLO_QUERY)
    assert not asked.session.key_refused


def test_a_key_that_has_been_replaced_is_found_again_at_a_refusal(server):
    server.authorization = "Bearer new"
    asked = client(server, key="old", find_again=lambda: Address(url=server.url, authorization="Bearer new"))
    assert asked.ask(HELLO_QUERY).data == HELLO["data"]
    assert [request.headers["Authorization"] for request in server.asked] == ["Bearer old", "Bearer new"]
    assert not asked.session.key_refused
    assert asked.key == "new", "runs get it too"


@pytest.mark.parametrize(
    "entry",
    [
        error("x", code="API_ERROR"),
        error("Unable to complete operation. An internal API error occurred.", "a", code="INTERNAL_SERVER_ERROR"),
        error("request to http://localhost:4201/graphql/ failed, reason: connect ECONNREFUSED 127.0.0.1:4201", "a"),
        error("invalid json response body at http://localhost:4201/graphql/ reason: Unexpected token", "a"),
    ],
)
def test_an_error_of_the_apis_own_is_asked_again_a_few_times(server, entry):
    server.say({"data": {"a": None}, "errors": [entry]}, {"data": {"a": None}, "errors": [entry]}, HELLO)
    pauses: list[float] = []
    assert client(server, pauses).ask(HELLO_QUERY).data == HELLO["data"]
    assert pauses == [0.5, 1.0]


def test_an_error_of_the_apis_own_that_stays_is_no_answer(server):
    server.say({"data": None, "errors": [error("x", code="API_ERROR")]})
    words = "answers with an error of its own to hello: try again later"
    assert refusal(server, ApiUnavailable, words, tries=2).answered, "another question may be answered"
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [500, 504])
def test_5xx_is_no_answer(server, status):
    server.say(page(status))
    refusal(server, ApiUnavailable, str(status))


def test_silence_is_not_asked_again(server):
    server.say(Said(mute=True))
    refusal(server, ApiUnavailable, r"no answer within 0\.2 s", seconds=0.2)
    until(lambda: server.asked, 20, "the server to read what it was asked")
    assert len(server.asked) == 1


@pytest.mark.parametrize("answer", [page(), ["hello"], {"title": "Prefect"}, "hello"])
def test_what_is_not_graphql_is_no_prefect_1_api(server, answer):
    server.say(answer)
    asked = client(server, path="/api")
    with pytest.raises(ApiRejected, match=r"is not a Prefect API: hello is answered .* has no /api at its end"):
        asked.ask(HELLO_QUERY)
    assert not asked.session.reader.proven.is_set()


def test_a_404_of_an_address_that_never_answered_has_the_remedy(server):
    server.say(page(404))
    refusal(server, ApiRejected, r"refuses hello with 404 Not Found: .* has no /api at its end", path="/api")


@pytest.mark.parametrize("answer", [page(), page(404), {"title": "welcome"}])
def test_what_is_not_graphql_any_more_is_a_proxy_in_front_of_an_api_that_is_away(server, answer):
    asked = client(server)
    asked.ask(HELLO_QUERY)
    assert asked.session.reader.proven.is_set()
    server.say(answer)
    with pytest.raises(ApiUnavailable, match="is not there now"):
        asked.ask(HELLO_QUERY)


def test_json_that_is_broken_is_no_answer_also_before_anybody_is_known_there(server):
    server.say(Said(b'{"data": {"hel'))
    refusal(server, ApiUnavailable, "answers hello with JSON that cannot be read")


def test_an_answer_of_nulls_is_an_answer(server):
    server.say({"data": {"flow_run_by_pk": None}})
    assert client(server).ask('query { flow_run_by_pk(id: "x") { id } }').data == {"flow_run_by_pk": None}
