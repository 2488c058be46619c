"""Engines forked from the warm parent, by the programs that users start, beside engines that were executed."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import folders
from tests.prefect1_env import FLOWS
from tests.prefect1_world import World1
from tests.waiting import until

WARM, COLD = "flowfleet-warm", "flowfleet-fork"


class Both:
    """One worker that starts its runs warm, and one that does not."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.world = World1(folder, redis_url)
        self.folder = folder
        self.flow = self.world.real.register("inside", labels=["any"], script=True)["inside"]
        self.world.start_poller()
        self.warm = self.world.start_worker("forks", "any", "forked", slots=1, options=["--nice", "2"])
        self.cold = self.world.start_worker(
            "executes", "any", "executed", slots=1, options=["--no-warm-start", "--nice", "2"]
        )
        until(lambda: "warm parent" in self.warm.text(), 60, "the warm parent")

    def look(self, label: str, *, spawn: bool = False, **config: Any) -> dict[str, Any]:
        """What an engine there says of itself."""
        out = self.folder / f"{label}.json"
        for old in self.folder.glob(f"{out.name}*"):
            old.unlink()
        run_id = self.world.create_run(
            self.flow,
            labels=["any", label],
            parameters={"out": str(out), "spawn": spawn},
            run_config={**config, "labels": ["any", label]} if config else None,
        )
        assert self.world.wait_end(run_id) == "Success", self.world.lines(run_id)
        self.world.wait_empty()
        told: dict[str, Any] = json.loads(out.read_text())
        claim = told["seen"]["environ"]["FLOWFLEET_CLAIM"]
        (log,) = folders.found(self.folder, f"**/runs/{run_id}.{claim}/log")
        # the order of independent tasks is chance, and how often it looks for a cancel is a matter of its speed
        lines = re.sub(r"\d\d:\d\d:\d\d\+0000", "TIME", log.read_text()).splitlines()
        told["log"] = sorted(line for line in lines if not line.endswith("Checking flow run state..."))
        told["left"] = {one.name.removeprefix(out.name): one.read_text() for one in self.folder.glob(f"{out.name}.*")}
        words = {run_id: "RUN", claim: "CLAIM", label: "LABEL", "forks": "WORKER", "executes": "WORKER"}
        plain = json.dumps(told)
        for word, stands in words.items():
            plain = plain.replace(word, stands)
        return {**json.loads(plain), "run": run_id}

    def forked(self, **config: Any) -> dict[str, Any]:
        """The same of one that began warm: a parent that stalls for long is gone for the next run."""
        for _ in range(3):
            told = self.look("forked", **config)
            gone = self.warm.text().count("warm parent is loaded again")
            if told["by"] == WARM or not gone:
                break
            until(lambda gone=gone: self.warm.text().count('program="warm parent"') > gone, 60, "a new warm parent")
        return told

    def heard(self, run_id: str) -> list[str]:
        """The run's log page, without what cannot be the same twice: our own line comes when it comes."""
        until(lambda: any("PID: " in line for line in self.world.lines(run_id)), 30, "the worker's line")
        return sorted(re.sub(r"PID: \d+", "PID", line) for line in self.world.lines(run_id))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, valkey: Any) -> Iterator[Both]:
    made = Both(tmp_path_factory.mktemp("both"), valkey.tcp_url)
    try:
        yield made
    finally:
        made.world.close()


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two answers differ, each with what stands there."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted({*one, *other})
        return [found for name in names for found in differences(one.get(name), other.get(name), f"{place}.{name}")]
    return [] if one == other else [f"{place}: {one!r} is not {other!r}"]


ODD = {
    "env": {
        "PREFECT__LOGGING__LEVEL": "DEBUG",
        "PREFECT__LOGGING__FORMAT": "odd | %(levelname)s | %(message)s",
        "PREFECT__LOGGING__EXTRA_LOGGERS": "['odd.logger']",
        "PREFECT__CONTEXT__SECRETS__WORD": "open sesame",
        "PREFECT__CLOUD__HEARTBEAT_MODE": "process",
        "PREFECT__CLOUD__SEND_FLOW_RUN_LOGS": "false",
        "PREFECT__FLOWS__CHECKPOINTING": "true",
        "FLOWFLEET_NICE": "5",
        "FROM_THE_RUN": "grüße\n=two lines",
        "TMPDIR": "/tmp/",
        "PYTHONPATH": f"/no/such/folder:{FLOWS}::/tmp",
    }
}


@pytest.mark.parametrize("config", [{}, ODD, {"working_dir": str(FLOWS)}], ids=["plain", "odd", "working-dir"])
def test_the_one_engine_is_what_the_other_is(both, config):
    warm, cold = both.forked(spawn=not config, **config), both.look("executed", spawn=not config, **config)

    assert (warm["by"], cold["by"]) == (WARM, COLD)
    assert sorted(warm["seen"]) == sorted(cold["seen"])
    assert "\n".join(differences(warm["seen"], cold["seen"])) == ""
    assert warm["seen"]["nice"] == os.nice(0) + int(config.get("env", {}).get("FLOWFLEET_NICE", 2))
    assert warm["left"] == cold["left"] == {".late": "finalized\n", ".atexit": "done"}
    assert warm["log"] == cold["log"]
    assert both.heard(warm["run"]) == both.heard(cold["run"])
    assert both.world.api.history(warm["run"]) == both.world.api.history(cold["run"])
