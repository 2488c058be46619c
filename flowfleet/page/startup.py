"""Startup: the page of a poller or worker from its first moment, when all there is to tell is what it waits for."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from flowfleet.page.server import Handler, Page, PageAnswer, PageRequest, serve


class StartupPage:
    """The page of a process that starts: alive but not ready, until `show` gives it the handlers of the whole part.

    A probe must not take a process that waits patiently for a dead one.
    """

    def __init__(self, token: Callable[[], str | None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._since = clock()
        self._page: Page | None = None
        self._address: str | None = None
        self._handlers: Mapping[str, Handler] = self._early()
        self._waits_for: str | None = None

    def open(self, address: str | None) -> None:
        """Serve at this address only; None serves nowhere. Raises `SettingsError` when the address cannot be served."""
        if address == self._address:
            return
        self.close()
        if address is not None:
            self._page = serve(address, lambda: self._handlers, self._token)
            self._address = address

    @contextmanager
    def waiting_for(self, neighbour: str) -> Iterator[None]:
        """Name the neighbour that must answer next, until the block is done."""
        self._waits_for = neighbour
        yield
        self._waits_for = None

    def show(self, handlers: Mapping[str, Handler]) -> None:
        """Serve these handlers from now on; nothing is waited for any more."""
        self._handlers, self._waits_for = handlers, None

    def show_start(self) -> None:
        """Serve again what is served before the start: the part has ended, and waits to be started anew."""
        self._handlers, self._since = self._early(), self._clock()

    def close(self) -> None:
        """Stop serving."""
        if self._page is not None:
            self._page.close()
        self._page = self._address = None

    def _early(self) -> dict[str, Handler]:
        def other(_: PageRequest) -> PageAnswer:
            why = f"it waits for {self._waits_for}" if self._waits_for else "it is being put together"
            return PageAnswer.json({"error": f"This is served after the start: {why}."}, HTTPStatus.SERVICE_UNAVAILABLE)

        return {
            "/api/health": lambda _: PageAnswer.health(self._facts(), ok=True),
            "/api/ready": lambda _: PageAnswer.health(self._facts(), ok=False),
            "/": other,
        }

    def _facts(self) -> dict[str, Any]:
        return {
            "role": "starting",
            "waits_for": self._waits_for,
            "starting_for_seconds": round(self._clock() - self._since, 1),
        }
