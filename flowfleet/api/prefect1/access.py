"""Access: a Prefect 1 API's address, key and tenant: by flag, FLOWFLEET_*, then as Prefect 1's command finds them."""

from __future__ import annotations

import base64
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from flowfleet import logs
from flowfleet.api.found import FoundSetting
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.api.transport.address import Address, parse_url
from flowfleet.errors import SettingsError
from flowfleet.settings.common import CommonSettings

_EXAMPLE = "http://HOST:4200"
_CLOUD = "api.prefect.io"
_BACKENDS = ("server", "cloud")
_NO_KEY = (
    "You have not set an API key for authentication at {shown}: set PREFECT__CLOUD__API_KEY or FLOWFLEET_KEY_FILE, or "
    "sign in by `prefect auth login --key KEY`; for a Prefect Server of your own set PREFECT__BACKEND=server"
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """The address with its credentials, the tenant, and which kind of Prefect 1 it is."""

    address: Address
    #: the tenant's id where one is set; None: the API tells the tenant of the key, or the server's first
    tenant: str | None
    #: `server` or `cloud`, in Prefect 1's own words
    server_backend: str


def find_access(settings: CommonSettings, found: Prefect1Settings) -> Access:
    """Find address, key and tenant, each in the nearest place that has it; raises `SettingsError`."""
    named = FoundSetting(settings.api, "--api") if settings.api else found_url(found)
    bare, user = parse_url(named.value, named.source, example=_EXAMPLE)
    key = settings.key or settings.token or _value(found.key(bare))
    backend = _server_backend(settings, found, url=bare, key=key)
    if backend == "cloud" and not key:
        raise SettingsError(_NO_KEY.format(shown=bare))
    logs.keep_secret(key)
    address = Address(url=bare, authorization=_authorization(key, user), ca_file=_ca_file(settings))
    return Access(address=address, tenant=_tenant(settings, found, bare), server_backend=backend)


def found_url(found: Prefect1Settings) -> FoundSetting:
    """The address that Prefect 1's own settings name, and where they name it."""
    of_server = not found.given("backend") and _means_server(found)
    return (of_server and found.get("server.endpoint")) or found.url


def _means_server(found: Prefect1Settings) -> bool:
    """Whether the settings describe a Prefect Server and no Cloud, though none of them says which to use."""
    of_cloud = any(map(found.given, ("cloud.api", "cloud.endpoint", "cloud.api_key")))
    return not of_cloud and any(map(found.given, ("server.host", "server.port", "server.endpoint")))


def _server_backend(settings: CommonSettings, found: Prefect1Settings, *, url: str, key: str | None) -> str:
    if found.given("backend"):
        chosen = found.get("backend")
        if chosen is None or chosen.value not in _BACKENDS:
            source = chosen.source if chosen else "backend"
            raise SettingsError(f"{source} cannot be {chosen.value if chosen else ''!r}, use server or cloud")
        return chosen.value
    # Prefect's own default is Cloud, and it ends there without a key: an address that is not Cloud's tells more
    named = bool(settings.api) or found.given("cloud.api") or _means_server(found)
    return "server" if not key and named and urlsplit(url).hostname != _CLOUD else "cloud"


def _tenant(settings: CommonSettings, found: Prefect1Settings, url: str) -> str | None:
    tenant = FoundSetting(settings.tenant_id, "--tenant-id") if settings.tenant_id else found.tenant(url)
    if tenant is None:
        return None
    try:
        return str(uuid.UUID(tenant.value))
    except ValueError as error:
        raise SettingsError(
            f"{tenant.source} cannot be {tenant.value!r}: it must be a tenant's id such as "
            "01234567-89ab-cdef-0123-456789abcdef, and `prefect auth list-tenants` shows yours"
        ) from error


def _authorization(key: str | None, user: str | None) -> str | None:
    if user is None:
        return f"Bearer {key}" if key else None
    # as Prefect 1's client does, which engines use too: the login in the address wins, and is latin-1 (requests 2.x)
    try:
        login = user.encode("latin-1")
    except UnicodeEncodeError as error:
        raise SettingsError(
            "the user or password in the address of the Prefect API has characters beyond latin-1, which Prefect 1's "
            "engines cannot send: choose others"
        ) from error
    return "Basic " + base64.b64encode(login).decode()


def _ca_file(settings: CommonSettings) -> Path | None:
    path = settings.ca_file
    if path is not None and not path.exists():
        raise SettingsError(f"the CA file {path} does not exist, correct --ca-file")
    return path


def _value(found: FoundSetting | None) -> str | None:
    return found.value if found else None
