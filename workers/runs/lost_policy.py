"""Lost policy: what a run itself asks to become of it when its host is lost."""

from flowfleet.api.client import Job
from flowfleet.errors import StartFailed

#: as `--on-lost-run` of a poller has them
POLICIES = ("report", "requeue")
VARIABLE = "FLOWFLEET_ON_LOST_RUN"


def asked_policy(job: Job | None) -> str:
    """What this run asks for by its job variable or environment; "" where it leaves that to the poller, or has no job.

    Raises `StartFailed` for any other word: a run that must not start twice is not to find that out by a typing error.
    """
    if job is None:
        return ""
    given = {
        "the job variable on_lost_run": job.variables.get("on_lost_run"),
        f"the run's variable {VARIABLE}": job.env.get(VARIABLE),
    }
    for where, value in given.items():
        if value in (None, ""):
            continue
        if value not in POLICIES:
            raise StartFailed(f"{where} is {str(value)[:100]!r}: give report or requeue")
        return str(value)
    return ""
