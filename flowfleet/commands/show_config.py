"""Show config: the settings as people read them, each value with where it came from, and no secret."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flowfleet.api.connect import decide
from flowfleet.api.prefect1.access import found_url as found_url1
from flowfleet.api.prefect1.defaults import applied
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.api.prefect3.access import found_url, home_of
from flowfleet.api.prefect3.settings import prefect_settings
from flowfleet.errors import SettingsError
from flowfleet.logs import MASK, redact_url
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.option import Origin, options_of

C = TypeVar("C", bound=CommonSettings)

#: Prefect 3's own credentials, in the order in which Prefect 3 takes them
_CREDENTIALS = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY")


@dataclass(frozen=True, kw_only=True)
class PrefectValues:
    """What Prefect's own settings add to ours, as far as it is known without asking the API."""

    #: prefect1 or prefect3; None = known only by asking the API, or no API is set
    backend: str | None
    environ: Mapping[str, str]
    prefect1: Prefect1Settings

    @classmethod
    def of(cls, settings: CommonSettings, environ: Mapping[str, str]) -> PrefectValues:
        """Read Prefect's own settings; raises `SettingsError` for a file that is broken."""
        found = Prefect1Settings(environ, home_of(environ))
        try:
            backend = decide(settings, environ, Path.cwd(), home_of(environ))
        except SettingsError:  # no API is set, which the lines show
            backend = None
        return cls(backend=backend, environ=environ, prefect1=found)

    def with_defaults(self, settings: C) -> C:
        """The settings as a part would use them: with the defaults that Prefect 1's own settings give."""
        return applied(settings, self.prefect1) if self.backend == "prefect1" else settings

    def lines(self, settings: CommonSettings, left_out: Collection[str]) -> Iterator[str]:
        """One line for each option, `key = value  (origin)`; the fields in `left_out` are skipped."""
        for name, option in options_of(type(settings)):
            if name in left_out or option.for_tests:
                continue
            value = getattr(settings, name)
            if option.part:
                value = getattr(value, option.part)
            if option.secret and isinstance(value, str):
                value = redact_url(value) if "://" in value else MASK
            if name == "api" and value:
                value = redact_url(value)
            if option.kind.masked:
                value = tuple(map(option.kind.masked, value))
            origin: Any = settings.origins.get(option.key if option.part else name, Origin("default"))
            if name == "log_level" and origin.kind == "machine":
                origin = "default"  # each command has its own
            if value is None or name == "backend":
                value, origin = self._theirs(settings, name, value, str(origin))
            yield f"{option.key} = {_shown(value)}  ({origin})"

    def _theirs(self, settings: CommonSettings, name: str, value: str | None, origin: str) -> tuple[str | None, str]:
        """The value and origin from Prefect's own settings, where we have no value of our own."""
        if name == "backend" and value == "auto" and self.backend:
            return value, f"{origin}; here {self.backend}"
        if name == "api":
            return self._address() or (value, origin)
        if name == "key" and settings.token is None:
            return self._key(settings) or (value, origin)
        if name == "tenant_id" and self.backend == "prefect1":
            tenant = self.prefect1.tenant(settings.api or found_url1(self.prefect1).value)
            return (tenant.value, tenant.source) if tenant else (value, origin)
        return value, origin

    def _address(self) -> tuple[str, str] | None:
        if self.backend == "prefect1":
            address = found_url1(self.prefect1)
            return redact_url(address.value), address.source
        found = found_url(self.environ)
        return (redact_url(found[0]), found[1]) if found else None

    def _key(self, settings: CommonSettings) -> tuple[str, str] | None:
        if self.backend == "prefect1":
            key = self.prefect1.key(settings.api or found_url1(self.prefect1).value)
            return (MASK, key.source) if key else None
        found = prefect_settings(self.environ, Path.cwd(), home_of(self.environ))
        name = next((name for name in _CREDENTIALS if name in found), None)
        return (MASK, f"{name}, {found[name].source}") if name else None


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, tuple) else str(value)
