"""Page: the HTTP paths of the poller, `/api/health`, `/api/ready`, `/api/poke` and `/metrics`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowfleet.page.server import Handler, PageAnswer, PageRequest
from flowfleet.retry import trouble_of
from poller.leader import Leadership
from poller.loop import Loop
from poller.metrics import PollerMetrics
from poller.progress import Progress

#: a round lasts as long as its slowest call of the API, a bulk claim (60 s), so only more than that is a hang
STALE_SECONDS = 90.0


@dataclass(frozen=True)
class PollerHealth:
    """The health of the loop, read from other threads."""

    loop: Loop
    leadership: Leadership
    progress: Progress

    def alive(self) -> bool:
        """True while the loop makes rounds."""
        return self.progress.seconds_ago < STALE_SECONDS

    def facts(self) -> dict[str, Any]:
        """The fields that `/api/health` and `/api/ready` answer with."""
        term = self.leadership.term
        return {
            "role": "standby" if term is None else "leader",
            "term": term,
            "polls": self.loop.polls,
            "last_round_seconds_ago": round(self.progress.seconds_ago, 1),
            "api": trouble_of(error) if (error := self.loop.api_outage.error) else "ok",
            "redis": "away" if self.loop.redis_outage.away else "ok",
        }

    def ready(self) -> bool:
        """True when this poller works as it should: it leads, has polled and reaches the API, or it stands by.

        A loop that hangs or does not reach Redis is not ready in either role. An announced maintenance of the API says
        nothing against the poller; what the API does after it counts.
        """
        if not self.alive() or self.loop.redis_outage.away:
            return False
        if self.leadership.term is None:
            return True
        outage = self.loop.api_outage
        return self.loop.polls > 0 and (not outage.away or outage.announced)


def handlers(health: PollerHealth, metrics: PollerMetrics, poke: Callable[[], None]) -> dict[str, Handler]:
    """The handlers of the poller's page, by path; `/api/poke` calls `poke`."""

    def answer_poke(_: PageRequest) -> PageAnswer:
        poke()
        return PageAnswer()  # an empty body, as the 1.x agent's

    return {
        "/api/health": lambda _: PageAnswer.health(health.facts(), ok=health.alive()),
        "/api/ready": lambda _: PageAnswer.health(health.facts(), ok=health.ready()),
        "/api/poke": answer_poke,
        "/metrics": lambda _: PageAnswer.metrics(metrics.text()),
    }
