"""Run output: what a run has printed, from this host's own records or from the page of the worker that has it."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import requests
from urllib3.exceptions import HTTPError

from flowfleet.api.transport.proxy import by_proxy
from flowfleet.errors import FleetError

_PIECE = 64 << 10
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 60.0


class NoOutput(FleetError):
    """The output of this run cannot be had from this host."""


def state_home(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/flowfleet`, under which each worker of this host has its folder."""
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path(environ.get("HOME") or Path.home()) / ".local" / "state") / "flowfleet"


def local_log(home: Path, run_id: str) -> Path | None:
    """The newest output file of a run among the workers of this host; None when there is none."""
    found = [path for path in home.glob(f"*/*/runs/{run_id}.*/log") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def local_names(home: Path) -> dict[str, str]:
    """Run id → run name of the runs that have an output file among the workers of this host."""
    return {log.parent.name.partition(".")[0]: _name(log.parent) for log in home.glob("*/*/runs/*.*/log")}


def _name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "intent.json").read_bytes()).get("name") or "")
    except (OSError, ValueError, AttributeError):  # cleared away meanwhile, or not one of ours
        return ""


def read_local(
    log: Path, *, follow: bool, ended: Callable[[], bool], wait: Callable[[float], None] = time.sleep
) -> Iterator[bytes]:
    """The bytes of an output file; with `follow` also what is added until the run has ended."""
    with log.open("rb") as file:
        file.seek(_first_byte(file))
        begun = False
        while True:
            # asked before reading, so that what was written until the run ended is still read
            over = not follow or ended()
            while piece := file.read(_PIECE):
                # the rest of the hole's last block reads as zeros
                kept = piece if begun else piece.lstrip(b"\0")
                begun = begun or bool(kept)
                if kept:
                    yield kept
            if over:
                return
            wait(0.5)


def _first_byte(file: BinaryIO) -> int:
    """The offset behind the hole at the head of a log that its worker keeps below a cap."""
    try:
        return os.lseek(file.fileno(), 0, os.SEEK_DATA)
    except (AttributeError, OSError):  # this system has no SEEK_DATA, or the file is nothing but a hole
        return 0


def read_remote(address: str, run_id: str, *, follow: bool, token: str | None) -> Iterator[bytes]:
    """The output as the page of the run's worker gives it. Raises `NoOutput`."""
    url = f"{address.rstrip('/')}/api/runs/{run_id}/log"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = requests.get(
            url,
            headers=headers,
            params={"follow": "1"} if follow else {},
            timeout=(_CONNECT_SECONDS, None if follow else _READ_SECONDS),
            stream=True,
        )
        with answer:
            if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
                raise NoOutput(f"The worker at {address} asks for its page token: set FLOWFLEET_PAGE_TOKEN.")
            if answer.status_code != requests.codes.ok:
                raise NoOutput(
                    f"The worker at {address}{by_proxy(url)} has no output of the run {run_id} (it says "
                    f"{answer.status_code})."
                )
            # read1 returns what has come, however little; iter_content would wait until a whole piece is there
            while piece := answer.raw.read1(_PIECE):
                yield piece
    except (requests.RequestException, HTTPError) as error:
        raise NoOutput(f"The worker at {address}{by_proxy(url)} does not answer: look on its host.") from error
