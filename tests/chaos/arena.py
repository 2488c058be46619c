"""Arena: one fleet on one of three APIs, whose parts are forked, are quick, and are started again when they have died.

The APIs: `lawless` takes every state from everybody; `prefect1` is the local Prefect 1 API, like Server, with faults;
`prefect3` is a real server.
"""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests import folders, processes
from tests.chaos.zygote import Zygote
from tests.lawless_api import LawlessApi
from tests.prefect1_api import Faults, Prefect1Api
from tests.rest import Rest
from tests.tcp_bridge import TcpBridge
from tests.valkey import free_port
from tests.waiting import SCALE, until
from tests.world import MARK, Part, World

STUB = Path(__file__).with_name("stub_engine.py")
TTL_SECONDS = 2.0
GRACE_SECONDS = 4.0
#: the product's own numbers, as short as the fleet's
NUMBERS = {
    "flowfleet.broker:VISIBILITY_SECONDS": 5,
    "flowfleet.broker:RESTORE_SECONDS": 1,
    "flowfleet.settings.classes:LEASE_MARGIN_SECONDS": 0.5,
    "flowfleet.settings.classes:PollerSettings.leader_seconds": 3.0,
    "flowfleet.settings.classes:PollerSettings.queued_seconds": 4.0,
    "flowfleet.settings.classes:PollerSettings.idle_seconds": 1.0,
    "workers.runs.leases:MARGIN_SECONDS": 0.5,
    "workers.runs.cancelling:PATIENCE_SECONDS": 3.0,
    "poller.leader:BEAT_SECONDS": 0.6,
    "poller.leader:STANDING_SECONDS": 2.2,
    "poller.reconcile:SETTLE_AGAIN_SECONDS": 1.0,
    "poller.reconcile:SETTLE_SECONDS": 45.0,
    "poller.reconcile:TAKEN_SILENT_SECONDS": 4.0,
    "poller.reconcile:TAKEN_SECONDS": 20.0,
    "poller.reconcile:FOREIGN_SECONDS": 2.0,
    "poller.reconcile:UNSERVED_SECONDS": 1.5,
    "poller.reconcile:OWNER_SECONDS": 8.0,
    "poller.lost:SWITCH_MARGIN_SECONDS": 1.0,
    "poller.lost_reports:GONE_SECONDS": 3.0,
    "poller.lost_reports:AGAIN_SECONDS": 1.0,
    "poller.cancellation:LOOK_SECONDS": 0.5,
    "poller.cancellation:STATES_SECONDS": 3.0,
    "poller.pace:Pace.fresh_seconds": 1.0,
    "poller.pace:Pace.shun_seconds": 1.0,
    "poller.pace:Pace.glance_seconds": 0.5,
}
#: the types of states after which nothing comes
ENDS = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED", "Success", "Failed", "Cancelled"}


class ArenaPart(Part):
    """A part that the zygote has forked."""

    def __init__(self, zygote: Zygote, command: str, argv: Sequence[str], world: "Arena", **how: Any) -> None:
        self.name, self.address = how["name"], how["address"]
        self.log, self.out = world.folder / f"{self.name}.log", world.folder / f"{self.name}.out"
        self.process: Any = zygote.start(
            command, argv, world.environment(how["env"]), world.folder, out=self.out, log=self.log
        )


