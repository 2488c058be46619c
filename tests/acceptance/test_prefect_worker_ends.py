"""Each way a run can end, under a stock `prefect worker` and under ours: its states, its hooks, what is left of it."""

import contextlib
import re
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from tests import processes
from tests.acceptance.test_cancels import cancel, child_of
from tests.acceptance.test_documents import MAP, rows_of
from tests.needs import need
from tests.run_oracle import ENDS, wrong
from tests.waiting import until
from tests.world import BIN, World

HEADING = "How a run ends"
STOCK, OURS = "prefect worker", "flowfleet"
STATES, HOOKS, LEFT = "states after Running", "hooks", "processes left"

#: so many runs are about to begin
AT_ONCE = 4

Facts = Mapping[str, str]
#: worker → way to end → id
Runs = dict[str, dict[str, str]]
#: end → what of it → under the stock worker, under ours
Differences = dict[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True)
class End:
    """The body of a flow, and what is done to its run once that has begun; by whose process, the flow notes."""

    body: str
    act: Callable[[World, str, int], None] = lambda _fleet, _run, _pid: None
    begins: str = "def go():"
    #: what the flow notes when it is ready for that
    ready: str = "ran"
    #: further options of the flow
    options: str = ""

    def source(self) -> str:
        """The text of a flow whose hooks count themselves, by the state that they are given."""
        return f"""
def hook(kind):
    def count(flow, flow_run, state):
        note(f"on_{{kind}}:{{state.name}}")
    return count

@flow(**{{f"on_{{kind}}": [hook(kind)] for kind in ("completion", "failure", "crashed", "cancellation")}}{self.options})
{self.begins}
    note("ran")
{self.body}"""


def cancelled(body: str, **facts: str) -> End:
    """An end by a user's cancel."""
    return End(body, lambda fleet, run, _pid: cancel(fleet, run), **facts)


def cancelled_in(state: str, body: str, **facts: str) -> End:
    """The same, once the API shows that the run waits in this state."""

    def act(fleet: World, run: str, _pid: int) -> None:
        fleet.wait_state(run, state, seconds=60)
        cancel(fleet, run)

    return End(body, act, **facts)


def killed(number: signal.Signals) -> End:
    """An end by a signal for the engine, from somebody else."""
    return End("    time.sleep(600)", lambda _fleet, _run, pid: processes.kill(pid, number))


#: the words are those of the table in the documents
WAYS = {
    "completes": End("    pass"),
    "raises": End("    raise ValueError('no')"),
    "sys.exit(3)": End("    sys.exit(3)"),
    "os._exit(4)": End("    os._exit(4)"),
    "os._exit(0)": End("    os._exit(0)"),
    "kill -9": killed(signal.SIGKILL),
    "kill -TERM": killed(signal.SIGTERM),
    "cancel": cancelled("    time.sleep(600)"),
    "cancel of an async flow": cancelled("    import asyncio; await asyncio.sleep(600)", begins="async def go():"),
    "cancel that is swallowed": cancelled("""
    while True:
        try:
            time.sleep(600)
        except BaseException:
            note("swallowed")
"""),
    "cancel with TERM blocked": cancelled(
        """
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    note("ready")
    time.sleep(600)
""",
        ready="ready",
    ),
    "cancel with TERM ignored": cancelled(
        """
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("ready")
    time.sleep(600)
""",
        ready="ready",
    ),
    "cancel of a paused flow": cancelled_in(
        "Paused", "    from prefect.flow_runs import pause_flow_run; pause_flow_run(timeout=600)"
    ),
    "cancel of a suspended flow": cancelled_in(
        "Suspended", "    from prefect.flow_runs import suspend_flow_run; suspend_flow_run(timeout=600)"
    ),
    "cancel of a flow that awaits its retry": cancelled_in(
        "AwaitingRetry", "    raise ValueError('no')", options=", retries=1, retry_delay_seconds=600"
    ),
    "cancel with a child in a session of its own": cancelled(
        """
    import subprocess
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    note(f"child-{child.pid}")
    note("ready")
    time.sleep(600)
""",
        ready="ready",
    ),
}


@pytest.fixture
def pools(fleet):
    """A stock worker and ours, each with a pool of its own, with room for all ends at once."""
    need((BIN / "prefect").exists(), "prefect: install the extra demo")
    fleet.start_poller()
    fleet.start_worker(slots=len(WAYS))
    stock = f"{fleet.pool}-stock"
    argv = [str(BIN / "prefect"), "worker", "start", "--pool", stock, "--type", "process", "--name", "worker"]
    env = {name: None for name in fleet.environment() if name.startswith("FLOWFLEET_")}
    part = fleet.part("stock", argv, env={**env, "PREFECT_WORKER_QUERY_SECONDS": "2"})
    until(lambda: fleet.api.pool(stock), 90, "the pool of the stock worker", pause=0.3)
    yield {STOCK: stock, OURS: fleet.pool}
    # it takes no TERM where the tests were started without a terminal
    part.kill()


def living(fleet: World, run: str) -> set[int]:
    """The processes of a run, its hooks' too, that live by what they have noted."""
    pids = {int(note[1]) for note in fleet.notes(run)}
    pids |= {int(word[len("child-") :]) for word in fleet.words(run) if word.startswith("child-")}
    return {pid for pid in pids if processes.alive(pid)}


def facts(fleet: World, run: str) -> Facts:
    """What is to be seen of the end of a run."""
    history = fleet.api.history(run)
    after = history[history.index("Running") + 1 :] if "Running" in history else history
    hooks = Counter(tuple(word.split(":")) for word in fleet.words(run) if word.startswith("on_"))
    told = [f"{times} {name} ({state})" for (name, state), times in sorted(hooks.items())]
    return {
        STATES: ", ".join(after) or "none",
        HOOKS: ", ".join(told) or "none",
        LEFT: str(len(living(fleet, run))),
    }


