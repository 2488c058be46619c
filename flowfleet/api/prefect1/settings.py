"""Settings: the settings of Prefect 1's own command, found where that command looks, in the same order.

Nearest first: PREFECT__SECTION__KEY in the environment, `backend.toml`, the user's `config.toml`, Prefect's defaults.
In values `${key}` and `$VARIABLE` stand for other settings and variables. Logins that `prefect auth login` has kept are
in `auth.toml`, by the host of the API. The files are read by `tomllib`, since prefect itself is never imported here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowfleet import logs
from flowfleet.api.found import FoundSetting, read_toml
from flowfleet.errors import SettingsError

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
_DEFAULT = "default"
_OF_ENVIRONMENT = " in the environment"
#: settings of which each says on purpose that there is a Prefect 1 API
_NAME_AN_API = ("cloud.api", "cloud.endpoint", "server.endpoint", "server.host", "server.port", "cloud.api_key")
#: the settings that have held the key over time; the one that prefect 1.4.1 reads comes first
_KEYS = ("cloud.api_key",)
_OLDER_KEYS = ("cloud.agent.auth_token", "cloud.auth_token", "cloud.agent.api_token", "cloud.api_token")
_SECRETS = ("api_key", "auth_token", "api_token", "password", "admin_secret")
_REFERENCE = re.compile(r"\$\{(.[^${}]*)\}")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
#: how deep references are followed, since they may go round in a circle
_DEPTH = 10


@dataclass(frozen=True)
class _Raw:
    """A value as it was written, and where; the value may be a secret."""

    value: Any
    source: str

    def __repr__(self) -> str:
        return f"_Raw(source={self.source!r})"


class Prefect1Settings:
    """Prefect 1's settings that apply to the user whose home is `home`."""

    def __init__(self, environ: Mapping[str, str], home: Path) -> None:
        """Read all files and variables; raises `SettingsError` for a file that is broken."""
        self._environ = environ
        self._home = home
        self._raw = {key: _Raw(value, _DEFAULT) for key, value in _DEFAULTS.items()}
        for name, default in (("USER_CONFIG_PATH", "config.toml"), ("BACKEND_CONFIG_PATH", "backend.toml")):
            path = self._path(environ.get(_PREFIX + name) or f"~/.prefect/{default}")
            self._raw |= {key: _Raw(value, f"{key} in {path}") for key, value in _flat(read_toml(path))}
        self._raw |= {
            name.removeprefix(_PREFIX).lower().replace("__", "."): _Raw(value, f"{name}{_OF_ENVIRONMENT}")
            for name, value in environ.items()
            if name.startswith(_PREFIX)
        }
        self._auth_path = self._path(self.text("home_dir")) / "auth.toml"
        self._auth = read_toml(self._auth_path)
        self._keep_secrets()

    def get(self, key: str) -> FoundSetting | None:
        """A setting as text, with its references filled in; None when the setting is empty or not there."""
        found = self._resolved(key, _DEPTH)
        return found if found.value else None

    def text(self, key: str) -> str:
        """A setting as plain text, with its references filled in; empty when the setting is not there."""
        return self._resolved(key, _DEPTH).value

    def value(self, key: str) -> tuple[Any, str] | None:
        """A setting as it was written (a list in a file, text in a variable) and where; None when it is not there."""
        raw = self._raw.get(key)
        return (raw.value, raw.source) if raw else None

    def table(self, key: str) -> dict[str, tuple[str, str]]:
        """The settings below this key, by the rest of their names: each with its text and where it was found."""
        inside = f"{key}."
        return {
            name.removeprefix(inside): (self.text(name), self._raw[name].source)
            for name in self._raw
            if name.startswith(inside)
        }

    def given(self, key: str) -> bool:
        """Whether somebody has set this key, and it has not only a default."""
        return key in self._raw and self._raw[key].source != _DEFAULT and self._raw[key].value != ""

    @property
    def names_an_api(self) -> bool:
        """Whether the settings say on purpose that there is a Prefect 1 API."""
        by_variable = self.given("backend") and self._raw["backend"].source.endswith(_OF_ENVIRONMENT)
        return by_variable or any(map(self.given, _NAME_AN_API))

    @property
    def left_behind(self) -> bool:
        """Whether Prefect 1's own command has been used here: a backend was chosen, or a login is kept."""
        return self.given("backend") or bool(self._auth)

    @property
    def url(self) -> FoundSetting:
        """The address of the API."""
        return self._resolved("cloud.api", _DEPTH)

    def key(self, url: str) -> FoundSetting | None:
        """The key for the API at this address; tokens of older versions only where there is no key."""
        return self._first(_KEYS) or self._login(url, "api_key") or self._first(_OLDER_KEYS)

    def tenant(self, url: str) -> FoundSetting | None:
        """The tenant's id for the API at this address."""
        return self.get("cloud.tenant_id") or self._login(url, "tenant_id")

    def _first(self, keys: tuple[str, ...]) -> FoundSetting | None:
        return next((found for found in map(self.get, keys) if found), None)

    def _login(self, url: str, name: str) -> FoundSetting | None:
        login = self._auth.get(_host_slug(url))
        value = login.get(name) if isinstance(login, Mapping) else None
        return FoundSetting(str(value), f"{name} in {self._auth_path}") if value else None

    def _resolved(self, key: str, depth: int) -> FoundSetting:
        """A setting with its references filled in; a default that refers to what somebody has set has that source."""
        raw = self._raw.get(key)
        if raw is None or depth == 0:
            return FoundSetting("", _DEFAULT)
        text, source = self._expanded(_text(raw.value)), raw.source
        for _ in range(_DEPTH):
            match = _REFERENCE.search(text)
            if not match:
                break
            other = self._resolved(match[1], depth - 1)
            text = text.replace(match[0], other.value, 1)
            if raw.source == _DEFAULT and other.source != _DEFAULT:  # the last reference is the nearest to the value
                source = other.source
        return FoundSetting(text, source)

    def _expanded(self, text: str) -> str:
        text = _VARIABLE.sub(lambda match: self._environ.get(match[1] or match[2], match[0]), text)
        if text == "~" or text.startswith("~/"):
            text = str(self._home) + text[1:]
        return _unquoted(text)

    def _path(self, text: str) -> Path:
        return Path(self._expanded(text))

    def _keep_secrets(self) -> None:
        """Register all secrets with the log's redaction, whether they are used or not."""
        for key in self._raw:
            if key.endswith(_SECRETS):
                logs.keep_secret(self.text(key))
        for login in self._auth.values():
            if isinstance(login, Mapping):
                logs.keep_secret(str(login.get("api_key") or ""))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unquoted(text: str) -> str:
    """The text without quotes around it, since Prefect reads a value as a Python literal where it is one."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return str(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return text
    return text


def _host_slug(url: str) -> str:
    """The name that Prefect gives to this API's table in auth.toml."""
    slug = re.sub(r"[^-.a-z0-9]+", "-", (urlsplit(url).netloc or url).lower())
    return re.sub(r"-{2,}", "-", slug).strip("-")


def list_of(found: tuple[Any, str] | None) -> tuple[tuple[str, ...], str] | None:
    """A setting that is a list: a list in a file, a Python list as text, or texts with commas; None when it is empty.

    Raises `SettingsError` for anything else.
    """
    if found is None:
        return None
    value, source = found
    items = _items(value, source) if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set) or not all(isinstance(item, str) and item for item in items):
        raise SettingsError(f"{source} is not a list of labels, write it as ['a', 'b'] or a,b")
    return (tuple(items), source) if items else None


def _items(text: str, source: str) -> Any:
    stripped = text.strip()
    if stripped[:1] not in ("[", "(", "{", "'", '"'):
        return [item.strip() for item in stripped.split(",") if item.strip()]
    try:
        value = ast.literal_eval(stripped)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise SettingsError(f"{source} is not a list of labels, write it as ['a', 'b'] or a,b") from error
    return _items(value, source) if isinstance(value, str) else value
