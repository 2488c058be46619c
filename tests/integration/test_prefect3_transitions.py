"""Transitions: every state of a Prefect 3 run, every write of ours, at a real server: who wins, and what stands then.

A cell says what became of the write, and the state behind it:

- `wrote` the server has taken it
- `stood` it stood there already: a repeat is as good as the first
- `kept` we looked, and sent nothing
- `missed` we sent it, and its filter met no run
- `refused` we sent it, and the server has said no
"""

import re
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flowfleet.api.client import Answer, Mark, StateType, Verdict
from flowfleet.flow_run import FlowRun, Route, claim_id
from tests.integration.claiming import ago
from tests.integration.one_pool import MARK, OnePool
from tests.waiting import until

THEIRS = Mark(fleet="neighbour", worker="worker@there")
ENDS = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Life:
    """One run at the server, and what has happened to it so far; each step is seen to be taken."""

    def __init__(self, pool: OnePool, deployment: str) -> None:
        self.pool = pool
        self.client = pool.client
        self.due = ago(2)
        self.run_id = pool.scheduled(deployment, self.due)
        #: ours, also where we have not claimed it
        self.call = str(uuid.uuid4())

    @property
    def claim(self) -> str:
        return claim_id(self.call, self.run_id)

    @property
    def stands(self) -> dict[str, Any]:
        return self.pool.state(self.run_id)

    def be(self, kind: str, name: str | None = None, status: str = "ACCEPT", **more: Any) -> "Life":
        """A state as an engine, a user or the server's own services write it."""
        details = {key: more.pop(key) for key in list(more) if key != "data"}
        state = {"type": kind, "name": name, "state_details": details, **more}
        answer = self.pool.call("POST", f"/flow_runs/{self.run_id}/set_state", {"state": state, "force": False})
        assert answer["status"] == status, answer
        return self

    def listed(self) -> FlowRun:
        """The run as the API hands it out, or, where it does not, as it did before: a claim by an old list."""
        found = [run for run in self.pool.due() if run.run_id == self.run_id]
        route = Route("prefect3", self.pool.offer.pool_ids[0], "default")
        return found[0] if found else FlowRun(run_id=self.run_id, name="run", route=route, due=self.due)

    def claimed(self, call: str, mark: Mark = MARK) -> "Life":
        answer = self.client.claims.claim([self.listed()], call, mark)[self.run_id]
        assert answer.verdict is Verdict.ACCEPTED, answer
        return self

    def submitted(self) -> "Life":
        return self.claimed(self.call)

    def launching(self, call: str | None = None) -> "Life":
        claims, call = self.client.claims, call or self.call
        answer = claims.launching(self.run_id, call, claim_id(call, self.run_id), MARK)
        assert answer.verdict is Verdict.ACCEPTED, answer
        claims.started(self.run_id, MARK, 4711)
        return self

    def running(self) -> "Life":
        return self.submitted().launching().be("RUNNING")

    def handed_back(self) -> "Life":
        answer = self.client.ends.hand_back(self.run_id, self.call, self.due, MARK, "drill", never_began=True)
        assert answer.verdict is Verdict.ACCEPTED, answer
        return self

    def retrying(self) -> "Life":
        """The engine wants Failed, and the server says AwaitingRetry: the retry is that process' own."""
        self.running()
        self.pool.call("PATCH", f"/flow_runs/{self.run_id}", {"empirical_policy": {"retries": 3, "retry_delay": 0}})
        return self.be("FAILED", status="REJECT")

    def paused(self, name: str | None = None, *, leaves: bool) -> "Life":
        late = ago(-600).isoformat()
        return self.running().be("PAUSED", name, pause_timeout=late, pause_key="k", pause_reschedule=leaves)

    def resumed(self) -> "Life":
        self.paused("Suspended", leaves=True)
        self.pool.call("POST", f"/flow_runs/{self.run_id}/resume", {})
        return self

    def late(self) -> "Life":
        return self.be("SCHEDULED", "Late", scheduled_time=self.due.isoformat())

    def theirs(self, *, launched: bool = False) -> "Life":
        """We have handed it back, and another fleet has claimed it since."""
        call = str(uuid.uuid4())
        self.submitted().handed_back()
        self.client = self.pool.another_client()
        self.claimed(call, THEIRS)
        return self.launching(call) if launched else self

    def ended_by_us(self) -> "Life":
        answer = WRITES["crashed"](self.running())
        assert answer.verdict is Verdict.ACCEPTED, answer
        return self

    def started_again(self) -> "Life":
        answer = WRITES["run again"](self.running())
        assert answer.verdict is Verdict.ACCEPTED, answer
        return self

    def deleted(self) -> "Life":
        self.submitted()
        self.pool.call("DELETE", f"/flow_runs/{self.run_id}")
        return self


def report(kind: StateType) -> Callable[[Life], Answer]:
    return lambda life: life.client.ends.report(life.run_id, kind, "its process is gone", MARK, claim=life.claim)


