"""Drain wait: `worker drain --wait` watches drained workers until they have ended, and says what they wait for."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flowfleet.commands import batch
from flowfleet.commands.program import CHECKS_FAILED
from flowfleet.errors import FleetError
from flowfleet.ledger import Ledger
from flowfleet.ledger.claims import Claim, State, Tomb
from flowfleet.ledger.roster import WorkerRow
from flowfleet.monitor.snapshot import WAITING
from flowfleet.retry import Retry

_LOOK_SECONDS = 0.5


class NotDrained(FleetError):
    """A worker that was drained does not come to its end, or has left runs behind."""

    exit_code = CHECKS_FAILED


@dataclass(frozen=True)
class _Look:
    """What the ledger says of one drained worker at one look."""

    worker: str
    row: WorkerRow | None
    claims: Sequence[Claim]
    tombs: Sequence[Tomb]

    @property
    def ended(self) -> bool:
        """Whether the worker is gone, and nothing that it had goes on."""
        return self.row is not None and not self.row.live and not self.claims and not self.tombs

    @property
    def failed(self) -> str:
        """Why it will not end as it was asked to; "" while it may."""
        if self.row is None:
            return f"{self.worker} was forgotten meanwhile"
        if self.row.wanted != "draining":
            return f"{self.worker} is {self.row.wanted} again, since somebody has said so meanwhile"
        if self.tombs and not self.row.live and not self.claims:
            names = batch.named([tomb.name for tomb in self.tombs])
            return f"{self.worker} is lost, and what it had may run on: {names}; see flowfleet status"
        return ""

    def awaited(self) -> str:
        """What it waits for, in words."""
        row = self.row
        runs = [claim.name for claim in self.claims if claim.state is not State.ENDED]
        untold = [claim.name for claim in self.claims if claim.state is State.ENDED]
        parts = [
            f"{batch.counted(len(runs))} ({batch.named(runs)})" if runs else "",
            f"the API to accept the end of {batch.named(untold)}" if untold else "",
        ]
        what = " and ".join(part for part in parts if part) or "its end"
        gone = f", which is {row.end}," if row is not None and not row.live else ""
        return f"{self.worker}{gone} waits for {what}"


@dataclass(kw_only=True)
class DrainWait:
    """The wait for the ends of workers that were drained."""

    ledger: Ledger
    workers: Sequence[str]
    #: says what is waited for, as often as it changes
    say: Callable[[str], None]
    #: says that a worker has ended
    tell: Callable[[str], None]
    pause: Callable[[float], None] = time.sleep
    _ended: set[str] = field(default_factory=set, init=False)

    def run(self) -> None:
        """Wait for all of them; an outage of Redis is waited out.

        Raises `NotDrained` at the end where one will not end, since it is forgotten, resumed or lost with its runs.
        """
        retry, said, failed = Retry(wait=self.pause), "", dict[str, str]()
        while True:
            looks = retry.ask("Redis", lambda: list(self._look(failed)))
            for look in looks:
                if look.ended:
                    self._ended.add(look.worker)
                    self.tell(f"{look.worker} has ended.")
                elif look.failed:
                    failed[look.worker] = look.failed
            awaited = "; ".join(look.awaited() for look in looks if not look.ended and not look.failed)
            if not awaited:
                break
            if awaited != said:
                self.say(f"waiting: {awaited}")
            said = awaited
            self.pause(_LOOK_SECONDS)
        if failed:
            raise NotDrained(f"Not drained: {'; '.join(failed.values())}.")

    def _look(self, failed: Iterable[str]) -> Iterable[_Look]:
        rows = {row.worker: row for row in self.ledger.roster.rows()}
        claims, tombs = self.ledger.claims.live(), self.ledger.claims.tombs()
        for worker in self.workers:
            if worker not in self._ended and worker not in failed:
                yield _Look(
                    worker,
                    rows.get(worker),
                    [claim for claim in claims if claim.worker == worker and claim.state not in WAITING],
                    [tomb for tomb in tombs if tomb.worker == worker],
                )
