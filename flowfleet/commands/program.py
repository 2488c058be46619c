"""Program: the entry point of the three programs, where errors become a sentence and an exit code."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from flowfleet import logs
from flowfleet.errors import FleetError
from flowfleet.local import lifeline
from flowfleet.printable import printable

logger = logging.getLogger(__name__)

#: exit codes that no error class carries
USAGE = 2
UNEXPECTED = 1
CHECKS_FAILED = 5
DRAINED = 7
INTERRUPTED = 130


class Group(click.Group):
    """A click group that prints its help and exits 0 when called bare, unlike click's own; -h prints the help too."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Print the help and exit 0 when no arguments are given."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit(0)
        return super().parse_args(ctx, args)


def run(command: click.Command, arguments: Sequence[str] | None = None, *, name: str | None = None) -> int:  # noqa: PLR0911 - one line an outcome
    """Run a command and return its exit code; an error is told in one sentence on stderr.

    The command's function returns its exit code, or None for 0.
    """
    try:
        code: Any = command.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.UsageError as error:
        hint = f" ({error.ctx.command_path} --help shows what there is)" if error.ctx else ""
        return _say(f"{error.format_message().rstrip('.')}{hint}", USAGE)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except FleetError as error:
        logger.debug("command failed", exc_info=True)
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `… | head` has read enough; without this the interpreter complains once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # guards the process: any error is logged, through the redactor
        if not logging.getLogger().handlers:
            logs.configure("INFO")
        logger.exception("unexpected error, please report it")
        return UNEXPECTED
    return code if isinstance(code, int) else 0


def _say(sentence: str, code: int) -> int:
    told = _whole("\n".join(map(printable, logs.redact(sentence).split("\n"))))
    lifeline.tell(told, os.environ)
    click.echo(f"Error: {told}", err=True)
    return code


def _whole(text: str) -> str:
    """The text as a sentence: many errors are raised as a part of one, for log lines and for longer sentences."""
    word = text.partition(" ")[0]
    # an address or a flag as the first word stays as it is
    first, rest = (text[:1].upper(), text[1:]) if word.isalpha() else ("", text)
    stop = "" if text.endswith((".", "?", "!", ":", ")")) or "\n" in text else "."
    return f"{first}{rest}{stop}"
