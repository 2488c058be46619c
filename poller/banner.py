"""Banner: what a poller of Prefect 1 prints and logs when it starts, as Prefect 1's own agent does."""

import logging
import sys
from collections.abc import Sequence
from typing import TextIO

logger = logging.getLogger(__name__)

BANNER = r"""
  __  _                __  _            _
 / _|| | ___ __ __ __ / _|| | ___  ___ | |_
|  _|| |/ _ \\ V  V /|  _|| |/ -_)/ -_)|  _|
|_|  |_|\___/ \_/\_/ |_|  |_|\___|\___| \__|
"""


def greet(agent: str, labels: Sequence[str], *, out: TextIO | None = None, shown: bool | None = None) -> None:
    """Print the name in large letters, then log two lines.

    `out` is stdout by default. `shown` switches the letters on or off; None = on where `out` is a terminal.
    """
    out = out or sys.stdout
    if out.isatty() if shown is None else shown:
        print(BANNER, file=out, flush=True)
    # a poller without labels of its own asks for whatever live workers can take
    asked: Sequence[str] | str = sorted(labels) or "those of its workers"
    logger.info("Starting the poller", extra={"agent": agent, "labels": asked})
    logger.info("Waiting for flow runs...", extra={"agent": agent})
