"""Show config: the settings as people read them, each value with where it came from, and no secret."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from flowfleet.api.connect import decide
from flowfleet.api.prefect1 import access as access1
from flowfleet.api.prefect1.defaults import applied
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.api.prefect3 import access as access3
from flowfleet.errors import SettingsError
from flowfleet.logs import redact_url
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import Found, add
from flowfleet.settings.option import options_of
from flowfleet.settings.values import FOR_TESTS

C = TypeVar("C", bound=CommonSettings)


class PrefectValues:
    """What Prefect's own settings add to ours, as far as it is known without asking the API."""

    def __init__(self, settings: CommonSettings, environ: Mapping[str, str]) -> None:
        """Read Prefect's own settings; raises `SettingsError` for a file that is broken."""
        home = access3.home_of(environ)
        self._environ = environ
        self._prefect1 = Prefect1Settings(environ, home)
        #: prefect1 or prefect3; None = known only by asking the API, or no API is set
        self.backend: str | None = None
        try:
            self.backend = decide(settings, environ, Path.cwd(), home)
        except SettingsError:  # no API is set, which the lines show
            return

    def complete(self, settings: C) -> C:
        """The settings as a part would use them: with what Prefect's own give where we have no value of our own."""
        own = access3.layer(self._environ)
        if self.backend == "prefect1":
            settings = applied(settings, self._prefect1)
            own = access1.layer(self._prefect1, settings.api or access1.found_url(self._prefect1).value)

        def where_none(name: str) -> Found | None:
            given = settings.token if name == "key" else None
            return own(name) if given is None and getattr(settings, name) is None else None

        return add(settings, where_none)

    def lines(self, settings: CommonSettings, left_out: Collection[str]) -> Iterator[str]:
        """One line for each option, `key = value  (origin)`; the fields in `left_out` are skipped."""
        completed = self.complete(settings)
        for name, option in options_of(type(completed)).items():
            if name in left_out or option.kind is FOR_TESTS:
                continue
            value, origin = getattr(completed, name), str(completed.origin(name))
            if option.kind.masked and value is not None:
                value = tuple(map(option.kind.masked, value)) if option.kind.separator else option.kind.masked(value)
            if name == "api" and value:
                value = redact_url(value)
            if name == "log_level" and completed.origin(name).kind == "machine":
                origin = "default"  # each command has its own
            if name == "backend" and value == "auto" and self.backend:
                origin = f"{origin}; here {self.backend}"
            yield f"{option.key} = {_shown(value)}  ({origin})"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, tuple) else str(value)
