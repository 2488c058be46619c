"""Limits: how many descriptors this process may open; its runs get back what it was started with."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

#: some libraries still walk all that may be open, and a hard limit can be a milliard
MOST_DESCRIPTORS = 65536


def raise_descriptors() -> int:
    """Raise the soft limit as far as it goes (a run takes five or so); returns what it was before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:  # macOS has a limit of its own below the one that it tells
        logger.info("limit of open files stays", extra={"limit": soft, "error": str(exc)})
    return soft
