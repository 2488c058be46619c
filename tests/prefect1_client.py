"""Prefect1Client: the real client and the real agent of prefect 1.4.1, in processes of their own environment."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.prefect1_env import environment, flows_by_name, python
from tests.valkey import free_port
from tests.waiting import SCALE, until
from tests.world import Part


class ClientError(Exception):
    """What the real client raised: `kind` is its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class RealAgent(Part):
    """A real LocalAgent; its runs are in its process group and end with it at `close`."""

    def polling(self) -> Self:
        """Wait until it does."""

        def polls() -> bool:
            assert self.process.poll() is None, self.all_text()[-3000:]
            return "Waiting for flow runs" in self.all_text()

        until(polls, 30, "the real agent's first poll")
        return self

    def poke(self) -> None:
        """Let it poll now: an idle one waits up to 10 s."""
        until(lambda: self.ask("/api/poke", seconds=5)[0] == 200, 20, "the real agent's page")

    def close(self) -> None:
        """The end of it and of all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(10)


class Prefect1Client:
    """`with Prefect1Client(folder, api.url) as real: real.register("plain") …`; the folder is home, logs and flows.

    `settings` adds variables to all that it starts; what it starts ends with it.
    """

    def __init__(self, folder: Path, api_url: str, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.api_url = api_url
        self.settings = dict(settings or {})
        self.agents: list[RealAgent] = []
        self._speaker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        speaker, self._speaker = self._speaker, None
        if speaker is not None:
            speaker.kill()
            speaker.wait(10)
            for pipe in (speaker.stdin, speaker.stdout):
                assert pipe is not None
                pipe.close()

    def environment(self, **extra: str) -> dict[str, str]:
        """For any process of the real Prefect 1 that a test starts itself: `[str(python()), "-m", "prefect", …]`."""
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        return environment(self.folder / "home", self.api_url, **self.settings, **extra)

    # the client

    def create_project(self, name: str = "real") -> str:
        return str(self._ask("create_project", name=name))

    def register(
        self, *names: str, project: str = "real", labels: Sequence[str] = ("real",), **given: Any
    ) -> dict[str, str]:
        """Flow ids by name, of flows in tests/prefect1_flows (all of them without a name) or of paths.

        They are stored pickled, or with `script` as the files themselves; the labels pin them to agents that have them.
        """
        self.create_project(project)
        ours = flows_by_name()
        wanted = {Path(name).stem: name if "/" in name else str(ours[name]) for name in names or ours}
        return {
            name: str(self._ask("register", path=path, name=name, project=project, labels=list(labels), **given))
            for name, path in wanted.items()
        }

    def create_run(self, flow_id: str, **given: Any) -> str:
        """A run's id, by `labels`, `parameters`, `run_config` (a LocalRun's fields) and `due_in` seconds."""
        return str(self._ask("create_run", flow_id=flow_id, **given))

    def cancel(self, run_id: str) -> bool:
        return bool(self._ask("cancel", run_id=run_id))

    def set_state(self, run_id: str, kind: str, message: str = "", *, version: int | None = None, **fields: Any) -> str:
        """The type of the state that stands then; raises `ClientError` with the real one's class."""
        return str(
            self._ask("set_state", run_id=run_id, state={"type": kind, "message": message, **fields}, version=version)
        )

    def info(self, run_id: str) -> dict[str, Any]:
        """Version, state and message, as the real client reads them."""
        return dict(self._ask("info", run_id=run_id))

    # the agent

    def start_agent(
        self,
        labels: Sequence[str] = ("real",),
        *arguments: str,
        name: str = "agent",
        env: Mapping[str, str] | None = None,
    ) -> RealAgent:
        """A real LocalAgent with just these labels; it is closed with us."""
        argv = [str(python()), "-m", "prefect", "agent", "local", "start", "--no-hostname-label", "--name", name]
        argv.append("--show-flow-logs")
        for label in labels:
            argv += ["--label", label]
        address = f"http://127.0.0.1:{free_port()}"
        argv += [*arguments, "--agent-address", address]
        agent = RealAgent(name, argv, self.environment(**(env or {})), self.folder, address)
        self.agents.append(agent)
        return agent

    # the speaker

    def _ask(self, do: str, **arguments: Any) -> Any:
        speaker = self._started()
        assert speaker.stdin is not None
        assert speaker.stdout is not None
        speaker.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        speaker.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(speaker.stdout, selectors.EVENT_READ)
            if not selector.select(60 * SCALE):
                self.close()
                raise AssertionError(f"the real client has not done {do} in {60 * SCALE:.0f} s")
        line = speaker.stdout.readline()
        assert line, f"the real client ended: {(self.folder / 'speaker.log').read_text(errors='replace')[-3000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(answer["error"], answer["message"])
        return answer["value"]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._speaker is None:
            env = self.environment()
            with (self.folder / "speaker.log").open("ab") as log:
                self._speaker = subprocess.Popen(
                    [str(python()), str(Path(__file__).with_name("prefect1_speaker.py"))],
                    env=env,
                    cwd=self.folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
        return self._speaker
