"""Templates at a real Prefect 3 server: the same job variables filled by a stock worker's own functions and by ours."""

import importlib.util
import io
import json
import logging
import subprocess
import sys
import uuid

import pytest

from flowfleet import logs
from flowfleet.api.prefect3.templates import fill
from flowfleet.errors import UnsupportedRun
from tests import processes
from tests.integration.one_pool import OnePool
from tests.needs import need
from tests.waiting import SCALE

#: what a stock worker does to find out what to start, up to where its configuration class would check it
STOCK = """
import asyncio, json, logging, sys
from types import SimpleNamespace as Facts
from prefect.client.orchestration import get_client
from prefect.workers.base import BaseJobConfiguration

logging.disable()

class Raw(dict):
    _get_base_config_defaults = staticmethod(BaseJobConfiguration._get_base_config_defaults)
    from_template_and_values = classmethod(BaseJobConfiguration.__dict__["from_template_and_values"].__func__)
    resolve_for_flow_run = classmethod(BaseJobConfiguration.__dict__["resolve_for_flow_run"].__func__)
    def prepare_for_flow_run(self, **_facts):
        pass

async def fill(client, template, properties, deployment, run):
    template = {"job_configuration": template, "variables": {"properties": properties}}
    return await Raw.resolve_for_flow_run(
        Facts(deployment_id=None, flow_id=None, job_variables=run), client=client, worker_name="w",
        work_pool=Facts(base_job_template=template), deployment=Facts(job_variables=deployment),
    )

async def main():
    answers = []
    async with get_client() as client:
        async def no_flow(_flow_id):
            return None
        client.read_flow = no_flow
        for row in json.load(sys.stdin):
            try:
                answers.append({"filled": await fill(client, *row)})
            except Exception as error:
                answers.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(answers, sys.stdout)

asyncio.run(main())
"""
#: the worker's own environment, in both
ENVIRON = {"FFTEST_PLACE": "/place"}
ENV, COMMAND, BOX = ({name: f"{{{{ {name} }}}}"} for name in ("env", "command", "box"))
LETTER = "Dear {{ customer }}, {{ $FFTEST_PLACE }} {{env.A}}"
DEEP = {"default": {"A": "{{ $FFTEST_PLACE }}", "B": "pool"}}


def _variable(name):
    return f"{{{{ prefect.variables.{name} }}}}"


def _block(path):
    return f"{{{{ prefect.blocks.{path} }}}}"


