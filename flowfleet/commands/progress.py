"""Progress: what a command that waits says on stderr meanwhile, since stdout is for its answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


def say(line: str) -> None:
    """Say how far it is."""
    click.echo(line, err=True)


@contextmanager
def interruption_told(sentence: str, say: Callable[[str], None] = say) -> Iterator[None]:
    """Say this when Ctrl-C ends the wait: what was ordered goes on."""
    try:
        yield
    except KeyboardInterrupt:
        say(sentence)
        raise
