"""Orders: from the API's job to the finished order for a deployer."""

from __future__ import annotations

from dataclasses import dataclass

from flowfleet.api.client import ApiClient, Job
from flowfleet.ledger.claims import Held
from workers.deployment import StartSpec
from workers.environment import EnvironmentLayers
from workers.interpreter import Interpreter, resolve_command
from workers.state.run_folders import RunFolder


@dataclass(frozen=True, kw_only=True)
class StartSpecBuilder:
    """What is the same for all orders of this worker."""

    api: ApiClient
    layers: EnvironmentLayers
    interpreter: Interpreter
    log_limit: int
    stop_grace: float

    def make(self, held: Held, job: Job, folder: RunFolder, *, not_after: float | None) -> StartSpec:
        """The order of one attempt; raises `StartFailed` when its command cannot be found."""
        forced = self.api.engine_environment(held.run_id, job)
        env = self.layers.build(
            job.env,
            forced,
            run_id=held.run_id,
            claim=held.claim,
            defaults=self.api.engine_defaults(job),
            working_dir=job.working_dir,
        )
        if job.command:
            argv = resolve_command(job.command, env, self.interpreter.path)
        else:
            argv = self.api.engine_command(self.interpreter.path, job, self.interpreter.prefect)
        return StartSpec(
            run_id=held.run_id,
            claim=held.claim,
            argv=argv,
            env=env,
            cwd=job.working_dir or self.layers.home,
            folder=folder.path,
            not_after=not_after,
            log_limit=self.log_limit,
            stop_grace=self.stop_grace,
        )
