"""Run folders: what a worker keeps on its disk about runs, so that a kill at any moment loses nothing.

STATE/lock                    held by flock for the worker's life
STATE/worker.json             boot id and nonce of the last worker that held the lock
STATE/runs/RUN.CLAIM/         one attempt at a run
    intent.json               by the worker, before the ledger is asked: what it is about to do
    start                     created exclusively: by the shim, or as "abandoned" by an adopter
    started.json              by the shim: who shim and command are (the handle)
    log                       what the run prints
    stop.json                 by the worker, before it sends any signal: why it ends the run
    exit.json                 by the shim, or by the worker if the shim was killed: how it ended
    certificate.json          by the worker: who ended the run and what it took, for people; nothing is decided by it
    cleared                   by the shim: nothing of the run is left
    hooks/RUN.CLAIM-hooks/    a folder like this one, of the child that runs the flow's hooks after the end
    keeper.json               by a worker of another NAME@HOST that looks after the run now (takeover.py)
    settled                   by the worker: nothing more has to be done; from here on the folder may be pruned
STATE/outbox/RUN.CLAIM.json   a report that the API has not accepted yet
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workers.deployment import CONTAINERS, Exit
from workers.shim import atomic_files
from workers.shim.syscalls import boot_clock
from workers.stop import Stop

logger = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True)
class RunFolder:
    """The folder of one attempt at a run."""

    path: Path

    @property
    def key(self) -> str:
        """The key of the attempt, RUN.CLAIM; also the id of the Celery task."""
        return self.path.name

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self.key.rpartition(".")[0]

    @property
    def claim(self) -> str:
        """The id of the claim, the fence of this attempt."""
        return self.key.rpartition(".")[2]

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that every log line about the folder carries."""
        return {"run_id": self.run_id, "claim": self.claim}

    @property
    def log(self) -> Path:
        """The file of what the run prints."""
        return self.path / "log"

    @property
    def work(self) -> Path:
        """The empty folder in which a run without a working folder of its own starts."""
        return self.path / "work"

    def intent(self) -> dict[str, Any] | None:
        """The record of what the worker was about to do; None when it is not there or cannot be read."""
        return atomic_files.read_json(self.path / "intent.json")

    def note(self, **facts: Any) -> None:
        """Add facts to the intent (deadline, policy, name, …)."""
        atomic_files.write_json(self.path / "intent.json", {**(self.intent() or {"v": VERSION}), **facts})

    def stop_grace(self) -> float | None:
        """Seconds that the run gets at a stop, as it was started with; None where that stands nowhere."""
        # what a run has asked for stands in the intent, whoever has started it; a shim notes all of its limits
        for record in (self.intent(), self.started()):
            seconds = (record or {}).get("stop_grace")
            if isinstance(seconds, int | float):
                return float(seconds)
        return None

    def is_engine(self) -> bool:
        """Whether the run's command is the engine that its API's client has named, and none of the run's own."""
        return bool((self.intent() or {}).get("engine", True))

    def has_shim(self) -> bool:
        """Whether the run was begun by a shim, which says in the end that nothing of it is left (`cleared`)."""
        return "shim_started_at" in (self.started() or {})

    def is_container(self) -> bool:
        """Whether the run is a container of ours, which no shim stands above."""
        return (self.started() or {}).get("kind") == CONTAINERS

    def obeys(self) -> bool:
        """Whether whoever stops the run knows patience and grace: its shim, or the deployer of containers."""
        return self.has_shim() or self.is_container()

    def start(self) -> dict[str, Any] | None:
        """The record of the start file; its `by` says who has won it, or that it is "abandoned"; None = nobody has."""
        path = self.path / "start"
        return atomic_files.read_json(path) or ({"v": VERSION, "by": "shim"} if path.exists() else None)

    def abandon(self, reason: str) -> bool:
        """Make sure that user code can never begin here; False when a shim was first."""
        fd = atomic_files.create_once(self.path / "start", {"v": VERSION, "by": "abandoned", "reason": reason})
        if fd is not None:
            os.close(fd)
            return True
        return (self.start() or {}).get("by") == "abandoned"

    def shim_alive(self) -> bool:
        """Whether the shim that won the start file lives; its lock tells, so this holds in any pid namespace."""
        return atomic_files.locked(self.path / "start")

    def started(self) -> dict[str, Any] | None:
        """The handle: which processes shim and command are; None before the shim has written it."""
        return atomic_files.read_json(self.path / "started.json")

    def age_seconds(self) -> float:
        """Seconds since the run was started.

        The boot-time clock tells them where the shim has noted its time; else the date of the intent file.
        """
        at_boot = (self.started() or {}).get("boot_clock")
        if isinstance(at_boot, int | float):
            return max(0.0, boot_clock() - at_boot)
        try:
            return max(0.0, time.time() - (self.path / "intent.json").stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def exit_record(self) -> dict[str, Any] | None:
        """The record of how the run ended; None when there is none yet."""
        return atomic_files.read_json(self.path / "exit.json")

    def exit(self) -> Exit | None:
        """How the run ended; None when there is no record yet."""
        record = self.exit_record()
        return self.with_reason(Exit.from_record(record)) if record else None

    def write_stop(self, stop: Stop, worker: str) -> None:
        """Write down why this worker (NAME@HOST) is about to end the run, and how; on disk once this returns.

        A shim obeys no signal before. A later reason replaces an earlier one.
        """
        facts = {"claim": self.claim, "by": worker, "boot_clock": boot_clock()}
        atomic_files.write_json(self.path / "stop.json", {"v": VERSION, **asdict(stop), **facts})

    def stop_record(self) -> dict[str, Any] | None:
        """The record of why a worker ends the run; None when none has done so."""
        return atomic_files.read_json(self.path / "stop.json")

    def with_reason(self, end: Exit) -> Exit:
        """The same end with the reason of the stop, where whoever saw it did not know it.

        That is a shim of before an upgrade, or a deployer that has none.
        """
        if end.stopped_by is None or end.stop_reason is not None:
            return end
        stop = self.stop_record() or {}
        return replace(end, stop_reason=stop.get("reason"), stop_worker=stop.get("by"))

    def write_exit(self, end: Exit, *, begun: bool) -> None:
        """Record an end that no shim recorded; `begun` tells whether user code may have begun."""
        atomic_files.write_json(self.path / "exit.json", {"v": VERSION, "begun": begun, **end.to_record()})

    def certify(self, end: Exit) -> None:
        """Write down who ended the run and what it took, with its last lines redacted; a full disk costs only that."""
        record = {"v": VERSION, **end.certificate(), "last_lines": end.redacted_lines()}
        try:
            atomic_files.write_json(self.path / "certificate.json", record, sync=False)
        except OSError as exc:
            logger.warning("certificate of an end cannot be written", extra={**self.fields, "error": str(exc)})

    @property
    def state_folder(self) -> Path:
        """The state folder in which this folder lies, and stays for good: its shim knows it by its path."""
        return self.path.parent.parent

    def keeper(self) -> str:
        """The name of the worker that looks after the run: whoever holds the lock of the state folder of that name."""
        return str((atomic_files.read_json(self.path / "keeper.json") or {}).get("name", self.state_folder.name))

    def keep_for(self, name: str) -> None:
        """Name another keeper; the caller holds the lock of the state folder of the keeper before."""
        atomic_files.write_json(self.path / "keeper.json", {"v": VERSION, "name": name})

    def changed_hands(self) -> bool:
        """True once a keeper was named, so that the run's owner in the ledger may be any worker of this host."""
        return (self.path / "keeper.json").exists()

    def mark_cleared(self) -> None:
        """Note that nothing of the run is left, where no shim does it; a full disk costs only that."""
        try:
            (self.path / "cleared").touch(mode=0o600)
        except OSError as exc:
            logger.warning("it is not noted that a run is gone", extra={**self.fields, "error": str(exc)})

    def cleared(self) -> bool:
        """True once the shim, or the deployer of containers, has seen that nothing of the run is left."""
        return (self.path / "cleared").exists()

    def settle(self) -> None:
        """Mark the run as settled: nothing more has to be done about it. Its output stays until it is pruned."""
        self.drop_work()
        if self.path.is_dir():
            (self.path / "settled").touch(mode=0o600)

    def settled(self) -> bool:
        """True once nothing more has to be done about the run."""
        return (self.path / "settled").exists()

    def settled_at(self) -> float | None:
        """When the run was settled, in unix seconds.

        None when it is not settled, or when another worker's pruner has removed its folder meanwhile.
        """
        try:
            return (self.path / "settled").stat().st_mtime
        except FileNotFoundError:
            return None

    def drop_work(self) -> None:
        """Remove the run's own working folder."""
        shutil.rmtree(self.work, ignore_errors=True)

    def remove(self) -> None:
        """Remove the whole folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def disk_bytes(self) -> int:
        """The bytes that the folder really takes on disk; a log with a hole takes less than its size."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                try:
                    total += (Path(folder) / name).lstat().st_blocks * 512
                except FileNotFoundError:
                    continue
        return total


@dataclass(frozen=True)
class RunFolders:
    """The run folders that lie in one worker's state folder."""

    path: Path

    def create(self, run_id: str, claim: str, intent: Mapping[str, Any]) -> RunFolder | None:
        """Make the folder of an attempt, before the ledger is asked; None when it exists already."""
        folder = self.get(run_id, claim)
        try:
            folder.path.mkdir(mode=0o700)
        except FileExistsError:
            return None
        atomic_files.write_json(folder.path / "intent.json", {"v": VERSION, "run_id": run_id, "claim": claim, **intent})
        atomic_files.sync_folder(str(self.path))
        return folder

    def get(self, run_id: str, claim: str) -> RunFolder:
        """The folder of an attempt, whether it exists or not."""
        return RunFolder(self.path / f"{run_id}.{claim}")

    def find(self, run_id: str, claim: str) -> RunFolder:
        """The folder of an attempt, also where a worker of another name on this host has made it."""
        own = self.get(run_id, claim)
        if own.path.exists():
            return own
        others = self.path.parent.parent.glob(f"*/{self.path.name}/{own.key}")
        return next((RunFolder(path) for path in others), own)

    def scan(self) -> list[RunFolder]:
        """Every folder of a version that we understand, settled or not; others are left alone and logged."""
        found = []
        for path in sorted(self.path.iterdir()):
            if not path.is_dir() or "." not in path.name:
                continue
            folder = RunFolder(path)
            version = (folder.intent() or {}).get("v", VERSION)
            if version == VERSION:
                found.append(folder)
            else:
                logger.warning("run folder of another version left alone", extra={"folder": path.name, "v": version})
        return found

    def unsettled(self) -> list[RunFolder]:
        """The folders that a starting worker must look at."""
        return [folder for folder in self.scan() if not folder.settled()]

    def prune(
        self, *, now: float, keep_seconds: float, keep_bytes: int, busy: AbstractSet[str] = frozenset()
    ) -> list[str]:
        """Remove settled folders that are too old, then the oldest until all take at most `keep_bytes`.

        `busy` are keys (RUN.CLAIM) that stay in any case. Returns the keys that are gone.
        """
        folders = [folder for folder in self.scan() if folder.settled() and folder.key not in busy]
        ages = [(settled_at, folder) for folder in folders if (settled_at := folder.settled_at()) is not None]
        gone = []
        sizes = {folder.key: folder.disk_bytes() for _, folder in ages}
        total = sum(sizes.values())
        for settled_at, folder in sorted(ages, key=lambda item: item[0]):
            if now - settled_at <= keep_seconds and total <= keep_bytes:
                break
            folder.remove()
            total -= sizes[folder.key]
            gone.append(folder.key)
        return gone


@dataclass
class OutboxFolder:
    """Reports that the API has not accepted yet, one file each."""

    path: Path

    def put(self, run_id: str, claim: str, report: Mapping[str, Any]) -> None:
        """Keep a report; it is on disk once this returns."""
        atomic_files.write_json(self._file(run_id, claim), {"v": VERSION, "run_id": run_id, "claim": claim, **report})

    def get(self, run_id: str, claim: str) -> dict[str, Any] | None:
        """The report of an attempt; None when there is none."""
        return atomic_files.read_json(self._file(run_id, claim))

    def remove(self, run_id: str, claim: str) -> None:
        """Remove the report of an attempt, if there is one."""
        self._file(run_id, claim).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.path.glob("*.json")):
            report = atomic_files.read_json(path)
            if report is not None and report.get("v") == VERSION:
                yield report

    def _file(self, run_id: str, claim: str) -> Path:
        return self.path / f"{run_id}.{claim}.json"
