"""Flavour: what a session must know of one of the two Prefect APIs: remedies for errors, and the form of responses."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import requests

from flowfleet.api.transport.address import Address


class Disposition(Enum):
    """The disposition of a response: plain, to be repeated later, or a refusal of our credentials."""

    PLAIN = "plain"
    #: the API has no room, or a part behind it does not answer: ask again
    LATER = "later"
    #: the API refuses our credentials
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """What is special to one of the two Prefect APIs."""

    #: what to do about refused credentials
    key_remedy: str
    #: what to do about a certificate that is not trusted
    ca_remedy: str
    #: whether the API may ask for CSRF tokens with requests that change something
    csrf: bool
    #: whether this JSON of a refusal comes from Prefect itself, and not from something in front of it
    own: Callable[[Any], bool]
    #: the API's reason for a refusal, from the JSON of the response
    reason: Callable[[Any], str]
    #: what is most often wrong with an address that is no API, to be appended to a sentence
    hint: Callable[[Address], str]
    #: the disposition that the body of a response tells, where its status says that all is well
    disposition: Callable[[requests.Response], Disposition] = lambda _answer: Disposition.PLAIN


def _own(body: Any) -> bool:
    """Whether this is an error of Prefect 3: its routes give a `detail`, its database errors an `exception_message`."""
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
