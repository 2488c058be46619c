"""Start spec: how the API's job becomes the finished start spec for a deployer."""

from dataclasses import dataclass

from flowfleet.api.client import Job, JobApi
from flowfleet.ledger.claims import Claim
from flowfleet.settings.classes import WorkerSettings
from workers.deployment import RunLimits, StartSpec
from workers.environment import EnvironmentLayers
from workers.interpreter import Interpreter, resolve_command
from workers.state.run_folders import RunFolder


@dataclass(frozen=True, kw_only=True)
class StartSpecBuilder:
    """The builder of start specs; its fields are what is the same for all runs of this worker."""

    api: JobApi
    layers: EnvironmentLayers
    interpreter: Interpreter
    settings: WorkerSettings

    def make(self, held: Claim, job: Job, folder: RunFolder, *, not_after: float | None) -> StartSpec:
        """Make the start spec of one attempt.

        Raises `StartFailed` when its command cannot be found, or for a limit that it asks for and cannot have.

        `not_after` is the time by the boot-time clock after which user code must not begin; None = no limit.
        """
        limits = RunLimits.of(self.settings, job.variables, job.env)
        if limits.stop_grace != self.settings.stop_grace:
            folder.note(stop_grace=limits.stop_grace)  # the worker that stops the run may be another one
        env = self.layers.build(job, claim=held.claim)
        if job.command:
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
            limits=limits,
            carried_env=self.layers.of_run(job, claim=held.claim),
            variables=job.variables,
        )
