"""Doctor: the command `flowfleet doctor`."""

import json
import os
from contextlib import closing
from dataclasses import asdict, replace
from functools import cache

import click
from rich.text import Text

from flowfleet import ledger as ledgers
from flowfleet.api.client import ApiClient
from flowfleet.api.connect import connect
from flowfleet.commands.program import CHECKS_FAILED
from flowfleet.errors import LedgerError
from flowfleet.monitor.doctor import (
    FAIL,
    OK,
    WARN,
    Check,
    api_checks,
    fleet_checks,
    ledger_checks,
    redis_checks,
    rival_checks,
)
from flowfleet.monitor.redis_server import RedisServer
from flowfleet.monitor.snapshot import Snapshot, take_snapshot
from flowfleet.monitor.tables import console
from flowfleet.printable import printable
from flowfleet.settings.click_options import SettingsCommand, options
from flowfleet.settings.common import CommonSettings

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


@click.command("doctor", cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@options(CommonSettings, level="WARNING")
def doctor_command(settings: CommonSettings, *, as_json: bool) -> int:
    """Check Redis, the API and the fleet; exit 5 if something is wrong."""
    checks = _checks(settings)
    failed = any(check.verdict is FAIL for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        out = console()
        for check in checks:
            # the verdict alone has a colour: rich would give one to numbers, addresses and quotes, too
            verdict = (f"{check.verdict:<5}", _COLOURS[check.verdict])
            out.print(Text.assemble(verdict, printable(f"{check.name}: {check.sentence}")), soft_wrap=True)
    return CHECKS_FAILED if failed else 0


def _checks(settings: CommonSettings) -> list[Check]:
    api = cache(lambda: connect(settings, os.environ))
    try:
        ledger = ledgers.connect(settings.redis, settings.fleet)
    except LedgerError as error:  # the address of Redis is unusable: the API is checked all the same
        return [Check("redis", FAIL, str(error)), *api_checks(lambda: api().probe())]
    with closing(ledger):
        checks = [*redis_checks(RedisServer(ledger.store)), *api_checks(lambda: api().probe())]
        if any(check.verdict is FAIL for check in checks if check.name.startswith("redis")):
            return checks
        try:
            snapshot = take_snapshot(ledger)
            checks += fleet_checks(snapshot)
            if any(check.name == "api" and check.verdict is OK for check in checks):
                client = _as_leader(settings, api().backend, snapshot)
                checks += [*rival_checks(client, snapshot), *ledger_checks(client, ledger, snapshot)]
        except LedgerError as error:
            checks.append(Check("fleet", FAIL, str(error)))
    return checks


def _as_leader(settings: CommonSettings, backend: str, snapshot: Snapshot) -> ApiClient:
    """The API, asked under the leader's name, by which Prefect 1 tells the fleet's own agents from others."""
    name = snapshot.leader.name if snapshot.leader else settings.name
    return connect(replace(settings, backend=backend, name=name), os.environ)
