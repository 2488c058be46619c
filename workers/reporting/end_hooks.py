"""End hooks: how the report of an end asks for the flow's own hooks, which run around it."""

from collections.abc import Callable
from typing import Protocol

from flowfleet.api.client import StateType
from workers.state.run_folders import RunFolder


class EndHooks(Protocol):
    """The hooks of ended runs."""

    def wanted(self, run: RunFolder) -> bool:
        """Whether hooks are to be run for this run: its engine had begun here, and they are not over yet."""

    def run(self, run: RunFolder, state: StateType, go_on: Callable[[], None]) -> None:
        """Run the hooks for this state of the run, which the API shows, and go on then."""


class NoHooks:
    """No hooks at all."""

    def wanted(self, run: RunFolder) -> bool:
        """False: there are none."""
        del run
        return False

    def run(self, run: RunFolder, state: StateType, go_on: Callable[[], None]) -> None:
        """Go on at once."""
        del run, state
        go_on()
