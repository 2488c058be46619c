"""Login: the user and password of Redis, which every connection asks for when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.credentials import CredentialProvider


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
