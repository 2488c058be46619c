"""GraphQL: requests to a Prefect 1 API as Prefect 1's own client makes them, with an answer for each root field."""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import requests

from flowfleet.api.transport.address import Address
from flowfleet.api.transport.flavour import Disposition, Flavour
from flowfleet.api.transport.session import TRIES, Session
from flowfleet.errors import ApiRejected, ApiUnavailable

#: the prefect version that we speak as: Cloud chooses its rules for old clients by it, and all of 1.x read its states
CORE_VERSION = "1.4.1"
_API_ERROR = "API_ERROR"
#: Prefect Server's message for the same error, to which its gateway gives no code of its own
_INTERNAL = "Unable to complete operation. An internal API error occurred."
#: the message of Server's gateway while a service behind it restarts: this error has no code of its own either, only
#: the one that every error of a state update has too
_GATEWAY = re.compile(r"request to \S+ failed, reason: |invalid json response body at ")
_UNAUTHENTICATED = "UNAUTHENTICATED"
_MALFORMED = "Malformed Authorization header"
_ROOT_FIELD = re.compile(r"\{\s*(?:\w+\s*:\s*)?(\w+)")


@dataclass(frozen=True)
class GraphError:
    """One entry of an answer's `errors`."""

    message: str
    path: tuple[str | int, ...] = ()
    code: str | None = None


class QueryRejected(ApiRejected):
    """An answer with errors and no data at all; `errors` are for callers that know what they mean."""

    def __init__(self, sentence: str, errors: tuple[GraphError, ...]) -> None:
        super().__init__(sentence)
        self.errors = errors


@dataclass(frozen=True)
class Reply:
    """The answer to one document: data by root field (or its alias), None where that field failed, and the errors."""

    data: Mapping[str, Any]
    errors: tuple[GraphError, ...] = field(default=())

    def error_of(self, alias: str) -> GraphError | None:
        """The first error of this root field, or else the first that belongs to no field; None without either."""
        own = (error for error in self.errors if error.path[:1] == (alias,))
        return next(own, next((error for error in self.errors if not error.path), None))


@dataclass
class GraphQL:
    """GraphQL requests over one session; thread-safe, as the session is."""

    session: Session
    #: the tenant's id, sent with each request where there is a key; None until it is known
    tenant: str | None = None

    @property
    def key(self) -> str | None:
        """The key that is sent now, and that runs get too; a secret. None where there is none."""
        kind, _, key = (self.session.authorization or "").partition(" ")
        return key if kind == "Bearer" else None

    @property
    def engine_url(self) -> str:
        """The address as engines get it: with the user and password of our own address; then it is a secret."""
        kind, _, login = (self.session.authorization or "").partition(" ")
        url = self.session.address.url
        if kind != "Basic":
            return url
        user, _, password = base64.b64decode(login).decode("latin-1").partition(":")
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest}"

    def tenant_id(self, ask: Callable[[], str]) -> str:
        """The tenant's id; it is asked for once, where it was not given."""
        if self.tenant is None:
            self.tenant = ask()
        return self.tenant

    def ask(
        self,
        document: str,
        variables: Mapping[str, Any] | None = None,
        *,
        agent: str | None = None,
        seconds: float | None = None,
        tries: int = TRIES,
        fresh_until: float | None = None,
    ) -> Reply:
        """Send one query or mutation, repeated as a whole where the API says "later"; `agent` is the id that signs it.

        Raises `ApiUnavailable`, `KeyRefused`, or `ApiRejected` (of it `QueryRejected` for errors without any data).
        A read that timed out is not repeated here, and `fresh_until` acts, as in `Session.call`.
        """
        match = _ROOT_FIELD.search(document)
        named = match[1] if match else "the query"
        # the variables are JSON within JSON, as Prefect's own client sends them and as some servers want them
        body = {"query": document, "variables": json.dumps(variables)}
        answer = self.session.call(
            "POST",
            "",
            body,
            named=named,
            headers=self._headers(agent),
            seconds=seconds,
            tries=tries,
            fresh_until=fresh_until,
        )
        return self._read(answer, named)

    def _headers(self, agent: str | None) -> dict[str, str]:
        headers = {"X-PREFECT-CORE-VERSION": CORE_VERSION}
        if self.tenant and self.key:
            headers["X-PREFECT-TENANT-ID"] = self.tenant
        if agent:
            headers["X-PREFECT-AGENT-ID"] = agent
        return headers

    def _read(self, answer: Any, named: str) -> Reply:
        if not is_graphql(answer):
            raise self.session.reader.no_api(f"{named} is answered with JSON that is not GraphQL's")
        self.session.reader.proven.set()
        errors = tuple(_errors(answer))
        data = answer.get("data")
        if isinstance(data, Mapping) and data:
            return Reply(data, errors)
        if errors:
            raise QueryRejected(f"{self.session.address.api} refuses {named}: {_reason(answer)[:300]}", errors)
        # GraphQL names each field that was asked for, or says why not: this answer was cut off on its way
        raise ApiUnavailable(f"{self.session.address.api} answers {named} with nothing", answered=True)


def is_graphql(body: Any) -> bool:
    """Whether this JSON is an answer of GraphQL."""
    return isinstance(body, Mapping) and (isinstance(body.get("data"), Mapping) or isinstance(body.get("errors"), list))


def _errors(body: Any) -> Iterator[GraphError]:
    """The entries of `errors`, as far as the JSON has them."""
    entries = body.get("errors") if isinstance(body, Mapping) else None
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, Mapping):
            yield GraphError(str(entry))
            continue
        path, extensions = entry.get("path"), entry.get("extensions")
        code = extensions.get("code") if isinstance(extensions, Mapping) else None
        yield GraphError(
            str(entry.get("message") or "no reason given"),
            tuple(path) if isinstance(path, Sequence) and not isinstance(path, str) else (),
            str(code) if code else None,
        )


def _reason(body: Any) -> str:
    if not is_graphql(body):
        return "what answers is no GraphQL"
    return "; ".join(error.message for error in _errors(body)) or "no reason given"


def _disposition(answer: requests.Response) -> Disposition:
    if b'"errors"' not in answer.content:  # so most answers are not parsed here, and some of them are large
        return Disposition.PLAIN
    try:
        errors = list(_errors(answer.json()))
    except ValueError:
        return Disposition.PLAIN
    if any(error.code == _UNAUTHENTICATED or _MALFORMED in error.message for error in errors):
        return Disposition.REFUSED
    if any(_passing(error) for error in errors):
        return Disposition.LATER
    return Disposition.PLAIN


def _passing(error: GraphError) -> bool:
    return (
        error.code == _API_ERROR
        or _API_ERROR in error.message
        or _INTERNAL in error.message
        or _GATEWAY.match(error.message) is not None
    )


def _hint(address: Address) -> str:
    if address.shown.rstrip("/").endswith("/api"):
        return ", the address of a Prefect 1 API has no /api at its end, and one of Prefect 3 is no Prefect 1"
    return ", a Prefect Server is usually at http://HOST:4200"


PREFECT1 = Flavour(
    key_remedy="set PREFECT__CLOUD__API_KEY or FLOWFLEET_KEY_FILE",
    ca_remedy="give its authority by --ca-file",
    csrf=False,
    own=is_graphql,
    reason=_reason,
    hint=_hint,
    disposition=_disposition,
)