def hand_back(life: Life, *, never_began: bool) -> Answer:
    ends = life.client.ends
    return ends.hand_back(life.run_id, life.call, life.due, MARK, "drill", never_began=never_began)


#: whatever flowfleet writes
WRITES: dict[str, Callable[[Life], Answer]] = {
    "claim": lambda life: life.client.claims.claim([life.listed()], str(uuid.uuid4()), MARK)[life.run_id],
    "launch": lambda life: life.client.claims.launching(life.run_id, life.call, life.claim, MARK),
    "hand back": lambda life: hand_back(life, never_began=False),
    "hand back unbegun": lambda life: hand_back(life, never_began=True),
    "crashed": report(StateType.CRASHED),
    "cancelled": report(StateType.CANCELLED),
    "cancel": lambda life: life.client.orders.cancel(life.run_id, "a person asks"),
    "restart": lambda life: life.client.orders.restart(life.run_id, "a person asks", MARK),
    "run again": lambda life: life.client.ends.run_again(life.run_id, life.claim, "its host is lost", MARK),
}


Cells = dict[str, str]
#: a run that waits for its time, and has no process; with a mark of an earlier process it does not end at once
UNMARKED: Cells = {"claim": "wrote Submitted", "restart": "wrote Scheduled", "cancel": "wrote Cancelled"}
MARKED: Cells = {**UNMARKED, "cancel": "wrote Cancelling"}
#: a process of ours may be there
STOPS: Cells = {"crashed": "wrote Crashed", "cancelled": "wrote Cancelled", "cancel": "wrote Cancelling"}
BEGUN: Cells = {**STOPS, "run again": "wrote Scheduled"}
#: one of somebody else
OTHERS: Cells = {"cancel": "wrote Cancelling"}
ENDED: Cells = {"restart": "wrote Scheduled"}
RESULT = {"type": "reference", "storage_key": "k"}

#: each state: how a run comes to it, and the cells in which a write of ours does not simply leave it as it is
ROWS: dict[str, tuple[Callable[[Life], object], Cells]] = {
    "Scheduled": (lambda life: life, UNMARKED),
    "Late": (Life.late, UNMARKED),
    "AwaitingConcurrencySlot": (lambda life: life.be("SCHEDULED", "AwaitingConcurrencySlot"), UNMARKED),
    "Scheduled, handed back": (
        lambda life: life.submitted().launching().handed_back(),
        {**UNMARKED, "hand back": "stood Scheduled", "hand back unbegun": "stood Scheduled"},
    ),
    "Scheduled, started again": (Life.started_again, {**UNMARKED, "run again": "stood Scheduled"}),
    "Resuming": (Life.resumed, UNMARKED),
    "AwaitingRetry, of a user": (lambda life: life.running().be("CRASHED").be("SCHEDULED", "AwaitingRetry"), MARKED),
    "AwaitingRetry, in its process": (Life.retrying, BEGUN),
    "Pending, of a stock worker": (lambda life: life.submitted().handed_back().be("PENDING"), OTHERS),
    "Submitted": (
        Life.submitted,
        {
            **BEGUN,
            "launch": "wrote Launching",
            "hand back": "wrote Scheduled",
            "hand back unbegun": "wrote Scheduled",
        },
    ),
    "Submitted, by another fleet": (Life.theirs, OTHERS),
    "Launching": (
        lambda life: life.submitted().launching(),
        {**BEGUN, "launch": "stood Launching", "hand back unbegun": "wrote Scheduled"},
    ),
    "Launching, by another fleet": (lambda life: life.theirs(launched=True), OTHERS),
    "Submitting": (lambda life: life.submitted().launching().be("PENDING", "Submitting"), BEGUN),
    "InfrastructurePending": (lambda life: life.submitted().launching().be("PENDING", "InfrastructurePending"), BEGUN),
    "Running": (Life.running, BEGUN),
    "Retrying": (lambda life: life.retrying().be("RUNNING", "Retrying"), BEGUN),
    "Running, of another fleet": (lambda life: life.theirs(launched=True).be("RUNNING"), OTHERS),
    "Paused": (lambda life: life.paused(leaves=False), BEGUN),
    "Suspended": (lambda life: life.paused("Suspended", leaves=True), {"cancel": "wrote Cancelled"}),
    "Cancelling": (
        lambda life: life.running().be("CANCELLING"),
        {"crashed": "refused Cancelling", "cancelled": "wrote Cancelled", "cancel": "stood Cancelling"},
    ),
    "Cancelled": (lambda life: life.running().be("CANCELLED"), {**ENDED, "cancel": "stood Cancelled"}),
    "Completed": (lambda life: life.running().be("COMPLETED"), ENDED),
    "Completed, with a stored result": (
        lambda life: life.running().be("COMPLETED", data=RESULT),
        {"restart": "refused Completed"},
    ),
    "Cached": (lambda life: life.running().be("COMPLETED", "Cached"), ENDED),
    "RolledBack": (lambda life: life.running().be("COMPLETED", "RolledBack"), ENDED),
    "Failed": (lambda life: life.running().be("FAILED"), ENDED),
    "TimedOut": (lambda life: life.running().be("FAILED", "TimedOut"), ENDED),
    "Crashed": (lambda life: life.running().be("CRASHED"), ENDED),
    "Crashed, told by us": (Life.ended_by_us, {**ENDED, "crashed": "stood Crashed"}),
    "deleted": (Life.deleted, {}),
}
#: those in which the most can go wrong; the others only by `make stress` and `make newest`
IN_CI = {
    *("Late", "AwaitingRetry, in its process", "Submitted", "Launching, by another fleet", "Retrying"),
    *("Suspended", "Cancelling", "Completed"),
}


