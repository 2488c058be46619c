"""Guard: one turn of a loop, or one call of the user's code, whose fault is logged and ends nothing else."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def guarded(logger: logging.Logger, message: str, **fields: object) -> Iterator[None]:
    """Log what the block raises, with this message and these fields, and go on behind the block."""
    try:
        yield
    except Exception:  # guards a loop or the user's code, as its callers say
        logger.exception(message, extra=fields)