class Arena(World):
    """`start_all()`, `create(hold, code)`, `history(run)`; `tend()` starts dead parts again; `close()`."""

    def __init__(self, folder: Path, redis: tuple[str, int], zygote: Zygote, kind: str, server_url: str = "") -> None:
        self.zygote, self.kind = zygote, kind
        #: the only way to Redis, which can be cut for this fleet alone
        self.bridge = TcpBridge(redis)
        self.local: Any = None
        if kind == "lawless":
            self.local = LawlessApi().start()
        elif kind == "prefect1":
            self.local = Prefect1Api(faults=Faults.like_server()).start()
        self.of_prefect1 = kind == "prefect1"
        real = server_url if self.local is None else self.local.url if self.of_prefect1 else self.local.api_url
        #: the only way of all parts and runs to the API; what a test asks goes straight there
        self.api_bridge = TcpBridge(("127.0.0.1", urlsplit(real).port or 0))
        url = f"http://127.0.0.1:{self.api_bridge.port}{urlsplit(real).path}"
        super().__init__(folder, url, f"redis://127.0.0.1:{self.bridge.port}/0")
        self.api = Rest(real)
        self.fired_folder = folder / "fired"
        self.fired_folder.mkdir()
        self.env = {"FLOWFLEET_FAILPOINT_FOLDER": str(self.fired_folder), "FLOWFLEET_API_READ_SECONDS": "4"}
        if self.of_prefect1:
            self.env |= {
                "FLOWFLEET_BACKEND": "prefect1",
                "FLOWFLEET_API": url,
                "PREFECT__CLOUD__CHECK_CANCELLATION_INTERVAL": "0.5",
                "PREFECT__HOME_DIR": str(folder / ".prefect"),
                "PREFECT__USER_CONFIG_PATH": str(folder / "no-config.toml"),
            }
            self.flow = self.local.add_flow("stub")
        #: part name → how it is started again
        self.kept: dict[str, Any] = {}
        #: parts that a test has ended for good
        self.restarts = 0

    # parts

    def start(self, command: str, name: str, options: Sequence[str] = (), env: Any = None, **how: Any) -> Part:
        address = how.get("address") or f"http://127.0.0.1:{free_port()}"
        number = sum(part.name.startswith(f"{name}-") for part in self.parts) + 1
        argv = ["start", "--agent-address", address, *options]
        part = ArenaPart(self.zygote, command, argv, self, name=f"{name}-{number}", address=address, env=env)
        self.parts.append(part)
        self.kept[name] = (part, lambda: self.start(command, name, options, env, wait=False))
        return part.wait_ready() if how.get("wait", True) else part

    def poller(self, name: str = "agent", *options: str, env: Any = None, wait: bool = False) -> Part:
        lease = ["--lease-seconds", str(TTL_SECONDS), "--renew-seconds", "0.5", "--adopt-grace", str(GRACE_SECONDS)]
        return self.start("poller", name, ["--name", name, *lease, *options], env, wait=wait)

    def worker(self, name: str = "worker", *options: str, env: Any = None, slots: int = 4, wait: bool = False) -> Part:
        own = ["--name", name, "--slots", str(slots), "--python", str(self.python), "--stop-grace", "1"]
        own += ["--label", "x", "--no-hostname-label"] if self.of_prefect1 else ["--pool", self.pool]
        return self.start("worker", name, [*own, *options], env, wait=wait)

    @cached_property
    def python(self) -> Path:
        """What a worker takes for the interpreter of the flows: the stub with a version."""
        path, version = self.folder / "stub" / "bin" / "python", "1.4.1" if self.of_prefect1 else "3.9.1"
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo {version} && exit 0\nexec {sys.executable} -I -S {STUB}\n')
        path.chmod(0o755)
        return path

    def tend(self) -> bool:
        """Start the parts again that have ended, as a supervisor does; always False, for waits."""
        for part, again in list(self.kept.values()):
            if part.process.poll() is not None:
                self.restarts += 1
                again()
        return False

    def forget(self, name: str) -> None:
        """The part is not started again."""
        self.kept.pop(name, None)

    def fired(self, name: str) -> int:
        """The pid of the process that the failpoint has met; 0 = none yet."""
        path = self.fired_folder / name
        return int(path.read_text() or 0) if path.exists() else 0

    # runs

    def create(
        self, hold: str = "0", code: int = 0, *, engine: bool = False, deaf: bool = False, pulse: bool = False
    ) -> str:
        """A run of the stub; with `engine` it is started as Prefect's own engine is, with `pulse` it marks its life."""
        env = {"STUB_HOLD": hold, "STUB_EXIT": str(code)}
        env |= {name: "1" for name, set_ in (("STUB_DEAF", deaf), ("STUB_PULSE", pulse)) if set_}
        if self.of_prefect1:
            config = {"type": "LocalRun", "env": env, "labels": ["x"], "working_dir": None}
            run_id = str(self.local.add_run(self.flow, labels=["x"], run_config=config))
        else:
            command = None if engine else f"{sys.executable} -I -S {STUB}"
            given = {"env": env, **({"command": command} if command else {})}
            run_id = self.api.create_run(self.deployment, job_variables=given)
        self.runs.append(run_id)
        return run_id

    def create_past_the_line(self, hold: str, code: int, *, engine: bool = False) -> str:
        """The same, straight into the tables of the API without locks."""
        given: dict[str, Any] = {"env": {"STUB_HOLD": hold, "STUB_EXIT": str(code)}}
        given |= {} if engine else {"command": f"{sys.executable} -I -S {STUB}"}
        run_id = str(self.local.add_run(self.pool, job_variables=given))
        self.runs.append(run_id)
        return run_id

    @cached_property
    def deployment(self) -> str:
        """One deployment for all runs."""
        until(lambda: self.tend() or self.api.pool(self.pool), 30, f"pool {self.pool}")
        return str(self.api.deploy(f"stub-{self.mark}", self.pool, "none.py:go", str(self.folder)))

    def states(self, run_id: str) -> list[Mapping[str, Any]]:
        """All states of the run in their order: type, name, message."""
        if self.of_prefect1:
            found = self.local.states(run_id)
            return [{"type": one["type"], "name": one["type"], "message": one.get("message")} for one in found]
        if self.kind == "lawless":
            return list(self.local.states[run_id])
        found = self.api.call("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return sorted(found, key=lambda state: state["timestamp"])

    def state(self, run_id: str) -> Mapping[str, Any]:
        return self.states(run_id)[-1]

    def ended(self, run_id: str) -> bool:
        return self.state(run_id)["type"] in ENDS

    def cancel(self, run_id: str) -> None:
        """What a user does who presses Cancel."""
        if self.of_prefect1:
            self.local.cancel(run_id)
        else:
            state = {"type": "CANCELLING", "name": "Cancelling"}
            self.api.call("POST", f"/flow_runs/{run_id}/set_state", {"state": state, "force": False})

    def marks(self, run_id: str) -> list[list[str]]:
        """The run's own marks: word, claim, pid, boot clock."""
        return self.notes(run_id)

    # the end

    def members(self) -> dict[int, str]:
        """Processes of runs (commands; shims carry no mark of their own)."""
        return processes.marked(MARK, self.mark)

    def shims(self) -> list[int]:
        """The shims of all runs that still live."""
        found = []
        for path in folders.found(self.folder, "state/**/runs/*.*/started.json"):
            try:
                pid = int(json.loads(path.read_text()).get("pid") or 0)
                alive = b"flowfleet-shim" in Path(f"/proc/{pid}/comm").read_bytes()
            except (OSError, ValueError):
                continue
            if alive and processes.alive(pid):
                found.append(pid)
        return found

    def left(self) -> list[str]:
        """What else is left of the fleet's runs."""
        return []

    def close(self) -> None:
        """Nothing of the fleet stays, whatever it does."""
        self.kept.clear()
        for part in self.parts:
            part.process.send_signal(signal.SIGCONT)
            part.process.kill()
        for part in self.parts:
            part.process.wait(20 * SCALE)
        for pid in self.shims():
            processes.kill(pid, signal.SIGCONT)
            processes.kill(pid)
        processes.sweep(MARK, self.mark)
        if self.local is not None:
            self.local.stop()
        self.bridge.close()
        self.api_bridge.close()
        self.api.session.close() if not self.of_prefect1 else None
