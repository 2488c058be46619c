"""Start spec: how the API's job becomes the finished start spec for a deployer."""

from dataclasses import dataclass, replace

from flowfleet.api.client import Job, JobApi
from flowfleet.api.traits import Traits
from flowfleet.ledger.claims import Claim
from flowfleet.settings.classes import WorkerSettings
from workers.deployment import RunLimits, StartSpec
from workers.environment import EnvironmentLayers, marks
from workers.interpreter import STARTERS, Interpreter, resolve_command
from workers.state.run_folders import RunFolder


@dataclass(frozen=True)
class StartSpecBuilder:
    """The builder of start specs; its fields are what is the same for all runs of this worker."""

    settings: WorkerSettings
    traits: Traits
    api: JobApi
    layers: EnvironmentLayers
    interpreter: Interpreter
    #: runs are containers
    in_containers: bool = False

    def make(self, held: Claim, job: Job, folder: RunFolder, *, not_after: float | None) -> StartSpec:
        """Make the start spec of one attempt.

        Raises `StartFailed` when its command cannot be found, or for a limit that it asks for and cannot have.

        `not_after` is the time by the boot-time clock after which user code must not begin; None = no limit.
        """
        limits = RunLimits.of(self.settings, job.variables, job.env)
        if limits.stop_grace != self.settings.stop_grace:
            folder.note(stop_grace=limits.stop_grace)  # the worker that stops the run may be another one
        if self.in_containers:
            folder.note(engine=not job.command)  # the worker that cancels the run may be another one
            return self._in_container(held.run_id, held.claim, job, folder, limits, not_after=not_after)
        env = self.layers.build(job, claim=held.claim)
        if job.command:
            folder.note(engine=False)  # the worker that cancels the run may be another one
            argv = resolve_command(job.command, env, self.interpreter.path)
        else:
            python = self.interpreter
            argv = self.api.engine_command(python.path, job, python.prefect, python.starters)
        return StartSpec(
            run_id=held.run_id,
            claim=held.claim,
            argv=argv,
            env=env,
            cwd=job.working_dir or self.layers.home,
            folder=folder.path,
            not_after=not_after,
            switch=held.switch,
            limits=limits,
            # a command of the user's may hand the session on to any program, or keep one of its own with its engine
            control=self.traits.engine_takes_session and not job.command,
            carried_env=self.layers.of_run(job, claim=held.claim),
            variables=job.variables,
        )

    def _in_container(
        self, run_id: str, claim: str, job: Job, folder: RunFolder, limits: RunLimits, *, not_after: float | None
    ) -> StartSpec:
        ask = self.api.container(job, self.layers.extra, marks(run_id, claim))
        return StartSpec(
            run_id=run_id,
            claim=claim,
            argv=ask.command,
            env=ask.env,
            cwd=job.working_dir,
            folder=folder.path,
            not_after=not_after,
            limits=limits,
            carried_env=ask.env,
            variables=job.variables,
            container=ask,
        )

    def for_hooks(self, job: Job, hooks: str, *, run: RunFolder, folder: RunFolder) -> StartSpec | None:
        """Make the start spec of a child that runs these hooks of an ended run, in the run's environment and folder.

        `folder` is the child's own. None = nothing can run hooks of such a run.
        """
        if self.in_containers:
            return self._hooks_in_container(job, hooks, run=run, folder=folder)
        python = self.interpreter
        argv = self.api.hooks_command(python.path, job, hooks, python.starters)
        if argv is None:
            return None
        return StartSpec(
            run_id=run.run_id,
            claim=folder.claim,
            argv=argv,
            env=self.layers.build(job, claim=folder.claim),
            cwd=job.working_dir or self.layers.home or str(run.work),
            folder=folder.path,
            not_after=None,
            limits=RunLimits.of(self.settings, job.variables, job.env),
        )

    def _hooks_in_container(self, job: Job, hooks: str, *, run: RunFolder, folder: RunFolder) -> StartSpec | None:
        command = self.api.hooks_command("python", job, hooks, STARTERS)
        if command is None:
            return None
        limits = RunLimits.of(self.settings, job.variables, job.env)
        spec = self._in_container(run.run_id, folder.claim, job, folder, limits, not_after=None)
        assert spec.container is not None
        # our program is not in the image: it goes in as text, with the module that it stands beside
        start, engine, program = (
            (STARTERS / name).read_text(encoding="utf-8")
            for name in ("from_text.py", "prefect3_engine.py", "prefect3_hooks.py")
        )
        texts = ("flowfleet_shim_engine", engine, "flowfleet_hooks", program)
        argv = ("python", "-c", start, *texts, "--", *command[2:])
        name = f"{spec.container.name}-hooks"
        return replace(spec, argv=argv, container=replace(spec.container, command=argv, name=name))
