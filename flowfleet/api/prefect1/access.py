"""Access: a Prefect 1 API's address, key and tenant: by flag, FLOWFLEET_*, then as Prefect 1's command finds them."""

import base64
import uuid
from dataclasses import dataclass
from urllib.parse import urlsplit

from flowfleet import logs
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.api.transport.address import Address, existing, parse_url
from flowfleet.errors import SettingsError
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import Found, Layer
from flowfleet.settings.option import Origin

_EXAMPLE = "http://HOST:4200"
_CLOUD = "api.prefect.io"
_BACKENDS = ("server", "cloud")
#: tokens of older versions, which hold only where there is no key
_OLDER_KEYS = ("cloud.agent.auth_token", "cloud.auth_token", "cloud.agent.api_token", "cloud.api_token")
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
    named = Found(settings.api, Origin("flag", "--api")) if settings.api else found_url(found)
    bare, user = parse_url(named.value, named.source, example=_EXAMPLE)
    theirs = layer(found, bare)
    own_key = theirs("key")
    key = settings.key or settings.token or (own_key.value if own_key else None)
    backend = _server_backend(settings, found, url=bare, key=key)
    if backend == "cloud" and not key:
        raise SettingsError(_NO_KEY.format(shown=bare))
    logs.keep_secret(key)
    address = Address(
        url=bare, authorization=_authorization(key, user), ca_file=existing(settings.ca_file, "--ca-file")
    )
    return Access(address=address, tenant=_tenant(settings, theirs("tenant_id")), server_backend=backend)


def layer(found: Prefect1Settings, url: str) -> Layer:
    """Prefect 1's own address, and its own key and tenant for the API at this one, as a layer of settings."""

    def of_prefect(name: str) -> Found | None:
        if name == "key":
            older = (each for each in map(found.get, _OLDER_KEYS) if each)
            return found.get("cloud.api_key") or found.login(url, "api_key") or next(older, None)
        if name == "tenant_id":
            return found.get("cloud.tenant_id") or found.login(url, "tenant_id")
        return found_url(found) if name == "api" else None

    return of_prefect


def found_url(found: Prefect1Settings) -> Found:
    """The address that Prefect 1's own settings name, and where they name it."""
    of_server = not found.given("backend") and _means_server(found)
    return (of_server and found.get("server.endpoint")) or found.resolved("cloud.api")


def _means_server(found: Prefect1Settings) -> bool:
    """Whether the settings describe a Prefect Server and no Cloud, though none of them says which to use."""
    of_cloud = any(map(found.given, ("cloud.api", "cloud.endpoint", "cloud.api_key")))
    return not of_cloud and any(map(found.given, ("server.host", "server.port", "server.endpoint")))


def _server_backend(settings: CommonSettings, found: Prefect1Settings, *, url: str, key: str | None) -> str:
    if found.given("backend"):
        chosen = found.get("backend")
        if chosen is None or chosen.value not in _BACKENDS:
            source, value = (chosen.source, chosen.value) if chosen else ("backend", "")
            raise SettingsError(f"{source} cannot be {value!r}: use server or cloud")
        return str(chosen.value)
    # Prefect's own default is Cloud, and it ends there without a key: an address that is not Cloud's tells more
    named = bool(settings.api) or found.given("cloud.api") or _means_server(found)
    return "server" if not key and named and urlsplit(url).hostname != _CLOUD else "cloud"


def _tenant(settings: CommonSettings, theirs: Found | None) -> str | None:
    tenant = Found(settings.tenant_id, Origin("flag", "--tenant-id")) if settings.tenant_id else theirs
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
