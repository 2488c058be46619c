"""Help: each command shows its own options, then the common ones that it has a use for, and takes all of them."""

import click
import pytest
from click.testing import CliRunner

from flowfleet import cli as flowfleet_cli
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.option import options_of
from poller import cli as poller_cli
from workers import cli as worker_cli

PROGRAMS = {"flowfleet": flowfleet_cli.program, "poller": poller_cli.program, "worker": worker_cli.cli}
HALVES = ("flowfleet poller", "flowfleet worker")
COMMANDS = {
    f"{program} {name}": command
    for program, group in PROGRAMS.items()
    for name, command in group.commands.items()
    if f"{program} {name}" not in HALVES
}
ASK_REDIS_ALONE = {f"flowfleet {name}" for name in ("status", "top", "runs")} | {
    f"worker {name}" for name in ("list", "drain", "pause", "resume", "forget")
}
OF_API = {"--api", "--backend", "--key", "--token", "--tenant-id"}
COMMON = {option.flags[-1] for option in options_of(CommonSettings).values() if option.flags} | {"--config"}


def flags_of(text: str) -> set[str]:
    """The long flags that a part of a help describes."""
    return {word.rstrip(",") for line in text.splitlines() for word in line.split("  ")[1:2] for word in word.split()}


@pytest.mark.parametrize("name", COMMANDS)
def test_common_options_are_a_group_of_their_own_with_those_that_the_command_uses(name):
    command = COMMANDS[name]
    text = CliRunner().invoke(command, ["--help"]).output
    _, _, own = text.partition("\nOptions:\n")
    own, _, common = own.partition("\nCommon options:\n")
    own, common = flags_of(own), flags_of(common)
    assert "--help" in own
    assert own & COMMON == set()
    assert {"--redis", "--fleet", "--log-level", "--config"} <= common & COMMON
    taken = {flag for each in command.params for flag in each.opts} & COMMON
    # `up` works with Prefect 3 alone, and names its parts itself
    hidden = OF_API | {"--name"} if name in ASK_REDIS_ALONE else {"--name"}
    if name in ("flowfleet up", "flowfleet doctor", "flowfleet config") or name.endswith((" start", " install")):
        hidden = set()
    assert common & COMMON == taken - hidden
    if name != "flowfleet up":
        assert taken == COMMON, "a line of flags may serve many commands"


def test_a_hidden_option_is_taken_all_the_same():
    given = ["--api", "http://h/api", "--key", "k", "--name", "n", "--redis", "nothing://h"]
    done = CliRunner().invoke(COMMANDS["flowfleet status"], given, standalone_mode=False)
    assert not isinstance(done.exception, click.UsageError)
    assert "nothing://" in str(done.exception)
