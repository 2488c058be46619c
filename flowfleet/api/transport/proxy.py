"""Proxy: the proxy that the variables of this host name for an address, as errors may show it."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies, select_proxy


@dataclass(frozen=True)
class NamedProxy:
    """The proxy by which requests to an address go."""

    #: its address, without user and password
    shown: str
    #: the variable that names it; empty where the system does
    variable: str
    #: the host that is asked by it
    host: str

    def __str__(self) -> str:
        return f"the proxy {self.shown}" + (f" of {self.variable}" if self.variable else "")

    @property
    def remedy(self) -> str:
        """What can be done about it."""
        return f"correct {self.variable or 'it'}, or name {self.host} in no_proxy"


def proxy_of(url: str) -> NamedProxy | None:
    """The proxy by which `requests` reaches this URL; None = it goes there itself."""
    found = select_proxy(url, get_environ_proxies(url, None))
    if not found:
        return None
    parts = urlsplit(url)
    names = [name for each in (parts.scheme, "all") for name in (f"{each}_proxy", f"{each}_proxy".upper())]
    variable = next((name for name in names if os.environ.get(name) == found), "")
    # cut by hand, since it may be no address at all; a login ends at the last @
    scheme = f"{found.partition('://')[0]}://" if "://" in found else ""
    place = found[len(scheme) :].rpartition("@")[2]
    return NamedProxy(f"{scheme}{place}", variable, parts.hostname or "its host")


def by_proxy(url: str) -> str:
    """The proxy by which this URL is reached, to be put behind the URL in errors; empty where there is none."""
    proxy = proxy_of(url)
    return f" (by {proxy})" if proxy else ""
