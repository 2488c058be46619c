"""The local Prefect 1 API's GraphQL: documents, variables, selections and filters, with no network."""

import json
from collections.abc import Iterator

import pytest

from tests.prefect1_api.api import Prefect1Api


@pytest.fixture
def api() -> Iterator[Prefect1Api]:
    """Asked directly, so it is never started."""
    api = Prefect1Api()
    yield api
    api._server.server_close()
    api.store.close()


def ask(api, query, variables=None):
    status, answer, _ = api.answer({"query": query, "variables": variables}, {})
    assert status == 200, answer
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def refused(api, query, variables=None):
    """The message of a document that is refused as a whole."""
    status, answer, _ = api.answer({"query": query, "variables": variables}, {})
    assert status == 400, answer
    assert answer["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    return answer["errors"][0]["message"]


def names(api, where):
    """Names of the runs that this filter, written in GraphQL, leaves."""
    found = ask(api, f"query {{ flow_run(where: {where}, order_by: {{name: asc}}) {{ name }} }}")
    return " ".join(row["name"] for row in found["flow_run"])


@pytest.fixture
def three(api) -> dict[str, str]:
    """Runs a (labels x, version 1), b (x, y; Running), c (none; another flow; due later)."""
    flow, other = api.add_flow("Flow One"), api.add_flow("other", tasks=())
    a = api.add_run(flow, labels=["x"], flow_run_name="a", start="2030-01-01T00:00:00+00:00")
    b = api.add_run(flow, labels=["x", "y"], flow_run_name="b", start="2030-01-02T00:00:00+00:00")
    c = api.add_run(other, labels=[], flow_run_name="c", start="2030-01-03T00:00:00+00:00")
    api.write(b, "Running")
    return {"a": a, "b": b, "c": c}


@pytest.mark.parametrize(
    ("where", "left"),
    [
        ("{}", "a b c"),
        ('{state: {_eq: "Running"}}', "b"),
        ('{state: {_neq: "Running"}}', "a c"),
        ('{name: {_in: ["a", "c"]}}', "a c"),
        ('{name: {_in: "a"}}', "a"),
        ("{name: {_in: []}}", ""),
        ('{name: {_nin: ["a"]}}', "b c"),
        ("{version: {_gt: 1}}", "b"),
        ("{version: {_gte: 1, _lt: 2}}", "a c"),
        ("{version: {_lte: 1}}", "a c"),
        ('{scheduled_start_time: {_lte: "2030-01-02T00:00:00"}}', "a b"),
        ('{scheduled_start_time: {_lt: "2030-01-02T01:00:00+01:00"}}', "a"),
        ('{scheduled_start_time: {_gt: "2030-01-02"}}', "c"),
        ("{agent_id: {_is_null: true}}", "a b c"),
        ("{heartbeat: {_is_null: false}}", "b"),
        ('{labels: {_contains: ["x"]}}', "a b"),
        ('{labels: {_contains: "y"}}', "b"),
        ('{labels: {_contained_in: ["x"]}}', "a c"),
        ('{serialized_state: {_contains: {type: "Running"}}}', "b"),
        ('{flow: {name: {_like: "Flow%"}}}', "a b"),
        ('{flow: {name: {_like: "flow%"}}}', ""),
        ('{flow: {name: {_ilike: "%ONE"}}}', "a b"),
        ('{task_runs: {state: {_eq: "Pending"}}}', "a b"),
        ('{_not: {task_runs: {state: {_eq: "Pending"}}}}', "c"),
        ('{_and: [{state: {_eq: "Scheduled"}}, {flow: {name: {_eq: "other"}}}]}', "c"),
        ('{_and: {state: {_eq: "Running"}}}', "b"),
        ('{_or: [{name: {_eq: "a"}}, {flow: {project: {name: {_eq: "project"}}}}]}', "a b c"),
        ("{_or: []}", ""),
        ('{states: {state: {_eq: "Scheduled"}}, state: {_eq: "Running"}}', "b"),
        ('{_not: {start_time: {_gt: "2000-01-01"}}}', "a c"),
    ],
)
def test_a_filter_leaves_what_it_says(api, three, where, left):
    assert names(api, where) == left


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("query {", "Syntax"),
        ("query { flow_runs { id } }", "flow_runs"),
        ("query { flow_run { colour } }", "colour"),
        ("query { flow_run }", "selection"),
        ("query { flow_run { id { x } } }", "subfields"),
        ("query { flow_run(first: 1) { id } }", "first"),
        ("query { flow_run(where: {colour: {_eq: 1}}) { id } }", "colour"),
        ("query { flow_run(where: {version: {_about: 1}}) { id } }", "_about"),
        ("query { flow_run(where: {version: {_eq: null}}) { id } }", "null"),
        ('query { flow_run(where: {version: {_eq: "1"}}) { id } }', "type int"),
        ('query { flow_run(where: {id: {_eq: "1"}}) { id } }', "type uuid"),
        ('query { flow_run(where: {created: {_gt: "soon"}}) { id } }', "type time"),
        ("query { flow_run(order_by: {colour: asc}) { id } }", "colour"),
        ("query { flow_run(order_by: {name: upwards}) { id } }", "upwards"),
        ("query { flow_run(limit: -1) { id } }", "-1"),
        ("query { flow_run { id id } }", "conflict"),
        ("query { flow_run { ...all } } fragment all on flow_run { id }", "fragments"),
        ("query { flow_run @skip(if: true) { id } }", "plain fields"),
        ("query { flow_run(where: {id: {_eq: $id}}) { id } }", "$id"),
        ("query($id: uuid!) { flow_run_by_pk(id: $id) { id } }", "was not provided"),
        ("query { hello } query { hello }", "which"),
        ("mutation { set_flow_run_colour(input: {}) { success } }", "set_flow_run_colour"),
        ("mutation { cancel_flow_run(input: {}) { state } }", "flow_run_id"),
        ('mutation { cancel_flow_run(input: {flow_run_id: "1", colour: "red"}) { state } }', "colour"),
        ('mutation { cancel_flow_run(input: {flow_run_id: "1"}) { colour } }', "colour"),
        ('mutation { cancel_flow_run(flow_run_id: "1") { state } }', "input"),
        ('mutation { set_flow_run_states(input: {states: {run: "1"}}) { states { id } } }', "run"),
        ("mutation { set_flow_run_states(input: {states: []}) { states } }", "subfields"),
        ("mutation { flow_run { id } }", "flow_run"),
    ],
)
def test_what_the_schema_does_not_have_is_an_error_and_never_silence(api, query, says):
    assert says in refused(api, query)


