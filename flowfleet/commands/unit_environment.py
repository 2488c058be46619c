"""Unit environment: the variables that a unit takes over from the environment of whoever prints it.

A service has no environment of its own, so a unit that did not name API and Redis would look for both on its own host.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowfleet.api.own_variables import Variable, has_login, own_variables
from flowfleet.settings.common import URL, CommonSettings
from flowfleet.settings.option import Option, options_of
from flowfleet.settings.values import FILE, FOLDER, FOR_TESTS, PATH

#: how the machine reaches its neighbours
_NEIGHBOURS = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
_PATHS = (PATH, FILE, FOLDER)


def carried(
    settings: CommonSettings, flags: Mapping[str, Any], environ: Mapping[str, str], folder: Path
) -> tuple[Variable, ...]:
    """What this environment says to the part with these settings, where no flag says it.

    Raises `SettingsError` for a file of Prefect's own settings that is broken.
    """
    options = [option for option in options_of(type(settings)).values() if option.kind is not FOR_TESTS]
    ours = [
        variable
        for option in options
        if flags.get(option.key) in (None, ()) and (variable := _ours(option, environ, folder))
    ]
    return (*ours, *own_variables(settings, environ, folder), *_of_neighbours(settings, environ))


def is_secret(option: Option, value: Any) -> bool:
    """Whether this value must not be shown; an address is secret only when it may have a login in it."""
    if option.kind.metavar == URL.metavar and "://" in str(value):
        return has_login(str(value))
    return option.kind.masked is not None


def absolute(option: Option, value: Any, folder: Path) -> Any:
    """A path as it is meant in this folder, since a service begins in `/`; any other value as it is."""
    if option.name == "import_paths":
        paths = [value] if isinstance(value, str) else value
        return tuple(path if path.startswith("~") else str(folder / path) for path in paths)
    return str(folder / value) if option.kind in _PATHS else value


def _ours(option: Option, environ: Mapping[str, str], folder: Path) -> Variable | None:
    value = environ.get(option.variable)
    if value:
        if option.kind in _PATHS:
            value = absolute(option, value, folder)
        elif option.name == "import_paths":
            value = ":".join(absolute(option, value.split(":"), folder))
        return Variable(name=option.variable, value=value, secret=is_secret(option, value), option=option)
    path = option.file_variable and environ.get(option.file_variable)
    if path:
        return Variable(name=option.file_variable, value=str(folder / path), secret=False)
    return None


def _of_neighbours(settings: CommonSettings, environ: Mapping[str, str]) -> Iterator[Variable]:
    names = (*_NEIGHBOURS, "DOCKER_HOST") if getattr(settings, "deploy", "") == "docker" else _NEIGHBOURS
    for name in names:
        if value := environ.get(name):
            yield Variable(name=name, value=value, secret=has_login(value))
