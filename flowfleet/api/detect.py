"""Detect: which of the two Prefect APIs answers at an address, found by one question to each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import requests

from flowfleet.api.prefect1.graphql import GraphQL, QueryRejected, is_graphql
from flowfleet.api.transport.responses import CredentialsRefused, ResponseRefused
from flowfleet.api.transport.session import ASKED_TRIES, Session
from flowfleet.errors import ApiError, ApiRejected, ApiUnavailable, KeyRefused, SettingsError

#: how long an answer may take; servers answer both questions from memory
_SECONDS = 10.0


class NotThere(ApiRejected):
    """Neither Prefect API is at the address that was asked."""


class Detection(Enum):
    """What the answer to one question shows."""

    YES = "it is"
    NO = "something else answers"
    AWAY = "nothing answers"
    REFUSED = "our credentials are refused, by whatever it is"


@dataclass(frozen=True)
class ProbeResult:
    """The outcome of one question."""

    detection: Detection
    error: ApiError | None = None

    @property
    def no_line(self) -> bool:
        """Whether no answer came at all: there was no connection, or it broke, or the time ran out."""
        return self.error is not None and isinstance(self.error.__cause__, requests.exceptions.RequestException)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One Prefect API that may be at an address, and the question that shows whether it is there."""

    backend: str
    #: the API's name and the question, in words for error texts
    name: str
    question: str
    #: the address, as it may be shown
    shown: str
    #: the proxy by which it is reached, to be put behind the address
    by_proxy: str
    #: asks the question; False, or an `ApiRejected`, where something else answers
    answered: Callable[[], bool]

    def ask(self) -> ProbeResult:
        """Ask the question, and tell what the answer shows."""
        try:
            return ProbeResult(Detection.YES if self.answered() else Detection.NO)
        except KeyRefused as error:
            return ProbeResult(Detection.REFUSED, error)
        except ApiUnavailable as error:
            return ProbeResult(Detection.AWAY, error)
        except ApiRejected as error:
            if isinstance(error.__cause__, requests.exceptions.RequestException):
                raise  # no trusted certificate, or no address at all: the other question would meet the same
            return ProbeResult(Detection.NO, error)


def prefect3(session: Session, *, tries: int = ASKED_TRIES) -> Candidate:
    """The candidate for Prefect 3, which tells its version, or refuses it to us with an error in its own form."""

    def answered() -> bool:
        try:
            return isinstance(session.get("/admin/version", seconds=_SECONDS, tries=tries), str)
        except CredentialsRefused as error:
            if not (isinstance(error.body, dict) and "exception_message" in error.body):
                raise
        return True

    return Candidate(
        backend="prefect3",
        name="Prefect 3",
        question="GET /admin/version",
        shown=session.address.shown,
        by_proxy=session.address.by_proxy,
        answered=answered,
    )


def prefect1(graphql: GraphQL, *, tries: int = ASKED_TRIES) -> Candidate:
    """The candidate for Prefect 1, which answers `hello`; any answer in GraphQL, errors too, shows that it is there."""

    def answered() -> bool:
        try:
            graphql.ask("query { hello }", seconds=_SECONDS, tries=tries)
        except QueryRejected:
            return True
        except CredentialsRefused as error:
            if not is_graphql(error.body):
                raise
        return True

    return Candidate(
        backend="prefect1",
        name="Prefect 1",
        question="POST {query {hello}}",
        shown=graphql.session.address.shown,
        by_proxy=graphql.session.address.by_proxy,
        answered=answered,
    )


def choose(candidates: Sequence[Candidate], *, hint: Callable[[], str] = lambda: "") -> str:
    """The backend of the candidate that answers.

    Raises `ApiUnavailable` where waiting may help, and `ApiRejected` with the `hint` where no candidate is there.
    Where both answer, at two addresses, nothing says which is meant: that is a `SettingsError`.
    """
    results: list[tuple[Candidate, ProbeResult]] = []
    one_place = len({candidate.shown for candidate in candidates}) == 1
    for candidate in candidates:
        found = candidate.ask()
        results.append((candidate, found))
        if one_place and (found.detection is Detection.YES or found.no_line):
            break  # both questions go to this address, so the other one can tell nothing more
    there = [candidate for candidate, found in results if found.detection is Detection.YES]
    if len(there) > 1:
        places = " and ".join(f"{candidate.name} at {candidate.shown}" for candidate in there)
        flags = " or ".join(f"--backend {candidate.backend}" for candidate in there)
        raise SettingsError(f"the settings name {places}, and both answer: say which is meant by {flags}")
    if there:
        return there[0].backend
    raise _none(results, one_place=one_place, hint=hint)


def _none(results: Sequence[tuple[Candidate, ProbeResult]], *, one_place: bool, hint: Callable[[], str]) -> ApiError:
    """The error that tells why no candidate is there; a trouble that may pass comes before a definite no."""
    for detection, kind in ((Detection.AWAY, ApiUnavailable), (Detection.REFUSED, KeyRefused)):
        errors = [found.error for _, found in results if found.detection is detection and found.error]
        if len(errors) == 1 or (errors and one_place and detection is Detection.AWAY):
            return errors[0]
        if errors:
            return kind(f"no Prefect API answers: {'; '.join(map(str, errors))}")
    told = " and ".join(
        f"{_answer(found)} to {candidate.name}'s {candidate.question}" + ("" if one_place else f" at {candidate.shown}")
        for candidate, found in results
    )
    where = f"{results[0][0].shown}{results[0][0].by_proxy}" if one_place else "what the settings name"
    return NotThere(f"{where} is no Prefect API: it answers {told}{hint()}")


def _answer(found: ProbeResult) -> str:
    return str(found.error.status) if isinstance(found.error, ResponseRefused) else "something else"


def remedy(candidate: Candidate) -> str:
    """Words to append to an error where this candidate is there; empty where it is not."""
    try:
        found = candidate.ask()
    except ApiRejected:
        return ""
    return f", but {candidate.name} is at {candidate.shown}" if found.detection is Detection.YES else ""
