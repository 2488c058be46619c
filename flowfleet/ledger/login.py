"""Login: user and password of Redis, asked for anew by every connection that is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.credentials import CredentialProvider


class Login(CredentialProvider):
    """What the client library asks before it says AUTH; `find` gives the address of Redis with the login of now."""

    def __init__(self, find: Callable[[], str]) -> None:
        self._find = find

    def get_credentials(self) -> Any:  # the base class knows no empty one, for which the client says no AUTH
        """User and password, or the password alone, or an empty tuple where Redis asks for none."""
        parts = urlsplit(self._find())
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if user:
            return (user, password)
        return (password,) if password else ()


def without_login(url: str) -> str:
    """The address alone. By hand, since `urlunsplit` takes the slashes off an address that has no host."""
    scheme, _, rest = url.partition("://")
    place = urlsplit(url).netloc
    return f"{scheme}://{place.rpartition('@')[2]}{rest[len(place) :]}"
