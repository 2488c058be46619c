"""Template: job variables of pool, deployment and run put together."""

import pytest

from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.prefect3.pool_template import base_job_template
from flowfleet.api.prefect3.templates import fill, merge, spread
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.errors import UnsupportedRun
from tests.lawless_api import LawlessApi

ENV = {"env": "{{ env }}"}


def filled(configuration, *layers, variables=None, prefect_variables=None, environ=None, context=None):
    known = prefect_variables or {}
    return fill(
        {"job_configuration": configuration, "variables": {"properties": variables or {}}},
        list(layers),
        variable=known.__getitem__,
        environ=environ or {},
        context=context or {},
    )


def test_the_run_wins_over_the_deployment_and_that_over_the_pool():
    template = {"a": "{{ a }}", "b": "{{ b }}", "c": "{{ c }}"}
    defaults = {name: {"default": "pool"} for name in "abc"}
    result = filled(template, {"b": "deployment", "c": "deployment"}, {"c": "run"}, variables=defaults)
    assert result == {"a": "pool", "b": "deployment", "c": "run"}


def test_env_is_merged_key_by_key_by_dotted_keys_too_and_a_templates_own_table_is_the_ground():
    defaults = {"env": {"default": {"A": "pool", "B": "pool", "C": "pool"}}}
    layers = {"env": {"B": "deployment", "C": "deployment"}}, {"env": {"C": "run"}}
    assert filled(ENV, *layers, variables=defaults)["env"] == {"A": "pool", "B": "deployment", "C": "run"}
    dotted = {"env": {"A": "1", "B": "1"}}, {"env.B": "2", "env.C": "3"}
    assert filled(ENV, *dotted, variables={"env": {}})["env"] == {"A": "1", "B": "2", "C": "3"}
    own = {"env": {"FIXED": "1", "A": "template"}}
    filled_in = filled(own, {"env": {"A": "deployment"}}, variables={"env": {}})
    assert filled_in["env"] == {"FIXED": "1", "A": "deployment"}


def test_within_one_layer_the_nested_form_wins():
    assert spread({"env.A": "dotted", "env.B": "dotted", "env": {"A": "nested"}}) == {
        "env": {"A": "nested", "B": "dotted"}
    }


def test_merging_changes_neither_side():
    under, over = {"env": {"A": "1"}}, {"env": {"B": "2"}}
    assert merge(under, over) == {"env": {"A": "1", "B": "2"}}
    assert (under, over) == ({"env": {"A": "1"}}, {"env": {"B": "2"}})


@pytest.mark.parametrize(
    ("configuration", "given", "more", "result"),
    [
        ({"n": "{{ n }}", "s": "n={{ n }}"}, {"n": 3}, {}, {"n": 3, "s": "n=3"}),
        ({"a": "{{ a }}", "b": "x{{ a }}"}, {}, {"variables": {"a": {"type": "string"}}}, {"b": "x"}),
        ({"v": ["{{ box.v[1] }}:/", "{{ b }}"]}, {"box": {"v": ["a", "b"]}}, {"variables": {"b": {}}}, {"v": ["b:/"]}),
        ({"a": "{{ $HOME }}/x"}, {}, {"environ": {"HOME": "/h"}}, {"a": "/h/x"}),
        ({"name": "job-{{ ctx.run.name }}"}, {}, {"context": {"ctx": {"run": {"name": "fox"}}}}, {"name": "job-fox"}),
    ],
    ids=[
        "a lone placeholder keeps the type, and text around it makes text",
        "a declared variable without value leaves the result",
        "lists and paths are filled",
        "the worker's environment can be asked for",
        "names may use the run",
    ],
)
def test_placeholders_are_filled(configuration, given, more, result):
    assert filled(configuration, given, **more) == result


@pytest.mark.parametrize(
    ("configuration", "layers", "words"),
    [
        ({"command": "{{ python_path }} -m prefect.engine"}, [], r"command.*{{ python_path }} has no value"),
        (ENV, [{"env": {"A": "{{ elsewhere }}"}}], r"{{ elsewhere }}"),
        ({"a": "{{ prefect.variables.place }}"}, [], "no Prefect variable 'place'"),
        ({"env": {"KEY": "{{ prefect.blocks.secret.mine }}"}}, [], r"prefect\.blocks\.secret\.mine"),
        ({"a": "{{ $NOWHERE }}/x"}, [], "has no NOWHERE"),
    ],
    ids=["undeclared", "inside a value", "a Prefect variable", "a block", "a variable of the worker"],
)
def test_a_placeholder_without_value_fails_the_run_by_its_name(configuration, layers, words):
    with pytest.raises(UnsupportedRun, match=words):
        filled(configuration, *layers, variables={"env": {}})


def test_prefect_variables_are_looked_up_also_inside_values():
    result = filled(
        {"a": "{{ prefect.variables.place }}", "env": "{{ env }}"},
        {"env": {"WHERE": "in {{ prefect.variables.place }}"}},
        prefect_variables={"place": "here"},
        variables={"env": {}},
    )
    assert result == {"a": "here", "env": {"WHERE": "in here"}}


def test_our_own_template_is_filled_from_nothing():
    """Every field has a value or is left out, so a deployment without job variables runs."""
    result = fill(base_job_template(), [{}, {}], variable={}.__getitem__, environ={}, context={})
    assert result["env"] == {}
    assert "command" not in result
    assert "working_dir" not in result


def test_our_own_template_tells_a_person_what_each_field_is():
    template = base_job_template()
    for name, schema in template["variables"]["properties"].items():
        assert schema["title"], name
        assert schema["description"].endswith("."), name
        assert template["job_configuration"][name] == f"{{{{ {name} }}}}"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("command", "run --password 'hunter2", "command has an open quotation mark"),
        ("env", "TOKEN=hunter2", "env must be a table of names and values, not str"),
        ("env", ["TOKEN=hunter2"], "env must be a table of names and values, not list"),
    ],
)
def test_what_cannot_be_used_is_named_but_never_quoted(name, value, sentence):
    """The sentence goes to the run's page and to our logs, and the text may be a filled-in secret."""
    with LawlessApi() as api:
        template = base_job_template()
        template["variables"]["properties"][name] = {}
        api.add_pool("flowfleet", base_job_template=template)
        run = api.add_run()
        api.runs[run]["job_variables"] = {name: value}
        client = Prefect3(Session(Address(url=api.api_url)))
        with pytest.raises(UnsupportedRun, match=sentence) as caught:
            client.jobs.job(run)
    assert "hunter2" not in str(caught.value)
