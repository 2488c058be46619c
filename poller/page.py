"""Page of the poller: `/api/health`, `/api/ready`, `/api/poke` and `/metrics`."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from flowfleet.page.server import Answer, Handler, Request
from poller.leader import Leadership
from poller.loop import Loop
from poller.metrics import Meters

#: a round lasts as long as its slowest call of the API, a bulk claim (60 s), so only more than that is a hang
STALE_SECONDS = 90.0
#: the exposition format of Prometheus
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Vitals:
    """Reads how the loop does, from other threads."""

    def __init__(self, loop: Loop, leadership: Leadership, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._leadership = leadership
        self._clock = clock

    def working(self) -> bool:
        """True while rounds are made."""
        return self._clock() - self._loop.round_at < STALE_SECONDS

    def describe(self) -> dict[str, Any]:
        """What health and ready answer."""
        term = self._leadership.term
        return {
            "role": "standby" if term is None else "leader",
            "term": term,
            "polls": self._loop.polls,
            "last_round_seconds_ago": round(self._clock() - self._loop.round_at, 1),
            "api": "away" if self._loop.api_outage.away else "ok",
            "redis": "away" if self._loop.redis_outage.away else "ok",
        }

    def ready(self) -> bool:
        """True when this poller does its duty now: it leads and has polled, or it stands by."""
        if not self.working() or self._loop.redis_outage.away:
            return False
        if self._leadership.term is None:
            return True
        return self._loop.polls > 0 and not self._loop.api_outage.away


def handlers(vitals: Vitals, meters: Meters, poke: Callable[[], None]) -> dict[str, Handler]:
    """The paths of the poller's page."""

    def health(_: Request) -> Answer:
        ok = vitals.working()
        return Answer.json({"ok": ok, **vitals.describe()}, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)

    def ready(_: Request) -> Answer:
        ok = vitals.ready()
        return Answer.json({"ok": ok, **vitals.describe()}, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)

    def nudge(_: Request) -> Answer:
        poke()
        return Answer()  # an empty body, as the 1.x agent's

    def metrics(_: Request) -> Answer:
        return Answer(body=meters.text(), content_type=METRICS_TYPE)

    return {"/api/health": health, "/api/ready": ready, "/api/poke": nudge, "/metrics": metrics}
