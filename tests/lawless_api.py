"""LawlessApi: a stand-in for the Prefect 3 API that takes every state from everybody and has no claim lock at all.

It speaks over real loopback HTTP, so other processes can use it, and it is fast enough for hundreds of rounds. What
must never happen twice on it can only be kept by the ledger. With `honest=True` it minds filters and the server's own
rules, as far as flowfleet leans on them.
"""

import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import unquote

from flowfleet.api.prefect3.pool_template import base_job_template
from tests.loopback import HttpError, Loopback, Page
from tests.rest import TERMINAL


def instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def matches(run: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    ids = wanted.get("id") or {}
    if ids.get("any_") is not None and run["id"] not in ids["any_"]:
        return False
    if ids.get("not_any_") is not None and run["id"] in ids["not_any_"]:
        return False
    names = (wanted.get("name") or {}).get("any_")
    if names is not None and run["name"] not in names:
        return False
    state = wanted.get("state") or {}
    tests = [
        run["state"][key] in state[key]["any_"]
        for key in ("type", "name")
        if (state.get(key) or {}).get("any_") is not None
    ]
    if tests and not (any(tests) if state.get("operator") == "or_" else all(tests)):
        return False
    before = instant((wanted.get("next_scheduled_start_time") or {}).get("before_"))
    due = instant(run["next_scheduled_start_time"])
    return before is None or (due is not None and due <= before)


def refusal(stands: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, str] | None:
    """The server's own rules, as far as they matter to us."""
    mine = (state.get("state_details") or {}).get("transition_id")
    if mine and mine == stands["state_details"].get("transition_id"):
        return "REJECT", "This run has already made this state transition."
    if stands["type"] in TERMINAL and state["type"] in TERMINAL:
        return "ABORT", "This run is already in a terminal state."
    if stands["type"] == "CANCELLING" and state["type"] != "CANCELLED":
        return "REJECT", "This run is cancelling. Only a transition to cancelled is allowed."
    if state["type"] == "PENDING" and stands["type"] == "PENDING" and state.get("name") == stands["name"]:
        return "ABORT", "This run is in a PENDING state and cannot transition to a PENDING state."
    if state["type"] == "PENDING" and stands["type"] in ("RUNNING", "CANCELLING", "CANCELLED"):
        return "ABORT", f"This run is in a {stands['type']} state and cannot transition to a PENDING state."
    return None


#: what uses up the limits of pools and queues
_BUSY = ("PENDING", "RUNNING")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass
class Fault:
    """What goes wrong at requests whose `METHOD /path` contains `where`, so many times (-1 = always)."""

    where: str
    kind: str  # "status" | "page" | "json" | "mute" | "late" | "drop_after" | "null_abort" | "null_abort_after"
    times: int = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


class LawlessApi:
    """`with LawlessApi() as api: api.api_url …`; `api.runs[RUN]` and `api.states[RUN]` are what happened."""

    def __init__(self, *, honest: bool = False, port: int = 0, csrf: bool = False, authorization: str = "") -> None:
        self.honest = honest
        self.csrf = csrf
        self.authorization = authorization
        self.pools: dict[str, dict[str, Any]] = {}
        self.queues: dict[str, dict[str, Any]] = {}
        self.flows: dict[str, dict[str, Any]] = {}
        self.deployments: dict[str, dict[str, Any]] = {}
        self.variables: dict[str, Any] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.states: dict[str, list[dict[str, Any]]] = {}
        self.logs: list[dict[str, Any]] = []
        self.workers: Counter[str] = Counter()
        #: requests by `METHOD /path` with ids as `ID`
        self.requests: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self._lock = threading.RLock()  # keeps our own tables whole; it guards no run from anybody
        self._muted = threading.Event()
        self._released = threading.Event()
        self._server = Loopback(self.answer, port=port)

    # life

    @property
    def api_url(self) -> str:
        return f"{self._server.url}/api"

    def start(self) -> Self:
        self._server.start()
        return self

    def stop(self) -> None:
        self._muted.set()
        self._released.set()
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # what tests do

    def fail(
        self, where: str, kind: str = "status", *, times: int = 1, status: int = 503, body: Any = None, **headers: str
    ) -> Fault:
        """Let the next requests go wrong: "status", "page" (a proxy's web page), "json" (200 with this body),
        "mute" (no answer), "late" (held until `release`, then done, and the line breaks), "drop_after" (done, then the
        line breaks),
        "null_abort" (bulk: nothing done, ABORT without a state), "null_abort_after" (the same, though it was done).
        The fault itself says how often it is still to be met."""
        with self._lock:
            self.faults.append(Fault(where, kind, times, status, headers, body))
            return self.faults[-1]

    def heal(self) -> None:
        """No faults any more."""
        with self._lock:
            self.faults.clear()

    def release(self) -> None:
        """What is held goes on."""
        self._released.set()

    def counted(self, where: str = "") -> int:
        """How many requests had this in `METHOD /path`."""
        with self._lock:
            return sum(number for what, number in self.requests.items() if where in what)

    def add_pool(self, name: str = "flowfleet", **fields: Any) -> dict[str, Any]:
        return self._create_pool(
            {"name": name, "type": "flowfleet", "base_job_template": base_job_template(), **fields}
        )

    def add_run(self, pool: str = "flowfleet", *, due_in: float = 0.0, queue: str = "default", **fields: Any) -> str:
        """A scheduled run with a deployment of its own."""
        with self._lock:
            if pool not in self.pools:
                self.add_pool(pool)
            place = {"work_pool_name": pool, "work_queue_name": queue}
            deployment = self._create_deployment({"name": "lawless", "flow_id": self._flow("lawless")["id"], **place})
            due = datetime.now(UTC) + timedelta(seconds=due_in)
            state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
            return str(self._create_run(deployment["id"], {"state": state, **fields})["id"])

    def state(self, run_id: str) -> dict[str, Any]:
        with self._lock:
            return dict(self.runs[run_id]["state"])

    def history(self, run_id: str) -> list[str]:
        """The names of all states that were written."""
        with self._lock:
            return [state["name"] for state in self.states[run_id]]

    def cancel(self, run_id: str) -> bool:
        """What a user does who presses Cancel; False where the run has ended, or is being cancelled."""
        with self._lock:
            if self.runs[run_id]["state"]["type"] in (*TERMINAL, "CANCELLING"):
                return False
            self.write(run_id, "CANCELLING", "Cancelling")
            return True

    def at_once(self) -> AbstractContextManager[bool]:
        """For several writes between which no request is answered."""
        return self._lock

    def write(self, run_id: str, kind: str, name: str | None = None, message: str = "", **details: Any) -> None:
        """A state as an engine or a user writes it."""
        self._write(run_id, {"type": kind, "name": name, "message": message, "state_details": details})

    # requests

    def answer(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any:
        """The answer's JSON; raises `HttpError`, or `BrokenPipeError` when the line is to break."""
        path = path.removeprefix("/api")
        what = f"{method} {_ID.sub('ID', path)}"
        with self._lock:
            self.requests[what] += 1
            fault = self._fault(what)
        if fault and fault.kind == "status":
            raise HttpError(fault.status, "made to fail", fault.headers)
        if fault and fault.kind == "page":
            raise HttpError(fault.status, "", body=Page(b"<html>hello</html>"))
        if fault and fault.kind == "json":
            raise HttpError(200, "", body=json.dumps(fault.body).encode())
        if fault and fault.kind == "mute":
            self._muted.wait(60)
            raise BrokenPipeError
        if fault and fault.kind == "late":
            self._released.wait(120)
        if self.authorization and headers.get("Authorization") != self.authorization:
            raise HttpError(401, "Unauthorized")
        if (
            self.csrf
            and method != "GET"
            and headers.get("Prefect-Csrf-Token") != "token of " + headers.get("Prefect-Csrf-Client", "")
        ):
            raise HttpError(403, "Missing CSRF token.")
        with self._lock:
            if fault and fault.kind == "null_abort":
                return _null_aborts(body["flow_runs"]["id"]["any_"])
            answer = self._route(method, path, body)
        if fault and fault.kind == "null_abort_after":
            return _null_aborts([result["flow_run_id"] for result in answer["results"]])
        if fault and fault.kind in ("late", "drop_after"):
            raise BrokenPipeError
        return answer

    def _fault(self, what: str) -> Fault | None:
        for fault in self.faults:
            if fault.where in what and fault.times != 0:
                fault.times -= 1
                return fault
        return None

    def _route(self, method: str, path: str, body: Any) -> Any:
        for verb, pattern, action in _ROUTES:
            match = re.fullmatch(pattern, path.partition("?")[0])
            if verb == method and match:
                return action(self, *match.groups(), body, path)
        raise HttpError(404, f"no route {method} {path}")

    def _create_pool(self, body: Any) -> dict[str, Any]:
        with self._lock:
            if body["name"] in self.pools:
                raise HttpError(409, "a pool of this name exists")
            pool = {
                "id": str(uuid.uuid4()),
                "type": "prefect-agent",
                "is_paused": False,
                "concurrency_limit": None,
                "base_job_template": {},
                **body,
            }
            self.pools[pool["name"]] = pool
            self._create_queue(pool["name"], {"name": "default"})
            return pool

    def _create_queue(self, pool: str, body: Any) -> dict[str, Any]:
        queue = {"id": str(uuid.uuid4()), "work_pool_name": pool, "is_paused": False, "priority": 1, **body}
        self.queues[queue["id"]] = queue
        return queue

    def _queue(self, pool: str, name: str) -> dict[str, Any]:
        for queue in self.queues.values():
            if queue["work_pool_name"] == pool and queue["name"] == name:
                return queue
        return self._create_queue(pool, {"name": name})

    def _flow(self, name: str) -> dict[str, Any]:
        for flow in self.flows.values():
            if flow["name"] == name:
                return flow
        flow = {"id": str(uuid.uuid4()), "name": name}
        self.flows[flow["id"]] = flow
        return flow

    def _create_deployment(self, body: Any) -> dict[str, Any]:
        deployment = {"id": str(uuid.uuid4()), "work_queue_name": "default", "job_variables": {}, **body}
        self.deployments[deployment["id"]] = deployment
        return deployment

    def _create_run(self, deployment_id: str, body: Any) -> dict[str, Any]:
        deployment = _found(self.deployments, deployment_id)
        pool = self.pools[deployment["work_pool_name"]]
        queue = self._queue(pool["name"], deployment.get("work_queue_name") or "default")
        run_id = str(uuid.uuid4())
        run = {
            "id": run_id,
            "name": f"run-{run_id[:8]}",
            "flow_id": deployment["flow_id"],
            "deployment_id": deployment_id,
            "job_variables": body.get("job_variables") or {},
            "parameters": body.get("parameters") or {},
            "work_pool_id": pool["id"],
            "work_pool_name": pool["name"],
            "work_queue_id": queue["id"],
            "work_queue_name": queue["name"],
            "infrastructure_pid": None,
            "empirical_policy": {},
        }
        run |= {key: body[key] for key in ("name", "empirical_policy", "infrastructure_pid") if key in body}
        self.runs[run_id] = run
        self.states[run_id] = []
        self._write(run_id, body["state"])
        run["expected_start_time"] = run["next_scheduled_start_time"]
        return run

    def _write(self, run_id: str, state: Any) -> dict[str, Any]:
        with self._lock:
            run = _found(self.runs, run_id)
            details = dict(state.get("state_details") or {})
            if state["type"] == "PENDING" and not details.get("scheduled_time") and "state" in run:
                details["scheduled_time"] = run["state"]["state_details"].get("scheduled_time")
            if state["type"] == "SCHEDULED" and not details.get("scheduled_time"):
                details["scheduled_time"] = datetime.now(UTC).isoformat()
            written = {
                "id": str(uuid.uuid4()),
                "type": state["type"],
                "name": state.get("name") or state["type"].title(),
                "message": state.get("message"),
                "timestamp": datetime.now(UTC).isoformat(),
                "state_details": details,
            }
            run |= {"state": written, "state_type": written["type"], "state_name": written["name"]}
            scheduled = written["type"] == "SCHEDULED"
            run["next_scheduled_start_time"] = details.get("scheduled_time") if scheduled else None
            self.states[run_id].append(written)
            return written

    def _propose(self, run_id: str, state: Any, force: bool) -> dict[str, Any]:
        stands = self.runs[run_id]["state"]
        if self.honest and not force:
            refused = refusal(stands, state)
            if refused:
                return {"status": refused[0], "state": stands, "details": {"reason": refused[1]}}
        return {"status": "ACCEPT", "state": self._write(run_id, state), "details": {}}

    def _bulk(self, body: Any) -> dict[str, Any]:
        wanted = body["flow_runs"]
        if not self.honest:
            wanted = {"id": wanted["id"]}  # lawless: whatever state it is in
        runs = [run for run in self.runs.values() if matches(run, wanted)]
        force = bool(body.get("force"))
        return {
            "results": [{"flow_run_id": run["id"], **self._propose(run["id"], body["state"], force)} for run in runs]
        }

    def _scheduled(self, pool: str, body: Any) -> list[dict[str, Any]]:
        found = _found(self.pools, pool)
        names = body.get("work_queue_names")
        before = instant(body.get("scheduled_before")) or datetime.max.replace(tzinfo=UTC)
        runs = [
            run
            for run in self.runs.values()
            if run["work_pool_name"] == pool
            and not found["is_paused"]
            and run["state"]["type"] == "SCHEDULED"
            and (run["empirical_policy"] or {}).get("retry_type") != "in_process"
            and (not names or run["work_queue_name"] in names)
            and (instant(run["next_scheduled_start_time"]) or before) <= before
            and not self.queues[run["work_queue_id"]]["is_paused"]
        ]
        runs.sort(key=lambda run: str(run["next_scheduled_start_time"]))
        # as the real one: each queue cut to its own room by time, then all to the pool's by priority, then by the limit
        shown: list[dict[str, Any]] = []
        for queue in sorted(self.queues.values(), key=lambda queue: queue["priority"]):
            mine = [run for run in runs if run["work_queue_id"] == queue["id"]]
            shown += mine[: self._room(queue, "work_queue_id")]
        shown = shown[: self._room(found, "work_pool_id")]
        return [
            {"work_pool_id": found["id"], "work_queue_id": run["work_queue_id"], "flow_run": run}
            for run in shown[: body.get("limit") or 200]
        ]

    def _room(self, owner: Mapping[str, Any], key: str) -> int | None:
        """How many more runs the limit of a pool or queue lets start; None = any number."""
        if owner.get("concurrency_limit") is None:
            return None
        busy = [run for run in self.runs.values() if run[key] == owner["id"] and run["state_type"] in _BUSY]
        return max(0, int(owner["concurrency_limit"]) - len(busy))

    def _filter(self, body: Any) -> list[dict[str, Any]]:
        pools = ((body.get("work_pools") or {}).get("name") or {}).get("any_")
        queues = ((body.get("work_pool_queues") or {}).get("name") or {}).get("any_")
        return [
            run
            for run in self.runs.values()
            if matches(run, body.get("flow_runs") or {})
            and (pools is None or run["work_pool_name"] in pools)
            and (queues is None or run["work_queue_name"] in queues)
        ]

    def _beat(self, pool: str, body: Any) -> None:
        _found(self.pools, pool)
        self.workers[f"{pool}/{body['name']}"] += 1

    def _sign_off(self, pool: str, name: str) -> None:
        if not self.workers.pop(f"{unquote(pool)}/{unquote(name)}", 0):
            raise HttpError(404, "no such worker")

    def _csrf_token(self, path: str) -> dict[str, Any]:
        if not self.csrf:
            raise HttpError(422, "CSRF protection is disabled.")
        return {"token": "token of " + path.rpartition("=")[2]}


def _found(table: Mapping[str, Any], key: str) -> Any:
    if key not in table:
        raise HttpError(404, f"{key} not found")
    return table[key]


def _null_aborts(run_ids: list[str]) -> dict[str, Any]:
    details = {"reason": "database is locked"}
    return {"results": [{"flow_run_id": i, "status": "ABORT", "state": None, "details": details} for i in run_ids]}


_NAME = r"([^/]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/health", lambda api, _, __: True),
    ("GET", "/admin/version", lambda api, _, __: "3.8.8"),
    ("POST", "/work_pools/", lambda api, body, _: api._create_pool(body)),
    ("GET", f"/work_pools/{_NAME}", lambda api, name, _, __: _found(api.pools, name)),
    ("PATCH", f"/work_pools/{_NAME}", lambda api, name, body, _: _found(api.pools, name).update(body)),
    (
        "POST",
        f"/work_pools/{_NAME}/queues/filter",
        lambda api, name, _, __: [queue for queue in api.queues.values() if queue["work_pool_name"] == name],
    ),
    ("POST", f"/work_pools/{_NAME}/queues", lambda api, name, body, _: api._create_queue(name, body)),
    ("POST", f"/work_pools/{_NAME}/workers/heartbeat", lambda api, name, body, _: api._beat(name, body)),
    ("DELETE", f"/work_pools/{_NAME}/workers/{_NAME}", lambda api, pool, name, _, __: api._sign_off(pool, name)),
    ("POST", f"/work_pools/{_NAME}/get_scheduled_flow_runs", lambda api, name, body, _: api._scheduled(name, body)),
    ("POST", "/flows/", lambda api, body, _: api._flow(body["name"])),
    ("GET", f"/flows/{_NAME}", lambda api, key, _, __: _found(api.flows, key)),
    ("POST", "/deployments/", lambda api, body, _: api._create_deployment(body)),
    ("GET", f"/deployments/{_NAME}", lambda api, key, _, __: _found(api.deployments, key)),
    ("POST", f"/deployments/{_NAME}/create_flow_run", lambda api, key, body, _: api._create_run(key, body)),
    ("GET", f"/variables/name/{_NAME}", lambda api, name, _, __: {"value": _found(api.variables, name)}),
    ("POST", "/flow_runs/filter", lambda api, body, _: api._filter(body)[: body.get("limit") or 200]),
    ("POST", "/flow_runs/count", lambda api, body, _: len(api._filter(body))),
    ("POST", "/flow_runs/bulk_set_state", lambda api, body, _: api._bulk(body)),
    (
        "POST",
        f"/flow_runs/{_NAME}/set_state",
        lambda api, key, body, _: api._propose(_found(api.runs, key)["id"], body["state"], bool(body.get("force"))),
    ),
    ("GET", f"/flow_runs/{_NAME}", lambda api, key, _, __: _found(api.runs, key)),
    ("PATCH", f"/flow_runs/{_NAME}", lambda api, key, body, _: _found(api.runs, key).update(body)),
    ("DELETE", f"/flow_runs/{_NAME}", lambda api, key, _, __: api.runs.pop(_found(api.runs, key)["id"]) and None),
    ("GET", "/flow_run_states/", lambda api, _, path: api.states.get(path.rpartition("=")[2], [])),
    ("POST", "/logs/", lambda api, body, _: api.logs.extend(body)),
    (
        "POST",
        "/logs/filter",
        lambda api, body, _: [line for line in api.logs if line["flow_run_id"] in body["logs"]["flow_run_id"]["any_"]],
    ),
    ("GET", "/csrf-token", lambda api, _, path: api._csrf_token(path)),
]
