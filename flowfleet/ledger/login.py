"""Login: user and password of Redis, which each connection asks for when it is opened, and whom we trust there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from redis.credentials import CredentialProvider

from flowfleet.errors import LedgerUnusable, SettingsError
from flowfleet.logs import redact_url

#: the scheme of an address whose connections are encrypted
TLS = "rediss"
#: in the query of an address, as the client library names it
_AUTHORITY = "ssl_ca_certs"


class Login(CredentialProvider):
    """Provider that the client library asks before AUTH; `find` gives the address of Redis with the current login."""

    def __init__(self, find: Callable[[], str]) -> None:
        self._find = find

    def get_credentials(self) -> Any:  # the base class types no empty tuple, for which the client sends no AUTH
        """User and password, or the password alone, or an empty tuple where Redis asks for none."""
        parts = urlsplit(self._find())
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if user:
            return (user, password)
        return (password,) if password else ()


def with_authority(url: str, ca_file: Path | None) -> str:
    """The address with the certificates by which a server of TLS is known; None = those that this host trusts."""
    if ca_file is None or urlsplit(url).scheme.partition("+")[0] != TLS:
        return url
    parts = urlsplit(url)
    named = [(name, value) for name, value in parse_qsl(parts.query) if name != _AUTHORITY]
    return urlunsplit(parts._replace(query=urlencode([*named, (_AUTHORITY, str(ca_file.absolute()))])))


def tls_of(parts: SplitResult) -> dict[str, Any]:
    """The arguments of the client library for a server of TLS: it has to prove its name."""
    authority = dict(parse_qsl(parts.query)).get(_AUTHORITY)
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **({_AUTHORITY: authority} if authority else {})}


def database_of(text: str) -> int:
    """The number of the database in an address, where it has none 0. Raises `LedgerUnusable` for what is no number."""
    if text and not (text.isascii() and text.isdecimal()):
        # not shown: nobody can tell that it is no part of a password
        raise LedgerUnusable(
            "the Redis address of --redis or FLOWFLEET_REDIS names a database that is no number: use "
            "redis://HOST:PORT/DB, and for DB a number, which is 0 to 15 on most servers"
        )
    return int(text or 0)


def without_login(url: str) -> str:
    """The address without the login. Cut by hand: `urlunsplit` takes the slashes off an address that has no host."""
    scheme, _, rest = url.partition("://")
    place = urlsplit(url).netloc
    return f"{scheme}://{place.rpartition('@')[2]}{rest[len(place) :]}"


def with_password(url: str, password: str | None) -> str:
    """The address with the password that was given apart from it, unless it has its own."""
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None
    except ValueError:
        # what is wrong with it would quote the password
        raise SettingsError(f"The Redis address {redact_url(url)} cannot be read.") from None
    if not password or has_password:
        return url
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host if at else parts.netloc}"))


def without_password(url: str, password: str | None) -> str:
    """The address as it was given: without the password that came apart from it, but with its user."""
    parts = urlsplit(url)
    if not password or parts.password != quote(password, safe=""):
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}" if parts.username else host))