#: template, properties of its variables, job variables of the deployment, and those of the run
ROWS = {
    "nothing is given": ({**ENV, **COMMAND}, {"env": {"default": {}}, "command": {"default": None}}, {}, {}),
    "types are kept": ({"a": "{{ a }}", "b": "{{a}}{{ a }}", "c": " {{ a }}"}, {}, {"a": [1, None, {"x": True}]}, {}),
    "null is a value": ({"a": "{{ a }}", "b": "x{{ a }}"}, {"a": {"default": "pool"}}, {"a": None}, {}),
    "the last layer wins": (COMMAND, {"command": {"default": "a"}}, {"command": "b"}, {"command": "c"}),
    "env of all layers": (ENV, {"env": {"default": {}}}, {"env": {"A": "1", "B": "1"}}, {"env": {"B": "2", "C": None}}),
    "env by dotted keys": (ENV, {"env": {}}, {"env.A": "1", "env.B": "1"}, {"env": {"B": "2"}}),
    "other dotted keys": (BOX, {"box": {}}, {"box.a.b": 1, "box": {"a": {"c": 2}}}, {"box.a.d": 3}),
    "a template's own env": ({"env": {"A": "t", "F": "{{ f }}"}}, {"f": {}}, {"env": {"A": "d"}, "f": "f"}, {}),
    "an unset name in env": ({"env": {"F": "{{ f }}", "G": "{{ f }}g"}}, {"f": {}}, {"env": {"A": "d"}}, {}),
    "the pool's env is template": (ENV, {"env": DEEP}, {}, {"env": {"B": "run"}}),
    "unknown names": ({"a": "{{ nobody }}", "b": "x{{ nobody }}y", "c": ["{{ nobody }}", 1]}, {}, {}, {}),
    "variables of the worker": ({"a": "{{ $FFTEST_PLACE }}", "b": "{{ $FFTEST_NO }}", "c": "{{$}}"}, {}, {}, {}),
    "paths": (
        {"a": "{{ box.a[1].b }}", "b": "{{ box.a.0 }}", "c": "{{ box.1 }}", "d": "{{ box.a[9] }}", "e": "{{ s[0] }}"},
        {},
        {"box": {"a": ["x", {"b": "y"}], "1": "one"}, "s": "text"},
        {},
    ),
    "values are no templates": ({**ENV, **COMMAND}, {"env": {}}, {"env": {"L": LETTER}, "command": LETTER}, {}),
    "nor are whole ones": (
        ENV,
        {"env": {}},
        {"env": {"A": "{{ customer }}", "B": "{{ $FFTEST_PLACE }}", "C": "{{ env }}"}},
        {},
    ),
    "other braces": (
        {**COMMAND, "b": "{{ a b }} {{{ x }}}"},
        {},
        {"command": "{{ a b }} { x } {{{ y }}} {{}} ${HOME}"},
        {},
    ),
    "defaults are values": (COMMAND, {"command": {"default": "{{ $FFTEST_PLACE }} {{ other }}"}}, {"other": 1}, {}),
    "variables": ({"a": _variable("TEXT"), **ENV}, {"env": {}}, {"env": {"B": f"x{_variable('TABLE')}"}}, {}),
    "variables with their types": ({"a": _variable("TABLE"), **BOX}, {}, {"box": [_variable("TABLE")]}, {}),
    "a missing variable": ({"a": _variable("no_such"), **BOX}, {}, {"box": f"x{_variable('no_such')}"}, {}),
    "a secret": ({"a": _block("secret.SECRET"), **ENV}, {"env": {}}, {"env": {"B": f"x{_block('secret.SECRET')}"}}, {}),
    "its value by name": (COMMAND, {}, {"command": f"{_block('secret.SECRET.value')} -m x"}, {}),
    "a block with fields": (BOX, {}, {"box": _block("KIND.LOGIN")}, {}),
    "fields of it": (
        BOX,
        {},
        {"box": [_block("KIND.LOGIN.password"), f"{_block('KIND.LOGIN.hosts[1].port')}/{{{{ customer }}}}"]},
        {},
    ),
    "a reference": (BOX, {}, {"box": {"$ref": {"block_document_id": "LOGIN-ID"}}}, {}),
    "a reference that is none": (BOX, {}, {"box": {"$ref": {"other": 1}, "x": _variable("TEXT")}}, {}),
    "a variable inside a block": (BOX, {}, {"box": _block("KIND.LOGIN.motto")}, {}),
    "no variable inside a variable": ({"a": _variable("NESTED")}, {}, {}, {}),
}
#: with these, a stock worker crashes the run, and so do we, in a sentence
REFUSED = {
    "no such block": "{{ prefect.blocks.secret.no-such }}",
    "no such type": "{{ prefect.blocks.no-such-type.SECRET }}",
    "no such field": "{{ prefect.blocks.KIND.LOGIN.no_such }}",
    "a table within a text": "x{{ prefect.blocks.KIND.LOGIN }}",
    "half a name": "{{ prefect.blocks.secret }}",
    "no such id": {"$ref": {"block_document_id": str(uuid.UUID(int=1))}},
}
#: where we differ on purpose: what a stock worker makes of it, and what we do
DIFFERENT = {
    "where the pool has an env of its own, a deployment's is no template either: it could read the worker's": (
        (ENV, {"env": {"default": {"A": "1"}}}, {"env": {"B": "{{ $FFTEST_PLACE }}", "C": "Dear {{ customer }}"}}, {}),
        {"env": {"A": "1", "B": "/place", "C": "Dear "}},
        {"env": {"A": "1", "B": "{{ $FFTEST_PLACE }}", "C": "Dear {{ customer }}"}},
    ),
    "a run's dotted key lies over what its deployment says": (
        (ENV, {"env": {}}, {"env": {"A": "deployment"}}, {"env.A": "run"}),
        {"env": {"A": "deployment"}},
        {"env": {"A": "run"}},
    ),
}


