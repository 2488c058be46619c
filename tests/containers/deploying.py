"""Deploying: container deployers as workers have them, without Redis and API: each `deployer()` is another worker."""

import uuid
from pathlib import Path

from flowfleet.api.container_ask import ContainerAsk
from flowfleet.failpoints import Failpoints
from tests.container_engine import BUSYBOX, PodmanEngine
from tests.waiting import SCALE, until
from workers.containers.allowed import Permissions
from workers.containers.engine import Engine
from workers.containers.images import Images
from workers.containers.request import CLAIM, ContainerOptions
from workers.deployers.container import ContainerDeployer
from workers.deployment import RunLimits, StartSpec
from workers.shim.syscalls import boot_clock
from workers.state.run_folders import RunFolders


def sh(script):
    """The command that runs this script."""
    return ("sh", "-c", script)


class Deploying:
    def __init__(self, engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.fleet = f"fleet-{uuid.uuid4().hex[:8]}"
        self.state = folder / "state"
        (self.state / "runs").mkdir(parents=True)
        self.runs = RunFolders(self.state / "runs")
        self.deployers = []
        self.started = []

    def deployer(self, *, host_key="host", boot_id="boot", failpoints=None, images=None, url=None, **options):
        mounts = options.pop("mounts", ())
        privileged = options.pop("privileged", False)
        engine = Engine(url or self.engine.url, {}, request_seconds=20.0)
        made = ContainerDeployer(
            engine=engine,
            images=Images(engine=engine, **(images or {})),
            options=ContainerOptions(
                permissions=Permissions(privileged=privileged, mounts=mounts, folder=self.folder), **options
            ),
            fleet=self.fleet,
            worker="worker@host",
            host="host",
            host_key=host_key,
            boot_id=boot_id,
            failpoints=failpoints or Failpoints(),
        )
        made.greet(require=True)
        until(lambda: not made.shut, 20, "the stream of events")
        self.deployers.append(made)
        return made

    @property
    def podman(self):
        """Whether the engine is Podman, which differs in some things."""
        return isinstance(self.engine, PodmanEngine)

    @property
    def busybox(self):
        """The image of that name."""
        return f"{self.engine.registry}{BUSYBOX}"

    def spec(self, *command, image=None, not_after=None, grace=5.0, memory=None, cpus=None, log_limit=0, **ask):
        run_id, claim = str(uuid.uuid4()), uuid.uuid4().hex
        folder = self.runs.create(run_id, claim, {"call": "c", "route": "prefect3/p/q", "log_limit": log_limit})
        assert folder is not None
        ask.setdefault("name", f"run-{run_id[:8]}")
        ask.setdefault("network_mode", "host")
        env = ask.pop("env", {})
        return StartSpec(
            run_id=run_id,
            claim=claim,
            argv=command,
            env=env,
            cwd=None,
            folder=folder.path,
            not_after=not_after if not_after is not None else boot_clock() + 60 * SCALE,
            limits=RunLimits(stop_grace=grace, log_limit=log_limit, memory=memory, cpus=cpus),
            container=ContainerAsk(image=image or self.busybox, command=command, env=env, **ask),
        )

    def start(self, deployer, spec):
        run = deployer.start(spec)
        self.started.append(run)
        return run

    def run(self, *command, deployer=None, **how):
        """Start it and wait for its end: the exit, and what it printed."""
        spec = self.spec(*command, **how)
        run = self.start(deployer or self.deployers[-1], spec)
        end = self.end(run)
        return end, self.log(spec)

    def end(self, run, seconds=30):
        return until(run.poll, seconds, "the end of the run")

    def start_ready(self, deployer, spec):
        """Start it, and wait until it says `ready`: its traps are set."""
        run = self.start(deployer, spec)
        until(lambda: "ready\n" in self.log(spec), 20, "it to be ready")
        return run

    def log(self, spec):
        path = spec.folder / "log"
        return path.read_text() if path.exists() else ""

    def containers(self, spec=None):
        """The containers at the engine, of this fleet or of one run."""
        client = self.engine.client()
        label = f"{CLAIM}={spec.claim}" if spec else f"io.flowfleet.fleet={self.fleet}"
        try:
            return client.api.containers(all=True, filters={"label": label})
        finally:
            client.close()

    def close(self):
        for run in self.started:
            run.close()
        for deployer in self.deployers:
            deployer.close()
        client = self.engine.client()
        for row in self.containers():
            client.api.remove_container(row["Id"], force=True, v=True)
        client.close()