def shown(state: dict[str, Any] | None) -> str:
    """The name of a state; Late counts as Scheduled, since a server makes a run Late at any time."""
    return "deleted" if state is None else state["name"].replace("Late", "Scheduled")


class Cell:
    """One write at one run: what it met, what became of it, and what stands there now."""

    def __init__(self, life: Life, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write = write
        self.run_before = look(life)
        self.before = self.run_before.get("state")
        # a process of its own, which has not just read anything
        life.client = life.pool.another_client()
        fence = life.client.claims.fence
        sent: list[bool] = []

        def bulk(*args: Any, **how: Any) -> Any:
            results = type(fence).bulk(fence, *args, **how)
            sent.append(bool(results))
            return results

        def settled() -> Answer | None:
            # as all our callers do: no definite answer is asked for again
            sent.clear()
            answer = WRITES[write](life)
            return None if answer.verdict is Verdict.UNSURE else answer

        with monkeypatch.context() as patch:
            patch.setattr(fence, "bulk", bulk)
            answer = until(settled, 30, f"a definite answer to {write}")
        self.run_after = look(life)
        self.after = self.run_after.get("state")
        if answer.verdict is Verdict.ACCEPTED:
            word = "wrote" if sent else "stood"
        else:
            word = "kept" if not sent else "refused" if sent[-1] else "missed"
        self.told = f"{word} {shown(self.after)}"

    @property
    def untouched(self) -> bool:
        """Whether the run is in all what it was."""
        kept = ("state", "infrastructure_pid", "empirical_policy")
        return [self.run_before.get(name) for name in kept] == [self.run_after.get(name) for name in kept]

    @property
    def changed(self) -> bool:
        """Whether another state stands there; the server of the tests makes no run Late by itself."""
        if self.before is None or self.after is None:
            return self.before is not self.after
        return bool(self.before["id"] != self.after["id"])

    def broken_laws(self) -> list[str]:
        """What holds whatever the table says."""
        kind, name = (self.before["type"], self.before["name"]) if self.before else ("", "")
        laws = {
            "an end is written over": self.changed and kind in ENDS and self.write != "restart",
            "a claim of what does not wait": self.changed and self.write == "claim" and kind != "SCHEDULED",
            "a launch of what was not claimed": self.changed and self.write == "launch" and name != "Submitted",
            "a cancel is forgotten": self.changed and kind == "CANCELLING" and shown(self.after) != "Cancelled",
            "a no that has written": self.changed and not self.told.startswith("wrote "),
            "a yes that has not": not self.changed and self.told.startswith("wrote "),
        }
        return [f"{self.write}: {law}" for law, broken in laws.items() if broken]


def look(life: Life) -> dict[str, Any]:
    """The run, empty where there is none any more."""
    found = life.pool.call("POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": [life.run_id]}}})
    return dict(found[0]) if found else {}


@pytest.mark.parametrize(
    "state", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.stress) for name in ROWS]
)
def test_each_write_of_ours_does_to_a_state_what_the_table_says(pool, monkeypatch, state):
    make, cells = ROWS[state]
    deployment = pool.deployment()
    found, broken, life = {}, [], None
    for write in WRITES:
        if life is None:
            life = Life(pool, deployment)
            make(life)
        cell = Cell(life, write, monkeypatch)
        if not cell.untouched:
            life = None
        found[write] = cell.told
        broken += cell.broken_laws()
        stands = shown(cell.before)
    assert not broken
    unchanged = {write: f"{'missed' if write == 'claim' else 'kept'} {stands}" for write in WRITES}
    assert found == {**unchanged, **cells}


def test_the_table_has_each_state_that_the_server_knows_by_name():
    """A newer Prefect may have more of them."""
    spec = find_spec("prefect")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "server/schemas/states.py").read_text()
    names = set(re.findall(r'\bname="(\w+)"', source)) | {
        kind.title() for kind in re.findall(r"\btype=StateType\.(\w+)", source)
    }
    assert len(names) >= 15, "the page is written otherwise now"
    assert names <= {name.partition(",")[0] for name in ROWS}
    assert set(ROWS) >= IN_CI
