"""Supervisord conf: one supervisord.conf for a worker and a poller, which are one agent at Prefect 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowfleet.commands import units
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.common import CommonSettings


def conf(common: Mapping[str, Any], of_worker: Mapping[str, Any]) -> str:
    """The text that `worker install --for supervisor` prints, followed by the poller's program."""
    worker = _text("worker", WorkerSettings, {**common, **of_worker})
    poller = _text("poller", PollerSettings, common)
    head, _, program = poller.partition("\n[program:")
    secrets = [line for line in head.splitlines() if "Secrets" in line or "--secrets" in line]
    return "\n".join([worker.rstrip(), "", *secrets, f"[program:{program}"])


def _text(part: str, cls: type[CommonSettings], flags: Mapping[str, Any]) -> str:
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    return units.supervisor(
        units.Unit(part=part, cls=cls, flags=given, program=units.program_path(part), **units.here())
    )
