"""Lifeline: how a part ends with the program that has started it, killed or not, and leaves its last words to it."""

import contextlib
import logging
import os
import select
import signal
import threading
from collections.abc import MutableMapping
from pathlib import Path

logger = logging.getLogger(__name__)

#: the pid of the program that a part ends with
PARENT = "FLOWFLEET_LIFELINE"
#: the file for the sentence that a part ends with
LAST_WORDS = "FLOWFLEET_LAST_WORDS"
_STDIN = 0
#: a child that the program has forked may hold the pipe open after its end, so the parent is looked at too
_LOOK_SECONDS = 2.0


def variables(last_words: Path) -> dict[str, str]:
    """The variables of a part that ends with this process; its standard input has to be a pipe that we hold open."""
    return {PARENT: str(os.getpid()), LAST_WORDS: str(last_words)}


def watch(environ: MutableMapping[str, str]) -> bool:
    """Whether this process is tied to the program that has started it; then it ends by SIGTERM once that is gone.

    The variable is taken away: what this process starts is tied to nobody.
    """
    parent = environ.pop(PARENT, "")
    if not parent.isdigit():
        return False
    pipe = os.dup(_STDIN)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor, for whoever reads standard input
        os.dup2(nothing.fileno(), _STDIN)
    threading.Thread(target=_watch, args=(pipe, int(parent)), name="lifeline", daemon=True).start()
    return True


def tell(sentence: str, environ: MutableMapping[str, str]) -> None:
    """Leave the sentence that this process ends with to the program that has started it, if that wants to know."""
    path = environ.get(LAST_WORDS)
    if path:
        with contextlib.suppress(OSError):  # it stands on stderr too
            Path(path).write_text(sentence, encoding="utf-8")


def _watch(pipe: int, parent: int) -> None:
    ends = select.poll()
    ends.register(pipe, select.POLLIN)
    # nobody writes into the pipe, so whatever is to be read there is its end
    while os.getppid() == parent and not ends.poll(_LOOK_SECONDS * 1000):
        pass
    logger.warning("the program that has started this process is gone, so it ends too", extra={"parent": parent})
    os.kill(os.getpid(), signal.SIGTERM)
