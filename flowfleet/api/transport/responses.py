"""Responses: what one HTTP response means, or its absence: the JSON that was asked for, or which of our errors."""

import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import requests
import urllib3

from flowfleet.api.transport.address import Address
from flowfleet.api.transport.connection import causes
from flowfleet.api.transport.flavour import Disposition, Flavour
from flowfleet.api.transport.proxy import proxy_of
from flowfleet.errors import ApiError, ApiMaintenance, ApiRejected, ApiUnavailable, KeyRefused

CONNECT_SECONDS = 5.0
#: statuses that mean "later"; SQLite servers give 503 at once when two writers meet
_LATER = frozenset({408, 429, 502, 503})
#: the header of an answer by which a Prefect API says that it is in maintenance (read in prefect 3.9.1)
MAINTENANCE = "Prefect-Maintenance"
_REFUSALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
#: stands for the content of a response that is no JSON
_NO_JSON = object()


class ResponseRefused(ApiRejected):
    """A response with a definite 4xx; `status` and `detail` are for callers that know what they mean."""

    def __init__(self, sentence: str, status: int, detail: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.detail = detail


class NotFound(ResponseRefused):
    """A 404: what the path names does not exist."""


class Conflict(ResponseRefused):
    """A 409: what was to be made exists already."""


_REFUSED: Mapping[int, type[ResponseRefused]] = {HTTPStatus.NOT_FOUND: NotFound, HTTPStatus.CONFLICT: Conflict}


class CredentialsRefused(KeyRefused):
    """A response that refuses our credentials; `body` is its JSON, by which callers know who has answered."""

    def __init__(self, sentence: str, body: Any) -> None:
        super().__init__(sentence)
        self.body = body


@dataclass
class ResponseReader:
    """The reader of the responses from one address: returns their JSON, or raises the error that they mean.

    It knows the flavour of the API at the address, and whether a Prefect API has ever answered there.
    """

    address: Address
    flavour: Flavour
    #: set once a Prefect API has answered here: any other answer since is from a proxy, or from an ingress without
    #: a server behind it
    proven: threading.Event = field(default_factory=threading.Event, init=False)

    def disposition(self, answer: requests.Response) -> Disposition:
        """The disposition of a response: plain, to be repeated later, or a refusal of our credentials."""
        return Disposition.REFUSED if answer.status_code in _REFUSALS else self.flavour.disposition(answer)

    def put_off(self, named: str, answer: requests.Response, disposition: Disposition) -> ApiUnavailable | None:
        """The error for a response that means "later", with the time that it names; None for a definite response."""
        if answer.status_code in _LATER and answer.headers.get(MAINTENANCE, "").lower() == "true":
            return ApiMaintenance(
                f"{self.address.api} says that it is in maintenance, and answers {_status(answer.status_code)} to "
                f"{named}",
                retry_after_seconds=_retry_after(answer),
            )
        by_itself = disposition is Disposition.LATER
        if answer.status_code not in _LATER and not by_itself:
            return None
        answers = "with an error of its own" if by_itself else _status(answer.status_code)
        return ApiUnavailable(
            f"{self.address.api} answers {answers} to {named}: try again later",
            answered=by_itself,
            retry_after_seconds=_retry_after(answer),
        )

    def content(self, named: str, answer: requests.Response, disposition: Disposition) -> Any:
        """The JSON of a definite response, None for an empty one.

        Raises `CredentialsRefused` (401, 403), `ResponseRefused` (any other 4xx) or `ApiUnavailable`.
        """
        status = answer.status_code
        if disposition is Disposition.REFUSED:
            raise self._credentials_refused(named, answer)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ApiUnavailable(
                f"{self.address.api} failed with {_status(status)} at {named}",
                # Prefect says 500 when this very question breaks it; a proxy says 504 for a server that hangs
                answered=status == HTTPStatus.INTERNAL_SERVER_ERROR,
            )
        body = _json(answer)
        if status >= HTTPStatus.BAD_REQUEST:
            raise self._refused(named, status, body)
        if not answer.content:
            return None
        if body is _NO_JSON:
            raise self._unreadable(named, answer)
        return body

    def _credentials_refused(self, named: str, answer: requests.Response) -> CredentialsRefused:
        body, status = _json(answer), answer.status_code
        by_status = status >= HTTPStatus.BAD_REQUEST  # GraphQL refuses in the body of a 200
        said = f"{_status(status)} to {named}" if by_status else self.flavour.reason(body)[:300]
        return CredentialsRefused(
            f"{self.address.api} refuses our credentials ({said}), {self.flavour.key_remedy}",
            body,
        )

    def _refused(self, named: str, status: int, body: Any) -> ApiError:
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return ApiUnavailable(f"{self.address.api} cannot be reached: the proxy asks for a login ({status})")
        if status == HTTPStatus.NOT_FOUND and self.proven.is_set() and not self.flavour.own(body):
            return ApiUnavailable(
                f"{self.address.api} is not there now: {named} is answered with {_status(status)}, "
                "but not in Prefect's words"
            )
        detail = "no JSON" if body is _NO_JSON else self.flavour.reason(body)[:300]
        # where no question was ever answered, the address itself may be wrong
        hint = self.hint() if status == HTTPStatus.NOT_FOUND and not self.proven.is_set() else ""
        kind = _REFUSED.get(status, ResponseRefused)
        return kind(f"{self.address.api} refuses {named} with {_status(status)}: {detail}{hint}", status, detail)

    def _unreadable(self, named: str, answer: requests.Response) -> ApiError:
        said = answer.headers.get("Content-Type", "something")
        if "json" in said.lower():
            # cut off, or garbled on the way: a response that calls itself JSON may well be the API's
            return ApiUnavailable(f"{self.address.api} answers {named} with JSON that cannot be read")
        return self.no_api(f"{named} is answered with {said} instead of JSON")

    def silence(self, error: requests.exceptions.RequestException, seconds: float) -> ApiError:
        """The error for no response within the given seconds, or for a connection that failed."""
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error)):
            return ApiRejected(f"the certificate of {self.address.api} is not trusted, {self.flavour.ca_remedy}")
        proxy = proxy_of(self.address.url)
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
            if proxy:  # our own address was read already
                return ApiRejected(f"{self.address.api} cannot be reached: no such proxy can be used, {proxy.remedy}")
            return ApiRejected(f"{self.address.shown} is not an address of a Prefect API")
        remedy = f"; {proxy.remedy}" if proxy and isinstance(error, requests.exceptions.ProxyError) else ""
        return ApiUnavailable(
            f"{self.address.api} cannot be reached: {_reason(error, seconds)}{remedy}",
            timed_out=isinstance(error, requests.exceptions.ReadTimeout),
        )

    def no_api(self, what: str) -> ApiError:
        """The error for a response that no Prefect API gives.

        The address is wrong; where an API has answered before, something in front of it answers for now.
        """
        if self.proven.is_set():
            return ApiUnavailable(f"{self.address.api} is not there now: {what}")
        return ApiRejected(f"{self.address.shown}{self.address.by_proxy} is not a Prefect API: {what}{self.hint()}")

    def hint(self) -> str:
        """What is most often wrong with an address that is no API."""
        return self.flavour.hint(self.address)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _json(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return _NO_JSON


def _retry_after(answer: requests.Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _reason(error: BaseException, seconds: float) -> str:
    """Why there was no response, without the address (which may hold a password)."""
    if isinstance(error, requests.exceptions.ReadTimeout):
        return f"no answer within {seconds:g} s"
    words = [cause.strerror for cause in causes(error) if isinstance(cause, OSError) and cause.strerror]
    if words:
        return words[0]
    if any(isinstance(cause, urllib3.exceptions.ConnectTimeoutError) for cause in causes(error)):
        return f"no connection within {CONNECT_SECONDS:g} s"
    # what a proxy answers that is asked for a tunnel has no number of its own
    told = [str(cause) for cause in causes(error) if type(cause) is OSError]
    return told[0] if told else type(error).__name__
