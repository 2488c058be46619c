"""Template: job variables of pool, deployment and run put together."""

import pytest

from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.prefect3.pool_template import base_job_template
from flowfleet.api.prefect3.templates import fill, merge, spread
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.errors import UnsupportedRun
from tests.lawless_api import LawlessApi


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


def test_env_is_merged_key_by_key():
    defaults = {"env": {"default": {"A": "pool", "B": "pool", "C": "pool"}}}
    result = filled(
        {"env": "{{ env }}"},
        {"env": {"B": "deployment", "C": "deployment"}},
        {"env": {"C": "run"}},
        variables=defaults,
    )
    assert result["env"] == {"A": "pool", "B": "deployment", "C": "run"}


def test_a_templates_own_env_table_is_the_ground():
    result = filled({"env": {"FIXED": "1", "A": "template"}}, {"env": {"A": "deployment"}}, variables={"env": {}})
    assert result["env"] == {"FIXED": "1", "A": "deployment"}


def test_dotted_keys_reach_into_env():
    result = filled(
        {"env": "{{ env }}"}, {"env": {"A": "1", "B": "1"}}, {"env.B": "2", "env.C": "3"}, variables={"env": {}}
    )
    assert result["env"] == {"A": "1", "B": "2", "C": "3"}


def test_within_one_layer_the_nested_form_wins():
    assert spread({"env.A": "dotted", "env.B": "dotted", "env": {"A": "nested"}}) == {
        "env": {"A": "nested", "B": "dotted"}
    }


def test_merging_changes_neither_side():
    under, over = {"env": {"A": "1"}}, {"env": {"B": "2"}}
    assert merge(under, over) == {"env": {"A": "1", "B": "2"}}
    assert (under, over) == ({"env": {"A": "1"}}, {"env": {"B": "2"}})


def test_a_lone_placeholder_keeps_the_type_and_text_around_it_makes_text():
    result = filled({"n": "{{ n }}", "s": "n={{ n }}"}, {"n": 3})
    assert result == {"n": 3, "s": "n=3"}


def test_a_declared_variable_without_value_leaves_the_result():
    assert filled({"a": "{{ a }}", "b": "x{{ a }}"}, variables={"a": {"type": "string"}}) == {"b": "x"}


def test_an_undeclared_placeholder_fails_the_run_by_its_name():
    with pytest.raises(UnsupportedRun, match=r"command.*{{ python_path }} has no value"):
        filled({"command": "{{ python_path }} -m prefect.engine"})


def test_a_placeholder_inside_a_value_is_named_too():
    with pytest.raises(UnsupportedRun, match=r"{{ elsewhere }}"):
        filled({"env": "{{ env }}"}, {"env": {"A": "{{ elsewhere }}"}}, variables={"env": {}})


def test_prefect_variables_are_looked_up_also_inside_values():
    result = filled(
        {"a": "{{ prefect.variables.place }}", "env": "{{ env }}"},
        {"env": {"WHERE": "in {{ prefect.variables.place }}"}},
        prefect_variables={"place": "here"},
        variables={"env": {}},
    )
    assert result == {"a": "here", "env": {"WHERE": "in here"}}


def test_a_missing_prefect_variable_is_named():
    with pytest.raises(UnsupportedRun, match="no Prefect variable 'place'"):
        filled({"a": "{{ prefect.variables.place }}"})


def test_a_block_reference_is_named():
    with pytest.raises(UnsupportedRun, match=r"prefect\.blocks\.secret\.mine"):
        filled({"env": {"KEY": "{{ prefect.blocks.secret.mine }}"}})


def test_the_workers_environment_can_be_asked_for():
    assert filled({"a": "{{ $HOME }}/x"}, environ={"HOME": "/h"}) == {"a": "/h/x"}
    with pytest.raises(UnsupportedRun, match="has no NOWHERE"):
        filled({"a": "{{ $NOWHERE }}/x"})


def test_names_may_use_the_run():
    result = filled({"name": "job-{{ ctx.flow_run.name }}"}, context={"ctx": {"flow_run": {"name": "blue-fox"}}})
    assert result == {"name": "job-blue-fox"}


def test_lists_and_paths_are_filled():
    result = filled(
        {"volumes": ["{{ box.items[1] }}:/x", "{{ gone }}"]}, {"box": {"items": ["a", "b"]}}, variables={"gone": {}}
    )
    assert result == {"volumes": ["b:/x"]}


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
