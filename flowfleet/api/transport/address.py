"""Address: the URL of a Prefect API, the credentials that we send there, and the certificates that we trust."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from flowfleet import logs
from flowfleet.api.transport.proxy import by_proxy
from flowfleet.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Address:
    """The URL of an API, the credentials and headers that go with each request, and how its certificate is checked."""

    url: str
    authorization: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: Path | None = None
    insecure: bool = False

    @property
    def shown(self) -> str:
        """The address as it may stand in logs and errors: without user, password, query."""
        scheme, _, rest = self.url.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"

    @property
    def api(self) -> str:
        """The API at this address, in the words of errors."""
        return f"the Prefect API at {self.shown}{self.by_proxy}"

    @property
    def by_proxy(self) -> str:
        """The proxy by which the address is reached, to be put behind it in errors; empty where there is none."""
        return by_proxy(self.url)


def existing(ca_file: Path | None, flags: str) -> Path | None:
    """The CA file; raises `SettingsError`, which names these flags or variables, when it does not exist."""
    if ca_file is not None and not ca_file.exists():
        raise SettingsError(f"the CA file {ca_file} does not exist: correct {flags}")
    return ca_file


def parse_url(url: str, source: str, *, example: str) -> tuple[str, str | None]:
    """The URL without user and password, and these as `user:password`, or None when the URL has none.

    Raises `SettingsError`, which names the `source` of the URL.
    """
    complaint = f"{source} is not the address of a Prefect API: it should look like {example}"
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(complaint) from error
    if parts.scheme not in ("http", "https") or not host:
        raise SettingsError(complaint)
    user = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        logs.keep_secret(unquote(parts.password or ""))
    place = f"[{host}]" if ":" in host else host
    if port is not None:
        place += f":{port}"
    return urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", "")), user
