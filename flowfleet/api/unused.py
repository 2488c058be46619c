"""Unused settings: those that were given but have no meaning at the API in use; each gets a warning."""

import logging
from collections.abc import Mapping

from flowfleet.settings.common import CommonSettings
from flowfleet.settings.option import options_of

logger = logging.getLogger(__name__)

#: by backend: the settings that have no meaning there, each with the flags that take its place
_UNUSED: Mapping[str, Mapping[str, str]] = {
    "prefect1": {"pools": "--label", "work_queues": "--label"},
    "prefect3": {"labels": "--pool and --work-queue", "hostname_label": "--pool and --work-queue"},
}
_GIVEN = ("flag", "variable", "config")


def tell_unused(settings: CommonSettings, backend: str) -> None:
    """Log a warning for each unused setting that somebody has given: runs would go elsewhere than was meant."""
    for name, instead in _UNUSED.get(backend, {}).items():
        origin = settings.origin(name)
        if origin.kind in _GIVEN:
            shown = f"--{options_of(type(settings))[name].key}"
            logger.warning(
                "a setting has no meaning at this API and is ignored",
                extra={"setting": shown, "given_by": str(origin), "backend": backend, "use_instead": instead},
            )
