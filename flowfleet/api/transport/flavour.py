"""Dialect: what a session must know of the Prefect API at its other end: its remedies, and how its own answers look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import requests

from flowfleet.api.transport.address import Address


class Disposition(Enum):
    """What an answer says beside its content."""

    PLAIN = "plain"
    #: it has no room, or a part behind it does not answer: ask again
    LATER = "later"
    #: it refuses our credentials
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One Prefect API's ways."""

    #: what to do about refused credentials
    key_remedy: str
    #: what to do about a certificate that is not trusted
    ca_remedy: str
    #: it may ask for CSRF tokens with requests that change something
    csrf: bool
    #: whether it is Prefect itself that says no, in this JSON
    own: Callable[[Any], bool]
    #: its reason for a no, from the JSON of the answer
    reason: Callable[[Any], str]
    #: what is most often wrong with an address that is no API, to be appended to a sentence
    hint: Callable[[Address], str]
    #: what it says in the body of an answer whose status says that all is well
    disposition: Callable[[requests.Response], Disposition] = lambda _answer: Disposition.PLAIN


def _own(body: Any) -> bool:
    """`detail` by its routes, `exception_message` by its database."""
    return isinstance(body, dict) and any(isinstance(body.get(key), str) for key in ("detail", "exception_message"))


def _reason(body: Any) -> str:
    if not isinstance(body, dict):
        return str(body)
    # of a validation error only place and complaint: the rest repeats what we sent
    entries = body.get("exception_detail")
    if isinstance(entries, list) and entries:
        return ", ".join(
            f"{'.'.join(map(str, entry.get('loc', ())))}: {entry.get('msg')}"
            for entry in entries[:3]
            if isinstance(entry, dict)
        )
    return str(body.get("detail") or body.get("exception_message") or "no reason given")


def _hint(address: Address) -> str:
    return "" if address.shown.rstrip("/").endswith("/api") else ", its address usually ends in /api"


PREFECT3 = Flavour(
    key_remedy="set PREFECT_API_KEY or PREFECT_API_AUTH_STRING",
    ca_remedy="give its authority by --ca-file or PREFECT_API_SSL_CERT_FILE",
    csrf=True,
    own=_own,
    reason=_reason,
    hint=_hint,
)
