"""Template: job variables of pool, deployment and run put together."""

import pytest

from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.prefect3.pool_template import base_job_template
from flowfleet.api.prefect3.templates import Filled, fill, layered, merge, spread
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.session import Session
from flowfleet.errors import UnsupportedRun
from tests.lawless_api import LawlessApi

ENV = {"env": "{{ env }}"}


class Kept:
    """The server's variables and blocks, in two tables."""

    def __init__(self, variables=None, blocks=None):
        self._variables, self._blocks = variables or {}, blocks or {}
        self.asked = []

    def variable(self, name):
        return self._variables[name]

    def block(self, kind, name):
        self.asked.append(name)
        return self._blocks[kind, name]

    def block_by_id(self, document_id):
        return self._blocks[document_id]


def fill_in(configuration, *layers, variables=None, kept=None, environ=None, context=None) -> Filled:
    return fill(
        {"job_configuration": configuration, "variables": {"properties": variables or {}}},
        list(layers),
        references=kept or Kept(),
        environ=environ or {},
        context=context or {},
    )


def filled(configuration, *layers, **known):
    return fill_in(configuration, *layers, **known).configuration


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


def test_a_dotted_key_of_a_run_lies_over_the_nested_one_of_its_deployment():
    """A stock worker gives the deployment's: it forgets which of the two came from the run."""
    assert layered([{"env": {"A": "1"}, "box": {"a": 1}}, {"env.A": "2", "box.b": 2}]) == {
        "env": {"A": "2"}, "box": {"a": 1, "b": 2},
    }  # fmt: skip
    deployment = {"env": {"A": "1"}}
    layered([deployment, {"env.B": "2"}])
    assert deployment == {"env": {"A": "1"}}, "what is kept for the next run"


def test_merging_changes_neither_side():
    under, over = {"env": {"A": "1"}}, {"env": {"B": "2"}}
    assert merge(under, over) == {"env": {"A": "1", "B": "2"}}
    assert (under, over) == ({"env": {"A": "1"}}, {"env": {"B": "2"}})


@pytest.mark.parametrize(
    ("configuration", "given", "more", "result"),
    [
        ({"n": "{{ n }}", "s": "n={{ n }}"}, {"n": 3}, {}, {"n": 3, "s": "n=3"}),
        ({"a": "{{ a }}", "b": "x{{ a }}"}, {}, {"variables": {"a": {"type": "string"}}}, {"b": "x"}),
        ({"command": "{{ python }}", "b": "{{ python }} -m x"}, {}, {}, {"b": " -m x"}),
        ({"v": ["{{ box.v[1] }}:/", "{{ b }}"]}, {"box": {"v": ["a", "b"]}}, {"variables": {"b": {}}}, {"v": ["b:/"]}),
        ({"a": "{{ $HOME }}/x", "b": "{{ $NO }}"}, {}, {"environ": {"HOME": "/h"}}, {"a": "/h/x", "b": ""}),
        ({"name": "{{ n }}"}, {"n": "{{ ctx.r }} {{ x }}"}, {"context": {"ctx": {"r": 1}}}, {"name": "1 {{ x }}"}),
    ],
    ids=[
        "a lone placeholder keeps the type, and text around it makes text",
        "a declared variable without value leaves the result",
        "so does a name that nobody has declared",
        "lists and paths are filled",
        "the worker's environment can be asked for",
        "names may use the run",
    ],
)
def test_placeholders_of_the_template_are_filled(configuration, given, more, result):
    assert filled(configuration, given, **more) == result


@pytest.mark.parametrize("default", [{}, {"FROM": "the pool"}], ids=["an empty table", "a table of its own"])
@pytest.mark.parametrize("text", ["Dear {{ customer }}", "{{ customer }}", "{{ $HOME }}", "x{{ $HOME }}", "{{ env }}"])
def test_a_text_of_a_deployment_stays_as_it_is_and_shows_nobody_the_workers_environment(text, default):
    properties = {"env": {"default": default}, "command": {}, "box": {}}
    given = {"env": {"GREETING": text}, "command": text, "box": [{"deep": text}]}
    result = filled(
        {**ENV, "command": "{{ command }}", "box": "{{ box }}"}, given, variables=properties, environ={"HOME": "secret"}
    )
    assert result == {**given, "env": {**default, "GREETING": text}}


def test_variables_and_blocks_are_looked_up_also_inside_values_and_each_block_once():
    blocks = {
        ("secret", "mine"): {"value": "hush"},
        ("login", "db"): {"user": "me", "ports": [5432]},
        ("json", "one"): {"value": {"a": {"b": 1}}},
        "an-id": {"all": "of it"},
    }
    kept = Kept({"place": "here", "n": 3}, blocks)
    env = {
        "WHERE": "in {{ prefect.variables.place }}, {{ customer }}",
        "KEY": "{{ prefect.blocks.secret.mine }}",
        "URL": "{{prefect.blocks.login.db.user}} {{prefect.blocks.secret.mine}} {{ prefect.blocks.login.db.ports[0]}}",
        "ONE": "{{ prefect.blocks.json.one.value.a.b }}",
        "TWO": "{{ prefect.blocks.json.one.a }}",
    }
    result = filled(
        {"n": "{{ prefect.variables.n }}", "env": "{{ env }}", "box": {"$ref": {"block_document_id": "an-id"}}},
        {"env": env},
        kept=kept,
        variables={"env": {}},
    )
    assert result == {
        "n": 3,
        "box": {"all": "of it"},
        "env": {"WHERE": "in here, {{ customer }}", "KEY": "hush", "URL": "me hush 5432", "ONE": 1, "TWO": {"b": 1}},
    }
    assert sorted(kept.asked) == ["db", "mine", "one"]


def test_a_missing_variable_is_an_empty_text_as_with_a_stock_worker_and_the_run_is_told():
    found = fill_in(ENV, {"env": {"A": "{{ prefect.variables.place }}", "B": "in {{ prefect.variables.place }}"}})
    assert found.configuration["env"] == {"A": "", "B": "in "}
    assert found.remarks == ("There is no Prefect variable 'place'; job variable env, A has an empty text instead.",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ prefect.blocks.secret.gone }}", r"env, KEY: there is no block 'gone' of type 'secret', asked for by {{"),
        ("a {{ prefect.blocks.json.one }}", r"env, KEY: {{ prefect\.blocks\.json\.one }} is a table, .* within a text"),
        ("{{ prefect.blocks.json.one.b.c }}", r"env, KEY: the block 'one' of type 'json' has no b\.c, asked for by"),
        ("{{ prefect.blocks.json }}", "names no block: write prefect.blocks.TYPE.NAME"),
        ({"$ref": {"block_document_id": "no-id"}}, "env, KEY: there is no block with the id no-id"),
    ],
)
def test_a_block_that_cannot_be_had_fails_the_run_by_its_name_without_its_content(text, words):
    kept = Kept(blocks={("json", "one"): {"value": {"a": "hush"}}})
    with pytest.raises(UnsupportedRun, match=words) as failure:
        filled(ENV, {"env": {"KEY": text}}, kept=kept)
    assert "hush" not in str(failure.value)


def test_our_own_template_is_filled_from_nothing():
    """Every field has a value or is left out, so a deployment without job variables runs."""
    result = fill(base_job_template(), [{}, {}], references=Kept(), environ={}, context={}).configuration
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
