"""Container arena: a fleet whose worker starts the stub as containers of a real engine; else as in the other arenas.

The stub finds processes of its own run by their pids, so its containers share the host's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.chaos.arena import STUB, Arena
from tests.chaos.zygote import Zygote
from tests.container_engine import PYTHON, DockerEngine
from tests.world import MARK, Part

#: of the tests' image, which has this machine's own Python and not its virtual environments
INTERPRETER = Path(sys.executable).resolve()


class ContainerArena(Arena):
    """`worker()` starts containers, and `left()` names those that are still there."""

    def __init__(
        self, folder: Path, redis: tuple[str, int], zygote: Zygote, kind: str, server_url: str, *, engine: DockerEngine
    ) -> None:
        super().__init__(folder, redis, zygote, kind, server_url)
        self.engine = engine
        programs = folder / "programs"
        programs.mkdir()
        # what an image of flows has: the command of its Prefect, and a Python for hooks
        for name in ("prefect", "python"):
            (programs / name).write_text(f"#!/bin/sh\nexec {INTERPRETER} -I -S {STUB}\n")
            (programs / name).chmod(0o755)
        self.programs = programs

    def worker(self, name: str = "worker", *options: str, env: Any = None, slots: int = 4, wait: bool = False) -> Part:
        own = ["--name", name, "--slots", str(slots), "--stop-grace", "1", "--deploy", "docker"]
        own += ["--base-url", self.engine.url, "--allow-privileged"]
        for mounted in (f"{self.folder}:{self.folder}", f"{STUB.parent}:{STUB.parent}:ro"):
            own += ["--volume", mounted]
        for pair in (f"FFTEST_NOTES={self.notes_folder}", f"{MARK}={self.mark}", f"PATH={self.programs}:/bin"):
            own += ["--env", pair]
        own += ["--label", "x", "--no-hostname-label"] if self.of_prefect1 else ["--pool", self.pool]
        return self.start("worker", name, [*own, *options], env, wait=wait)

    def create(
        self, hold: str = "0", code: int = 0, *, engine: bool = False, deaf: bool = False, pulse: bool = False
    ) -> str:
        env = {"STUB_HOLD": hold, "STUB_EXIT": str(code)}
        env |= {name: "1" for name, set_ in (("STUB_DEAF", deaf), ("STUB_PULSE", pulse)) if set_}
        of_host = {"pid_mode": "host"}
        if self.of_prefect1:
            config = {"type": "DockerRun", "env": env, "labels": ["x"], "image": PYTHON, "host_config": of_host}
            run_id = str(self.local.add_run(self.flow, labels=["x"], run_config=config))
        else:
            given = {"env": env, "image": PYTHON, "container_create_kwargs": of_host}
            given |= {} if engine else {"command": f"{INTERPRETER} -I -S {STUB}"}
            run_id = self.api.create_run(self.deployment, job_variables=given)
        self.runs.append(run_id)
        return run_id

    def _containers(self) -> list[Any]:
        client = self.engine.client()
        try:
            label = f"io.flowfleet.fleet={self.fleet}"
            return list(client.api.containers(all=True, filters={"label": label}))
        finally:
            client.close()

    def left(self) -> list[str]:
        return [f"container {row['Names']} is {row['State']}" for row in self._containers()]

    def close(self) -> None:
        super().close()
        client = self.engine.client()
        for row in self._containers():
            client.api.remove_container(row["Id"], force=True, v=True)
        client.close()
