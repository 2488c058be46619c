"""Settings: the settings of Prefect 1's own command, found where that command looks, in the same order.

Nearest first: PREFECT__SECTION__KEY in the environment, `backend.toml`, the user's `config.toml`, Prefect's defaults.
In values `${key}` and `$VARIABLE` stand for other settings and variables. Logins that `prefect auth login` has kept are
in `auth.toml`, by the host of the API. The files are read by `tomllib`, since prefect itself is never imported here.
"""

import ast
import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowfleet import logs
from flowfleet.api.settings_files import flat, read_toml, text_of
from flowfleet.settings.layers import Found
from flowfleet.settings.option import Origin

#: the defaults of prefect 1.4.1, as far as we read them
_DEFAULTS: Mapping[str, str] = {
    "home_dir": "~/.prefect",
    "backend": "cloud",
    "server.host": "http://localhost",
    "server.port": "4200",
    "server.endpoint": "${server.host}:${server.port}",
    "cloud.endpoint": "https://api.prefect.io",
    "cloud.api": "${${backend}.endpoint}",
    "logging.level": "INFO",
}
_PREFIX = "PREFECT__"
_DEFAULT = Origin("default")
_OF_ENVIRONMENT = " in the environment"
#: settings of which each says on purpose that there is a Prefect 1 API
_NAME_AN_API = ("cloud.api", "cloud.endpoint", "server.endpoint", "server.host", "server.port", "cloud.api_key")
_SECRETS = ("api_key", "auth_token", "api_token", "password", "admin_secret")
_REFERENCE = re.compile(r"\$\{(.[^${}]*)\}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
#: how deep references are followed, since they may go round in a circle
_DEPTH = 10


class Prefect1Settings:
    """Prefect 1's settings that apply to the user whose home is `home`."""

    def __init__(self, environ: Mapping[str, str], home: Path) -> None:
        """Read all files and variables; raises `SettingsError` for a file that is broken."""
        self._environ = environ
        self._home = home
        self._raw = {key: Found(value, _DEFAULT) for key, value in _DEFAULTS.items()}
        for name, default in (("USER_CONFIG_PATH", "config.toml"), ("BACKEND_CONFIG_PATH", "backend.toml")):
            path = self._path(environ.get(_PREFIX + name) or f"~/.prefect/{default}")
            values = flat(read_toml(path), lambda start, key: f"{start}.{key}" if start else key)
            self._raw |= {key: _found(value, f"{key} in {path}") for key, value in values}
        self._raw |= {
            name.removeprefix(_PREFIX).lower().replace("__", "."): _found(value, f"{name}{_OF_ENVIRONMENT}")
            for name, value in environ.items()
            if name.startswith(_PREFIX)
        }
        self._auth_path = self._path(self.resolved("home_dir").value) / "auth.toml"
        self._auth = read_toml(self._auth_path)
        # all secrets are registered with the log's redaction, whether they are used or not
        for key in self._raw:
            if key.endswith(_SECRETS):
                logs.keep_secret(self.resolved(key).value)
        for login in self._auth.values():
            if isinstance(login, Mapping):
                logs.keep_secret(str(login.get("api_key") or ""))

    def get(self, key: str) -> Found | None:
        """A setting as text, with its references filled in; None when the setting is empty or not there."""
        found = self.resolved(key)
        return found if found.value else None

    def written(self, key: str) -> Found | None:
        """A setting as it was written: a list in a file, text in a variable."""
        return self._raw.get(key)

    def table(self, key: str) -> dict[str, Found]:
        """The settings below this key, by the rest of their names."""
        inside = f"{key}."
        return {
            name.removeprefix(inside): Found(self.resolved(name).value, raw.origin)
            for name, raw in self._raw.items()
            if name.startswith(inside)
        }

    def given(self, key: str) -> bool:
        """Whether somebody has set this key, and it has not only a default."""
        return key in self._raw and self._raw[key].origin != _DEFAULT and self._raw[key].value != ""

    @property
    def names_an_api(self) -> bool:
        """Whether the settings say on purpose that there is a Prefect 1 API."""
        by_variable = self.given("backend") and self._raw["backend"].origin.name.endswith(_OF_ENVIRONMENT)
        return by_variable or any(map(self.given, _NAME_AN_API))

    @property
    def left_behind(self) -> bool:
        """Whether Prefect 1's own command has been used here: a backend was chosen, or a login is kept."""
        return self.given("backend") or bool(self._auth)

    @property
    def log_level_of_runs(self) -> str:
        """The log level that an agent passes on to its runs."""
        return str(self.resolved("logging.level").value).upper() or "INFO"

    def login(self, url: str, name: str) -> Found | None:
        """What `prefect auth login` has kept for the API at this address, by its host: `api_key` or `tenant_id`."""
        slug = re.sub(r"[^-.a-z0-9]+", "-", (urlsplit(url).netloc or url).lower())
        login = self._auth.get(re.sub(r"-{2,}", "-", slug).strip("-"))
        value = login.get(name) if isinstance(login, Mapping) else None
        return _found(str(value), f"{name} in {self._auth_path}") if value else None

    def resolved(self, key: str, depth: int = _DEPTH) -> Found:
        """A setting as text, empty where there is none; a default that refers to what somebody set has that source."""
        raw = self._raw.get(key)
        if raw is None or depth == 0:
            return Found("", _DEFAULT)
        text, origin = self._expanded(str(raw.value) if isinstance(raw.value, list) else text_of(raw.value)), raw.origin
        for _ in range(_DEPTH):
            match = _REFERENCE.search(text)
            if not match:
                break
            other = self.resolved(match[1], depth - 1)
            text = text.replace(match[0], other.value, 1)
            if raw.origin == _DEFAULT and other.origin != _DEFAULT:  # the last reference is the nearest to the value
                origin = other.origin
        return Found(text, origin)

    def _expanded(self, text: str) -> str:
        text = _VARIABLE.sub(lambda match: self._environ.get(match[1] or match[2], match[0]), text)
        if text == "~" or text.startswith("~/"):
            text = str(self._home) + text[1:]
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            # Prefect reads a value as a Python literal where it is one
            with contextlib.suppress(ValueError, SyntaxError):
                return str(ast.literal_eval(text))
        return text

    def _path(self, text: str) -> Path:
        return Path(self._expanded(text))


def _found(value: Any, source: str) -> Found:
    return Found(value, Origin("prefect", source))
