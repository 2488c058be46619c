"""Filters: what our client asks of a real Prefect 3 server is what that one understands.

A field that a server does not know it may leave out of account without a word: then a filter holds nothing back.
"""

import copy
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from flowfleet.api.client import LogLine, Mark, StateType
from flowfleet.api.life import Silent
from flowfleet.api.prefect3 import orders
from flowfleet.flow_run import Route, claim_id
from tests.integration.claiming import ago
from tests.integration.one_pool import OnePool

NOBODY = "00000000-0000-4000-8000-00000000beef"
#: what no run of these tests is
OTHERWISE = {
    "type.any_": ["FAILED"],
    "name.any_": ["Nothing", "nobody"],
    "id.any_": [NOBODY],
    "next_scheduled_start_time.before_": "2000-01-01T00:00:00+00:00",
}


class Population:
    """A pool with runs in many states, and all that our client sends while it does whatever it can do."""

    def __init__(self, api_url: str) -> None:
        self.mark = Mark(fleet=f"fleet-{uuid.uuid4().hex[:6]}", worker="w@one")
        self.pool = OnePool(api_url)
        #: (method, path, body)
        self.sent: list[tuple[str, str, Any]] = []
        session = self.pool.client.session
        send = session.call

        def call(method: str, path: str, body: Any = None, **options: Any) -> Any:
            self.sent.append((method, path, copy.deepcopy(body)))
            return send(method, path, body, **options)

        session.call = call  # type: ignore[method-assign]
        self.pool.open()
        self.deployment = self.pool.deployment()
        self.runs: list[str] = []

    def run(self, *states: str, due: float = 5) -> str:
        run = self.pool.scheduled(self.deployment, ago(due))
        for state in states:
            kind, _, name = state.partition(" ")
            self.pool.set_state(run, kind, name or None)
        self.runs.append(run)
        return run

    def settle_down(self) -> None:
        """Some of each kind that a filter of ours is to tell from another."""
        for states in (
            (),
            ("SCHEDULED Later",),
            ("PENDING",),
            ("PENDING Submitted",),
            ("RUNNING",),
            ("RUNNING Retrying",),
            ("RUNNING", "CANCELLING"),
            ("RUNNING", "COMPLETED"),
            ("RUNNING", "CRASHED Broken"),
            ("RUNNING", "CRASHED", "SCHEDULED AwaitingRetry"),
        ):
            self.run(*states)
        self.run(due=-3600)

    def do_all(self, patch: pytest.MonkeyPatch) -> None:
        """Whatever our client can ask and write."""
        client, mark, offer = self.pool.client, self.mark, self.pool.offer
        one_queue = replace(offer, work_queues=("other",))
        self.pool.make_queue(self.pool.name, "other")
        self.pool.scheduled(self.pool.deployment(work_queue_name="other"), ago(5))
        run, call = self.pool.taken(self.deployment)
        claim = claim_id(call, run)
        client.probe()
        client.claims.settle(run, call)
        client.claims.launching(run, call, claim, mark)
        client.claims.started(run, mark, 12)
        self.pool.call("PATCH", f"/flow_runs/{run}", {"empirical_policy": {"retry_type": "in_process"}})
        self.pool.set_state(run, "RUNNING")
        client.ends.run_again(run, claim, "it is started again", mark)
        back, its_call = self.pool.taken(self.deployment)
        client.ends.hand_back(back, its_call, ago(2), mark, "drill")
        client.ends.report(self.run("RUNNING"), StateType.CRASHED, "it ended", mark, claim=claim)
        client.orders.cancel(self.run("RUNNING"), "a person asks")
        client.orders.restart(self.run("RUNNING", "CRASHED"), "a person asks", mark)
        client.orders.find(run)
        client.orders.find(self.pool.run(run)["name"])
        client.orders.find("beef")
        # of few runs by their ids, of many by their pools, and page by page
        routes = dict.fromkeys(self.runs, Route("prefect3", offer.pool_ids[0], "default"))
        client.orders.under_cancel(routes)
        with patch.context() as small:
            small.setattr(orders, "_PAGE", 1)
            small.setattr("flowfleet.api.found._PAGE", 1)
            client.orders.find("beef")
            client.orders.under_cancel(routes)
            small.setattr("flowfleet.api.prefect3.client._PAGE", 5)
            client.unfinished(mark)
        client.ends.states(self.runs)
        for each in (offer, one_queue):
            client.backlog.due([each], within_seconds=1, limit=200)
            client.backlog.count_due([each])
        self.pool.change_pool(self.pool.name, concurrency_limit=100)
        self.pool.change_queue(self.pool.name, "default", concurrency_limit=100)
        client.backlog.place(run)
        client.presence.online(self.pool.name, "fleet", 30)
        client.presence.offline(self.pool.name, "fleet")
        client.life.signs([Silent(run_id=run, worker="w@one", pools=(self.pool.name,))], mark.fleet)
        client.log([LogLine(run_id=run, message="hello", at=datetime.now(UTC))])

    def count(self, asked: Mapping[str, Any]) -> int:
        """How many runs of this pool are met, whatever else is at the server."""
        pools = {"name": {"any_": [self.pool.name]}, **(asked.get("work_pools") or {})}
        return int(self.pool.call("POST", "/flow_runs/count", {**asked, "work_pools": pools}))


@pytest.fixture(scope="module")
def asked(prefect_server) -> Population:
    made = Population(prefect_server.api_url)
    made.settle_down()
    with pytest.MonkeyPatch.context() as patch:
        made.do_all(patch)
    return made


