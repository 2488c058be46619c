"""Reading: the JSON of an answer taken apart, with one error for what does not have the right shape."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flowfleet.errors import ApiUnavailable, FleetError

logger = logging.getLogger(__name__)

Json = Mapping[str, Any]


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns an answer of the wrong shape (200 with null, {}, half a run) into `ApiUnavailable`: it says nothing.

    It may be of this one question only, so it counts as answered. What was in it is not shown, it may be anything.
    """
    try:
        yield
    except FleetError:
        raise  # `UnsupportedRun` is a ValueError too
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        logger.debug("answer cannot be read", extra={"question": what}, exc_info=True)
        raise ApiUnavailable(
            f"the Prefect API answers {what} with what is no such thing ({type(error).__name__})", answered=True
        ) from error


def rows(answer: Any) -> list[Any]:
    """The answer as the list that it must be: `{}` for one would read as "none of them are there"."""
    if not isinstance(answer, list):
        raise TypeError(f"a list was asked for, not {type(answer).__name__}")
    return answer


def instant(text: str | None) -> datetime | None:
    """An ISO time of the API as aware UTC."""
    if not text:
        return None
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def iso(at: datetime) -> str:
    """The API's form of a time."""
    return at.astimezone(UTC).isoformat()
