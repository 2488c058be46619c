"""Login: the user and password of Redis, which every connection asks for when it is opened."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from redis.credentials import CredentialProvider

from flowfleet.errors import SettingsError
from flowfleet.logs import redact_url


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
