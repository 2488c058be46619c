"""Access: a Prefect 3 API's address and credentials: by flag, FLOWFLEET_*, then as Prefect itself finds them."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path

from flowfleet import logs
from flowfleet.api.prefect3.settings import prefect_settings
from flowfleet.api.transport.address import Address, existing, parse_url
from flowfleet.errors import SettingsError
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import Found, Layer, refresh
from flowfleet.settings.option import Origin

#: headers that the client sets itself, so that no setting may
_PROTECTED = frozenset({"user-agent", "prefect-csrf-token", "prefect-csrf-client"})
#: settings that are about this machine's server and command, of no use to a flow run
_NOT_FOR_RUNS = ("PREFECT_SERVER_", "PREFECT_UI_", "PREFECT_CLI_", "PREFECT_API_DATABASE_")
#: settings of Prefect that are secrets, and headers that carry one
_SECRET_SETTINGS = ("_KEY", "_AUTH_STRING", "_PASSWORD", "_TOKEN", "_SECRET")
_SECRET_HEADER = re.compile(r"(?i)auth|key|token|secret|cookie|password")
#: Prefect's settings by the names of our fields, in the order in which Prefect takes them
_OWN = {"api": ("PREFECT_API_URL",), "key": ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY")}
_NOT_PASSED = frozenset({"PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_HOME"})


class AccessSource:
    """The source of address and credentials: they are found at the start, and again when a key was replaced."""

    def __init__(self, settings: CommonSettings, environ: Mapping[str, str], folder: Path, home: Path) -> None:
        self._settings, self._environ, self._folder, self._home = settings, environ, folder, home
        self._for_runs: dict[str, str] = {}
        self.address = self._find(settings)

    def look(self) -> Address:
        """Read secret files and Prefect's own settings again; raises `SettingsError`."""
        return self._find(refresh(self._settings))

    def for_runs(self) -> Mapping[str, str]:
        """The settings that a run's engine gets, with the present credentials."""
        return self._for_runs

    def _find(self, settings: CommonSettings) -> Address:
        found = prefect_settings(self._environ, self._folder, self._home)
        _keep_secrets(found)
        address = find_address(settings, self._environ, found)
        logs.keep_secret((address.authorization or "").partition(" ")[2])
        for name, value in address.headers.items():
            if _SECRET_HEADER.search(name):
                logs.keep_secret(value)
        self._for_runs = _for_runs(found, address, settings)
        return address


def _keep_secrets(found: Mapping[str, Found]) -> None:
    """Register the secrets in Prefect's own settings with the log's redaction, whether they are used or not."""
    for name, item in found.items():
        if name.endswith(_SECRET_SETTINGS):
            logs.keep_secret(item.value)
            # in user:password the second half is the secret
            logs.keep_secret(item.value.partition(":")[2])


def find_address(settings: CommonSettings, environ: Mapping[str, str], found: Mapping[str, Found]) -> Address:
    """Find address, credentials and CA file, each in the nearest place that has it; raises `SettingsError`."""
    url, source = settings.api, "--api"
    if not url and "PREFECT_API_URL" in found:
        url, source = found["PREFECT_API_URL"].value, f"PREFECT_API_URL ({found['PREFECT_API_URL'].source})"
    if not url:
        raise no_address()
    url, user = parse_url(url, source, example="http://HOST:4200/api, or that of Prefect 1 like http://HOST:4200")
    return Address(
        url=url,
        authorization=_authorization(settings, found, user),
        headers=_custom_headers(found),
        ca_file=_ca_file(settings, environ, found),
        insecure=_text(found, "PREFECT_API_TLS_INSECURE_SKIP_VERIFY").lower() in ("1", "true", "yes", "on", "t", "y"),
    )


def no_address() -> SettingsError:
    """The error for settings that name no API."""
    return SettingsError(
        "no Prefect API is set: give its address by --api http://HOST:4200/api, by PREFECT_API_URL, or by "
        "`prefect config set PREFECT_API_URL=…`; that of Prefect 1 by --api http://HOST:4200 or PREFECT__CLOUD__API"
    )


def layer(environ: Mapping[str, str]) -> Layer:
    """Prefect 3's own address and credentials in this folder, as a layer of settings."""

    def of_prefect(name: str) -> Found | None:
        found = prefect_settings(environ, Path.cwd(), home_of(environ)) if name in _OWN else {}
        own = next((own for own in _OWN.get(name, ()) if own in found), None)
        return Found(found[own].value, Origin("prefect", f"{own}, {found[own].source}")) if own else None

    return of_prefect


def home_of(environ: Mapping[str, str]) -> Path:
    """The home folder of this user: HOME of the environment, else the system's."""
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def _text(found: Mapping[str, Found], name: str) -> str:
    return found[name].value if name in found else ""


def _authorization(settings: CommonSettings, found: Mapping[str, Found], user: str | None) -> str | None:
    """The `Authorization` header: Bearer for a key, Basic for a server's auth string or the user in the address."""
    key = settings.key or settings.token
    auth_string = _text(found, "PREFECT_API_AUTH_STRING") or user
    if not key and not auth_string:
        key = _text(found, "PREFECT_API_KEY")
    if key:
        return f"Bearer {key}"
    if auth_string:
        return "Basic " + base64.b64encode(auth_string.encode()).decode()
    return None


def _custom_headers(found: Mapping[str, Found]) -> dict[str, str]:
    text = _text(found, "PREFECT_CLIENT_CUSTOM_HEADERS")
    if not text:
        return {}
    complaint = 'PREFECT_CLIENT_CUSTOM_HEADERS must be a JSON table of header names and values, such as {"X-Team": "a"}'
    try:
        headers = json.loads(text)
    except ValueError as error:
        raise SettingsError(complaint) from error
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise SettingsError(complaint)
    return {name: value for name, value in headers.items() if name.lower() not in _PROTECTED}


def _ca_file(settings: CommonSettings, environ: Mapping[str, str], found: Mapping[str, Found]) -> Path | None:
    text = _text(found, "PREFECT_API_SSL_CERT_FILE") or environ.get("SSL_CERT_FILE", "")
    return existing(settings.ca_file or (Path(text) if text else None), "--ca-file or PREFECT_API_SSL_CERT_FILE")


def _for_runs(found: Mapping[str, Found], address: Address, settings: CommonSettings) -> dict[str, str]:
    """The settings that a run's engine gets, since the engine starts in a folder where none of these files are."""
    passed = {
        name: item.value
        for name, item in found.items()
        if not name.startswith(_NOT_FOR_RUNS) and name not in _NOT_PASSED
    }
    passed["PREFECT_API_URL"] = address.url
    if settings.key or settings.token:
        passed["PREFECT_API_KEY"] = str(settings.key or settings.token)
        passed.pop("PREFECT_API_AUTH_STRING", None)
    elif (address.authorization or "").startswith("Basic "):
        passed["PREFECT_API_AUTH_STRING"] = base64.b64decode(str(address.authorization)[6:]).decode()
    if address.ca_file:
        passed["PREFECT_API_SSL_CERT_FILE"] = str(address.ca_file.absolute())
    return passed