def unknown(schema: Mapping[str, Any], value: Any, known: Mapping[str, Any], at: str = "") -> list[str]:
    """The fields of a body that this schema does not have, with their places."""
    if "$ref" in schema:
        return unknown(known[schema["$ref"].rpartition("/")[2]], value, known, at)
    branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if branches:
        fits = [one for one in branches if one.get("type") != "null"]
        return min((unknown(one, value, known, at) for one in fits), key=len)
    if isinstance(value, list):
        return [wrong for item in value for wrong in unknown(schema.get("items", {}), item, known, f"{at}[]")]
    fields = schema.get("properties")
    if not isinstance(value, dict) or not fields:
        return []
    found = []
    for name, item in value.items():
        place = f"{at}.{name}".strip(".")
        found += unknown(fields[name], item, known, place) if name in fields else [place]
    return found


def test_the_server_has_each_field_that_we_send(asked):
    page = requests.get(asked.pool.api_url.removesuffix("/api") + "/openapi.json", timeout=60).json()
    known, wrong, seen = page["components"]["schemas"], [], set()
    for method, path, body in asked.sent:
        if body is None:
            continue
        name, its = described(page["paths"], method, path)
        seen.add(f"{method} {name}")
        schema = its["requestBody"]["content"]["application/json"]["schema"]
        wrong += [f"{method} {name}: {field}" for field in unknown(schema, body, known)]
    assert not wrong
    # nothing of our client has been left out
    assert seen == {
        "PATCH /flow_runs/{}",
        "POST /flow_runs/bulk_set_state",
        "POST /flow_runs/count",
        "POST /flow_runs/filter",
        "POST /logs/",
        "POST /work_pools/",
        "POST /work_pools/{}/get_scheduled_flow_runs",
        "POST /work_pools/{}/queues/filter",
        "POST /work_pools/{}/workers/filter",
        "POST /work_pools/{}/workers/heartbeat",
    }
    # a misspelt field would be seen
    schema = {"$ref": "#/components/schemas/FlowRunFilter"}
    assert unknown(schema, {"state": {"type": {"any": []}}, "nmae": {}}, known) == ["state.type.any", "nmae"]


def described(paths: Mapping[str, Any], method: str, path: str) -> tuple[str, Mapping[str, Any]]:
    """The server's own description of a request, and its path without names."""
    # a path that is written out goes before one with a name in it
    for template in sorted(paths, key=lambda one: one.count("{")):
        pattern = re.sub(r"\{[^}]+\}", "[^/]+", template)
        if re.fullmatch(pattern, path) and method.lower() in paths[template]:
            return re.sub(r"\{[^}]+\}", "{}", template), paths[template][method.lower()]
    raise AssertionError(f"the server does not have {method} {path}")


def leaves(found: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*at, name))
        else:
            yield (*at, name)


def conditions(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("flow_runs", "work_pools", "work_pool_queues") if name in body}


def put(where: Mapping[str, Any], at: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = at
    return {**where, first: put(where[first], tuple(rest), value) if rest else value}


def without_ids(wanted: dict[str, Any]) -> dict[str, Any]:
    """The same question of all runs of the pool, so that the other conditions have something to hold back."""
    runs = {name: value for name, value in wanted["flow_runs"].items() if name not in ("id", "name")}
    return {**wanted, "flow_runs": runs}


def holds_back(asked: Population, question: Mapping[str, Any], leaf: tuple[str, ...]) -> bool:
    """Whether it makes a difference to the server when this condition says something else."""
    value = question
    for name in leaf:
        value = value[name]
    if leaf[-1] == "operator":
        other: Any = {"and_": "or_", "or_": "and_"}[str(value)]
    else:
        other = asked.runs if leaf[-1] == "not_any_" else OTHERWISE[".".join(leaf[-2:])]
    return asked.count(question) != asked.count(put(question, leaf, other))


def questions(asked: Population) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """Each kind of question about runs once: path, condition, and the question in which that one is tried."""
    seen = set()
    for _, path, body in asked.sent:
        wanted = conditions(body or {})
        if not wanted.get("flow_runs"):
            continue
        for leaf in leaves(wanted):
            single = leaf[:2] in (("flow_runs", "id"), ("flow_runs", "name"))
            question = {"flow_runs": {leaf[1]: wanted["flow_runs"][leaf[1]]}} if single else without_ids(wanted)
            shape = (path, leaf, "" if single else repr(question))
            if shape in seen or (single and not asked.count(question)):
                continue  # a question after nobody tells nothing
            seen.add(shape)
            yield path, leaf, question


def test_each_condition_that_we_send_holds_something_back(asked):
    """A condition is replaced by what no run fulfils: whoever takes notice of it meets others then."""
    tried = list(questions(asked))
    idle = [
        f"{path} {'.'.join(leaf)} of {question}"
        for path, leaf, question in tried
        if not holds_back(asked, question, leaf)
    ]
    assert not idle
    assert {".".join(leaf) for _, leaf, _ in tried} == {
        "flow_runs.id.any_",
        "flow_runs.id.not_any_",
        "flow_runs.name.any_",
        "flow_runs.next_scheduled_start_time.before_",
        "flow_runs.state.name.any_",
        "flow_runs.state.operator",
        "flow_runs.state.type.any_",
        "work_pool_queues.name.any_",
        "work_pools.id.any_",
        "work_pools.name.any_",
    }


def test_what_is_handed_out_is_held_back_by_time_queue_and_number(asked):
    path = f"/work_pools/{asked.pool.name}/get_scheduled_flow_runs"
    fields = {name for _, sent, body in asked.sent if sent == path for name in body}
    whole = len(asked.pool.call("POST", path, {}))
    less = {"scheduled_before": ago(600).isoformat(), "limit": 1, "work_queue_names": ["other"]}
    assert fields == set(less)
    assert [len(asked.pool.call("POST", path, {name: less[name]})) < whole for name in less] == [True] * 3
