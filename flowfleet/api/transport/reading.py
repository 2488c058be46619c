"""Reading: helpers to take the JSON of an answer apart, with one error for what does not have the right shape."""

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
    """Turn an answer of the wrong shape (200 with null, {}, half a run) into `ApiUnavailable`, since it tells nothing.

    The fault may be of this one question only, so the error counts as answered. The content is not shown, since it may
    be anything.
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
    """The answer as the list that it must be; raises TypeError, since `{}` would read as "none of them are there"."""
    if not isinstance(answer, list):
        raise TypeError(f"a list was asked for, not {type(answer).__name__}")
    return answer


def instant(text: str | None) -> datetime | None:
    """An ISO time of the API as aware UTC; None for an empty text or None."""
    if not text:
        return None
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def iso(at: datetime) -> str:
    """A time as the ISO text in UTC that the API reads."""
    return at.astimezone(UTC).isoformat()
