"""Flowfleet: the shared language of pollers and workers, and the classes of Prefect 1's agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    import fcntl  # noqa: F401 - Windows has none; all three commands import this file before anything that needs it
except ImportError:
    raise SystemExit("Error: flowfleet needs Linux or macOS, so on Windows run it inside WSL.") from None

if TYPE_CHECKING:
    from flowfleet.agents import Agent, DockerAgent, LocalAgent

__all__ = ["Agent", "DockerAgent", "LocalAgent"]


def __getattr__(name: str) -> Any:
    # the agents are imported only when one is asked for: their parts take time to import
    if name in __all__:
        from flowfleet import agents  # noqa: PLC0415 - see above

        return getattr(agents, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