def documented(*, older: bool) -> Differences:
    """The differences that the documents name; with those of older engines, whose rows name a version, or without."""
    found = {}
    for end, what, theirs, ours, *_ in rows_of(MAP, HEADING):
        name, version = re.fullmatch(r"`?(.+?)`?( in 3\.[\d.]+)?", end).groups()
        assert name in WAYS, f"no such end: {name}"
        if older or version is None:
            found[name, what] = (theirs, ours)
    return found


def table(seen: Mapping[str, Mapping[str, Facts]]) -> str:
    """For people: a line for each end and worker."""
    lines = ["{:14}  {:37}  {:31}  {}".format("", STATES, HOOKS, "left")]
    for name in WAYS:
        lines.append(name)
        for who, by_name in seen.items():
            lines.append("{:14}  {:37}  {:31}  {}".format(who, *by_name[name].values()))
    return "\n".join(lines)


def begin(fleet: World, pools: Mapping[str, str]) -> Runs:
    """All runs, each brought to its end; their ids by worker and way."""
    # ours first: a stock worker is slow where others write, since SQLite answers it by 503 then
    deployments = {
        (who, name): fleet.deploy(end.source(), pool=pools[who]) for who in (OURS, STOCK) for name, end in WAYS.items()
    }
    waiting, going = list(deployments), dict[tuple[str, str], str]()
    runs: Runs = {who: {} for who in pools}

    def step() -> bool:
        for key, run in list(going.items()):
            who, name = key
            ready = next((note for note in fleet.notes(run) if note[0] == WAYS[name].ready), None)
            if ready is not None:
                WAYS[name].act(fleet, run, int(ready[1]))
                runs[who][name] = going.pop(key)
            elif who == STOCK and fleet.api.state(run)["type"] == "CRASHED" and not fleet.notes(run):
                # "database is locked" of SQLite, at a write that a stock worker does not give up
                going[key] = fleet.create_run(deployments[key])
        while waiting and len(going) < AT_ONCE:
            key = waiting.pop(0)
            going[key] = fleet.create_run(deployments[key])
        return not going

    until(step, 300, "all runs to begin", pause=1)
    return runs


def settle(fleet: World, runs: Runs) -> dict[str, dict[str, Facts]]:
    """What is to be seen of all ends once both workers are done with them; nothing lives afterwards."""

    def look(who: str) -> dict[str, Facts]:
        return {name: facts(fleet, run) for name, run in runs[who].items()}

    for run in runs[OURS].values():
        fleet.wait_state(run, *ENDS, seconds=180)
    fleet.wait_empty(120)
    until(lambda: not any(living(fleet, run) for run in runs[OURS].values()), 10, "the end of all processes of ours")
    rows, ours = documented(older=False), look(OURS)
    expected = {
        name: {what: rows.get((name, what), (value,))[0] for what, value in ours[name].items()} for name in WAYS
    }
    with contextlib.suppress(AssertionError):  # then the differences say more
        until(lambda: look(STOCK) == expected, 120, "the stock worker to be done", pause=3)
    seen = {who: look(who) for who in runs}
    for run in runs[STOCK].values():
        for pid in living(fleet, run):
            processes.kill(pid)
    return seen


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_each_end_is_told_as_by_a_stock_worker_with_the_same_hooks_but_for_what_the_map_says(fleet, pools):
    runs = begin(fleet, pools)
    seen = settle(fleet, runs)
    print(table(seen))

    for run in runs[OURS].values():
        assert wrong(run, fleet.notes(run), fleet.api.history(run)) == []
    once = re.compile(r"none|1 \w+ \(\w+\)")
    assert {name: told[HOOKS] for name, told in seen[OURS].items() if not once.fullmatch(told[HOOKS])} == {}
    assert {name: told[LEFT] for name, told in seen[OURS].items() if told[LEFT] != "0"} == {}
    counts = fleet.status()["counts"]
    assert (counts["free_slots"], counts["outbox"]) == (len(WAYS), 0)

    differences = {
        (name, what): (theirs, seen[OURS][name][what])
        for name in WAYS
        for what, theirs in seen[STOCK][name].items()
        if theirs != seen[OURS][name][what]
    }
    assert differences.items() <= documented(older=True).items(), "a difference has no row in the documents"
    assert documented(older=False).items() <= differences.items(), "a row in the documents is not true any more"


@pytest.mark.stress
@pytest.mark.timeout(1200)
def test_a_cancelled_parent_and_the_run_of_a_deployment_that_it_waits_for_end_as_under_a_stock_worker(fleet, pools):
    sleeps, waits = cancelled("    time.sleep(600)").source(), cancelled(
        "    from uuid import UUID; from prefect.deployments import run_deployment\n"
        "    run_deployment(UUID(child), poll_interval=1)",
        begins="def go(child):",
    ).source()  # fmt: skip
    seen: dict[str, list[Facts]] = {}
    for who, pool in pools.items():
        child = fleet.deploy(sleeps, pool=pool)
        parent = fleet.create_run(fleet.deploy(waits, pool=pool), {"child": child})
        both = (parent, child_of(fleet, child))
        cancel(fleet, parent)
        for run in both:
            fleet.wait_state(run, "Cancelled", seconds=180)
        until(lambda both=both: not any(living(fleet, run) for run in both), 60, "all processes to be gone")
        seen[who] = [facts(fleet, run) for run in both]
    print(seen)
    assert seen[OURS] == seen[STOCK]
    assert seen[OURS] == [{STATES: "Cancelling, Cancelled", HOOKS: "1 on_cancellation (Cancelling)", LEFT: "0"}] * 2