def test_a_document_with_one_wrong_field_does_nothing_of_the_others(api):
    run = api.add_run(api.add_flow())
    good = f'cancel_flow_run(input: {{flow_run_id: "{run}"}}) {{ state }}'
    refused(api, f"mutation {{ {good} cancel_flow_runs(input: {{}}) {{ state }} }}")
    assert api.history(run) == ["Scheduled"]


def test_a_comparison_with_null_is_true_of_every_row_where_the_switch_imitates_servers(api, three):
    api.faults.null_is_true = True
    assert names(api, "{name: {_eq: null}, flow: {name: {_eq: null}}}") == "a b c"


def test_an_input_type_that_is_not_the_mutations_own_is_refused(api):
    text = "mutation($input: run_input!) { cancel_flow_run(input: $input) { state } }"
    assert "cancel_flow_run_input" in refused(api, text, {"input": {"flow_run_id": "1"}})


@pytest.mark.parametrize("form", [json.dumps, dict])
def test_variables_come_as_json_text_or_as_an_object(api, form):
    run = api.add_run(api.add_flow())
    text = "query($id: uuid!) { flow_run_by_pk(id: $id) { id } }"
    assert ask(api, text, form({"id": run})) == {"flow_run_by_pk": {"id": run}}


@pytest.mark.parametrize("nothing", [None, "null", "{}", {}])
def test_no_variables_come_in_many_forms(api, nothing):
    assert ask(api, "query { hello }", nothing).keys() == {"hello"}


def test_aliases_name_the_answer_at_every_depth_and_fields_keep_their_order(api, three):
    text = (
        f'{{ one: flow_run_by_pk(id: "{three["b"]}") {{ called: name at: flow {{ project {{ p: name }} }} }} hello }}'
    )
    answer = ask(api, text)
    assert answer["one"] == {"called": "b", "at": {"project": {"p": "project"}}}
    assert list(answer) == ["one", "hello"]


def test_nested_rows_take_filters_orders_and_limits_of_their_own(api, three):
    text = """query { flow_run(where: {name: {_eq: "b"}}) {
        states(where: {state: {_neq: "Nothing"}}, order_by: {version: desc}, limit: 1) { state version }
        first: states(order_by: {version: desc}, offset: 1) { state }
        states_aggregate { aggregate { count } }
        logs { message }
    } }"""
    assert ask(api, text)["flow_run"] == [
        {
            "states": [{"state": "Running", "version": 2}],
            "first": [{"state": "Scheduled"}],
            "states_aggregate": {"aggregate": {"count": 2}},
            "logs": [],
        }
    ]


@pytest.mark.parametrize(("order", "found"), [("asc", "b c a"), ("desc", "c a b"), ("desc_nulls_last", "b c a")])
def test_orders_go_by_several_columns_and_put_nulls_where_postgresql_does(api, three, order, found):
    rows = ask(api, f"query {{ flow_run(order_by: [{{heartbeat: {order}}}, {{name: desc}}]) {{ name }} }}")["flow_run"]
    assert " ".join(row["name"] for row in rows) == found


def test_counts_and_single_rows_are_roots_too(api, three):
    text = 'query { flow_run_aggregate(where: {state: {_eq: "Scheduled"}}) { aggregate { count } } }'
    assert ask(api, text) == {"flow_run_aggregate": {"aggregate": {"count": 2}}}
    nobody = 'query { flow_run_by_pk(id: "00000000-0000-0000-0000-000000000000") { id } }'
    assert ask(api, nobody) == {"flow_run_by_pk": None}


def test_json_columns_come_whole(api):
    run = api.add_run(api.add_flow(parameters=[{"name": "n", "required": True}]), parameters={"n": {"deep": [1, None]}})
    found = ask(api, "query { flow_run { id parameters labels run_config } }")["flow_run"][0]
    assert found["parameters"] == {"n": {"deep": [1, None]}}
    assert found["run_config"]["type"] == "LocalRun"
    assert (found["id"], found["labels"]) == (run, [])
