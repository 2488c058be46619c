"""Show config: the settings as people read them, each value with where it came from, and no secret."""

from collections.abc import Collection, Iterator

from flowfleet.api.connect import PrefectValues
from flowfleet.logs import redact_url
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.option import options_of
from flowfleet.settings.values import FOR_TESTS


def config_lines(found: PrefectValues, settings: CommonSettings, left_out: Collection[str]) -> Iterator[str]:
    """One line for each option, `key = value  (origin)`; the fields in `left_out` are skipped."""
    completed = found.complete(settings)
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
        if name == "backend" and value == "auto" and found.backend:
            origin = f"{origin}; here {found.backend}"
        yield f"{option.key} = {_shown(value)}  ({origin})"


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, tuple) else str(value)
