"""Preparation: what a run needs on this host is brought here while its claim is taken and nothing is promised yet."""

from flowfleet.api.client import Job
from workers.deployment import Deployer
from workers.runs.start_spec import StartSpecBuilder
from workers.state.attempts import Attempt, Attempts


def prepare(deployer: Deployer, start_specs: StartSpecBuilder, attempts: Attempts, attempt: Attempt, job: Job) -> None:
    """Let the deployer bring it, if it wants to (an image); raises what its `prepare` raises."""
    bring = getattr(deployer, "prepare", None)
    if bring is None:
        return

    def wanted() -> bool:
        now = attempts.get(attempt.key)
        return now is not None and not (now.fenced or now.cancelled or attempts.closed)

    bring(start_specs.make(attempt.held, job, attempt.folder, not_after=None), wanted)