class Place(OnePool):
    """A server with variables, a secret and a block of a type of its own; rows name these in capitals."""

    def __init__(self, api_url):
        super().__init__(api_url)
        mark = uuid.uuid4().hex[:8]
        self.names = {"TEXT": f"text_{mark}", "TABLE": f"table_{mark}", "NESTED": f"nested_{mark}"}
        motto = _variable(self.names["TEXT"])
        for name, value in {"TEXT": "a text", "TABLE": {"a": [1, "b"]}, "NESTED": motto}.items():
            self.call("POST", "/variables/", {"name": self.names[name], "value": value})
        self.names |= {"SECRET": f"secret-{mark}", "LOGIN": f"login-{mark}", "KIND": f"kind-{mark}"}
        self.secrets = (f"hush-{mark}", f"pass-{mark}")
        secret = self.call("GET", "/block_types/slug/secret")["id"]
        of_secret = {"block_schemas": {"block_type_id": {"any_": [secret]}}}
        (schema, *_) = self.call("POST", "/block_schemas/filter", of_secret)
        self.secret_id = self.block("SECRET", secret, schema["id"], {"value": self.secrets[0]})
        fields = {"properties": {"password": {"type": "string", "format": "password"}}, "secret_fields": ["password"]}
        kind = self.call("POST", "/block_types/", {"name": self.names["KIND"], "slug": self.names["KIND"]})["id"]
        schema = self.call("POST", "/block_schemas/", {"block_type_id": kind, "fields": fields})
        login = {"password": self.secrets[1], "hosts": ["a", {"port": 5432}], "motto": motto}
        self.names["LOGIN-ID"] = self.block("LOGIN", kind, schema["id"], login)

    def block(self, name, kind, schema, data):
        facts = {"name": self.names[name], "block_type_id": kind, "block_schema_id": schema, "data": data}
        return self.call("POST", "/block_documents/", facts)["id"]

    def named(self, row):
        """The row with the names that things have here."""
        text = json.dumps(row)
        for name in sorted(self.names, key=len, reverse=True):
            text = text.replace(name, self.names[name])
        return json.loads(text)

    def ours(self, row):
        template, properties, *layers = row
        template = {"job_configuration": template, "variables": {"properties": properties}}
        return fill(template, layers, references=self.client.jobs, environ=ENVIRON, context={}).configuration

    def stock(self, rows):
        need(importlib.util.find_spec("prefect") is not None, "prefect: install the extra demo")
        env = processes.environment() | {"PREFECT_API_URL": self.api_url, **ENVIRON}
        done = subprocess.run(
            [sys.executable, "-c", STOCK],
            input=json.dumps(rows),
            env=env,
            capture_output=True,
            text=True,
            timeout=300 * SCALE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(prefect_server):
    return Place(prefect_server.api_url)


def test_templates_are_filled_as_a_stock_worker_fills_them_but_where_we_differ_on_purpose(place):
    different = {name: row for name, (row, _, _) in DIFFERENT.items()}
    refused = {name: (ENV, {"env": {}}, {"env": {"A": text}}, {}) for name, text in REFUSED.items()}
    rows = {name: place.named(row) for name, row in {**ROWS, **different, **refused}.items()}
    stock = dict(zip(rows, place.stock(list(rows.values())), strict=True))

    ours = {name: {"filled": place.ours(rows[name])} for name in ROWS}
    assert ours == {name: stock[name] for name in ROWS}
    for name, (_, theirs, ours) in DIFFERENT.items():
        assert (stock[name]["filled"], place.ours(rows[name])) == (theirs, ours), name
    for name in REFUSED:
        assert "error" in stock[name], (name, stock[name])
        with pytest.raises(UnsupportedRun, match="job variable env, A"):
            place.ours(rows[name])


def test_the_secrets_of_blocks_are_in_no_log_line_and_in_no_repr_and_are_read_anew_for_each_run(place):
    env = place.named({"A": _block("secret.SECRET"), "B": _block("KIND.LOGIN.password")})
    pool = OnePool(place.api_url).open()
    deployment = pool.deployment(job_variables={"env": env})
    said = io.StringIO()
    logs.configure("DEBUG", stream=said)
    job = pool.client.jobs.job(pool.create_run(deployment))
    assert tuple(job.env.values()) == place.secrets
    logging.getLogger("flow").warning("it printed %s", job.env)
    said.write(f"{job} {pool.client.jobs}")
    assert not [secret for secret in place.secrets if secret in said.getvalue()]

    place.call("PATCH", f"/block_documents/{place.secret_id}", {"data": {"value": "another one"}})
    assert pool.client.jobs.job(pool.create_run(deployment)).env["A"] == "another one"
