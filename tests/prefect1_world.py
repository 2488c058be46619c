"""World1: one fleet for one test on a Prefect 1 API of its own, with the real client and engine beside it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import tiny_engine
from tests.prefect1_api import Faults, Prefect1Api
from tests.prefect1_client import Prefect1Client
from tests.prefect1_env import python
from tests.waiting import SCALE, until
from tests.world import Part, World

ENDS = ("Success", "Failed", "Cancelled", "TriggerFailed")


class World1(World):
    """`start_poller()`, `start_worker("name", "label")`, `tiny_run("label")`, `wait_end(run)`."""

    def __init__(self, folder: Path, redis_url: str, *, faults: Faults | None = None) -> None:
        api = Prefect1Api(faults=faults).start()
        super().__init__(folder, api.url, redis_url)
        self.api = api
        settings = {"PREFECT__CLOUD__CHECK_CANCELLATION_INTERVAL": "0.5"}
        self.real = Prefect1Client(folder / "real", api.url, settings)
        (folder / "real").mkdir(exist_ok=True)
        #: ids of registered flows by name
        self.flows: dict[str, str] = {}
        self.env = {
            "FLOWFLEET_BACKEND": "prefect1",
            "FLOWFLEET_API": api.url,
            # what hangs is given up soon: tests wait for it
            "FLOWFLEET_API_READ_SECONDS": str(3 * SCALE),
            **settings,
            "PREFECT__HOME_DIR": str(folder / ".prefect"),
            "PREFECT__USER_CONFIG_PATH": str(folder / "no-config.toml"),
            "PYTHONWARNINGS": "ignore",
        }

    def start_worker(
        self,
        name: str = "worker",
        *labels: str,
        slots: int = 2,
        tiny: bool = False,
        options: Sequence[str] = (),
        **how: Any,
    ) -> Part:
        """A worker with just these labels, for the real engine or for the tiny one."""
        own = ["--name", name, "--slots", str(slots), "--no-hostname-label", "--python"]
        own.append(str(self.tiny_python() if tiny else python()))
        for label in labels:
            own += ["--label", label]
        return self.start("worker", name, [*own, *options], **how)

    def tiny_python(self) -> Path:
        """What a worker takes for an interpreter with prefect 1.4.1."""
        path = self.folder / "tiny" / "bin" / "python"
        if not path.exists():
            path.parent.mkdir(parents=True)
            path.write_text(
                f'#!/bin/sh\n[ "$1" = -c ] && echo 1.4.1 && exit 0\nexec {sys.executable} -I {tiny_engine.__file__}\n'
            )
            path.chmod(0o755)
        return path

    # runs

    def tiny_run(
        self, *labels: str, hold: bool = False, code: int = 0, env: dict[str, str] | None = None, **given: Any
    ) -> str:
        """A run whose engine is the tiny one."""
        flows = self.api.rows("flow", name="tiny")
        flow = str(flows[0]["id"]) if flows else self.api.add_flow("tiny")
        env = {**({"TINY_HOLD": "1"} if hold else {}), **({"TINY_EXIT": str(code)} if code else {}), **(env or {})}
        config = {"type": "LocalRun", "env": env, "labels": list(labels), "working_dir": None}
        run_id = str(self.api.add_run(flow, labels=labels, run_config=config, **given))
        self.runs.append(run_id)
        return run_id

    def held(self, code: int = 0, *labels: str) -> tuple[str, int]:
        """Such a run that stays till `release`, and its process, once the API has it as Running."""
        run_id = self.tiny_run(*labels, hold=True, code=code)
        return run_id, self.wait_held(run_id)

    def create_run(self, flow_id: str, **given: Any) -> str:
        """A run by the real client."""
        run_id = self.real.create_run(flow_id, **given)
        self.runs.append(run_id)
        return run_id

    def wait_state(self, run_id: str, *kinds: str, seconds: float = 60) -> str:
        """The type of the state, once it is one of these."""
        return until(
            lambda: state if (state := self.api.state(run_id)) in kinds else None,
            seconds,
            f"run {run_id} to be {' or '.join(kinds)}",
        )

    def wait_end(self, run_id: str, seconds: float = 60) -> str:
        """The type of its last state."""
        return self.wait_state(run_id, *ENDS, seconds=seconds)

    def message(self, run_id: str) -> str:
        """What the state that stands says."""
        return str(self.api.run(run_id)["state_message"])

    def lines(self, run_id: str) -> list[str]:
        """The messages on the run's log page."""
        return [str(line["message"]) for line in self.api.logs(run_id)]

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.real.close()
            self.api.stop()
