"""Shim: the small process above one run, which starts its command, records how it ended and clears its group.

It is forked from the worker's launcher and outlives both. Only the shim sends signals to the run's group: the worker
writes why into the run's folder (stop.json), and then asks by SIGTERM (polite, then KILL after the grace) or SIGUSR1
(KILL now). Without that file a signal is somebody else's, a flow's that signals its parent: it is counted and ignored.
The shim's own exit means that nothing of the run is left. Standard library only, and nothing is imported after the
fork: a package upgraded under a running worker must not mix new code into old.

The order of its steps is what makes a start provable on disk:

    start         created exclusively, by this shim or as "abandoned" by an adopter: one winner
    started.json  who shim and command are; the command still waits at a gate and dies there if the shim dies
    (gate)        `not_after` is checked in the last moment before the command is executed
    exit.json     how it ended, durable before anything is cleared away
    cleared       group and orphans are gone
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time

from . import (
    atomic_files,
    cgroup,
    control_session,
    failpoint,
    framing,
    log_cap,
    oom_watch,
    process_tree,
    signal_pipe,
    spawn,
    stopping,
    switch,
    syscalls,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from typing import Any

_TICK_SECONDS = 5.0
_REQUEST_SECONDS = 30.0


def serve(connection: socket.socket, unfit: spawn.ColdReason | None = None) -> None:
    """Be the shim of the one run whose request comes over this connection; returns when the run is gone.

    With `unfit` the command may be a fork of this process (see `spawn.fork`).
    """
    _leave_the_launcher()
    wake = signal_pipe.catch_signals()
    connection.settimeout(_REQUEST_SECONDS)
    try:
        request = framing.receive(connection)
    except (OSError, EOFError, ValueError):
        return  # the worker is gone before it has said what to start
    syscalls.set_title(f"flowfleet shim of run {request['run_id']}")
    try:
        Shim(request, connection, wake, unfit).run()
    except Exception as exc:  # guards the process: no caller could report it, so leave a trace beside the run, then end
        with open(os.path.join(request["folder"], "shim.error"), "a", encoding="utf-8") as file:
            file.write(f"{type(exc).__name__}: {exc}\n")
        raise


def _leave_the_launcher() -> None:
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd, inheritable=True)
    if null > 2:
        os.close(null)
    syscalls.set_name("flowfleet-shim")


class Shim:
    """One run from its start file to the end of its group."""

    def __init__(
        self, request: dict[str, Any], connection: socket.socket, wake: int, unfit: spawn.ColdReason | None = None
    ) -> None:
        self._request = request
        self._limits = spawn.limits_of(request)
        self._unfit = unfit
        self._folder = str(request["folder"])
        self._connection = connection
        self._wake = wake
        abilities = request["abilities"]
        self._holes = bool(abilities["holes"])
        self._proc = bool(abilities["proc"])
        self._subreaper = bool(abilities["subreaper"])
        self._tree = process_tree.ProcessTree(0, proc=self._proc, subreaper=False)
        self._child = spawn.GatedCommand(pid=0, report=-1)
        self._session: control_session.ControlSession | None = None
        self._stopping = self._plan_stop()
        self._switch = switch.Switch(self._folder, request["not_after"] if request.get("switch") else None)
        #: the command has ended
        self._over = False
        #: name of a signal that was ignored → how often
        self._ignored: dict[str, int] = {}
        #: the run's own control group, which its command enters before it begins; None = it has none
        self._group: str | None = request.get("cgroup")
        groups = dict.fromkeys([self._group, request.get("cpu_group")])
        self._groups: list[str] = [group for group in groups if group]
        self._memory = oom_watch.OomWatch(proc=self._proc)
        #: when the command began, by the clock that nobody sets
        self._began = time.monotonic()
        self._ready: list[int] = []

    # -- from the start file to the end

    def run(self) -> None:
        """Win the start file, start the command, watch it to its end."""
        identity = self._identity()
        try:
            lock = atomic_files.create_once(self._path("start"), {"v": 1, "by": "shim", **identity})
        except OSError as exc:
            self._reply("failed", error=f"its folder {self._folder} cannot be written: {exc.strerror}")
            return
        if lock is None:
            self._reply("taken")
            return
        failpoint.hit(self._request, "shim.after_start_file")
        spare = self._reserve_record()  # the start file stays open, and so locked, for the life of this process
        try:
            if self._request.get("control"):
                self._session = control_session.ControlSession.open(self._hit)
            if self._session is not None:
                self._request["env"].update(self._session.variables())
            log = os.open(self._path("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._child = spawn.fork(self._request, self._folder, log, proc=self._proc, unfit=self._unfit)
            forked_at = time.time()
            # the command waits at its gate, so it can have no orphans before
            self._tree = process_tree.ProcessTree(self._child.pid, proc=self._proc, subreaper=self._subreaper)
            self._stopping = self._plan_stop()
            os.close(log)
            cap = log_cap.LogCap(self._path("log"), int(self._limits["log_limit"]), holes=self._holes)
            started = {**identity, "command_pid": self._child.pid, "id": str(self._child.pid)}
            started["control"] = self._session is not None
            started["command_started_at"] = forked_at
            started["cgroup"] = self._group
            started["cpu_group"] = self._request.get("cpu_group")
            started["command_ticks"] = syscalls.start_ticks(self._child.pid) if self._proc else None
            atomic_files.write_json(self._path("started.json"), started, sync=False)
        except spawn.CannotFork as exc:
            self._never_began({"error": f"no process could be forked for it: {exc}"})
            return
        except OSError as exc:
            self._child.discard()
            self._never_began({"error": f"its folder {self._folder} cannot be written: {exc.strerror}"})
            return
        started_at, self._began = time.time(), time.monotonic()
        self._child.release()
        del self._request["env"]  # only the command needs it from here on
        trouble, cold = self._await_exec()
        if trouble is not None:
            self._never_began(trouble)
            return
        failpoint.hit(self._request, "shim.after_exec")
        self._reply("started", started=started, cold=cold)
        self._memory.open(self._group, self._child.pid)
        self._watch(cap)
        self._finish(started_at, spare)

    def _plan_stop(self) -> stopping.Stopping:
        return stopping.Stopping(self._tree, self._session, float(self._limits["stop_grace"]), self._hit)

    def _identity(self) -> dict[str, Any]:
        pid = os.getpid()
        return {
            "v": 1,
            **self._request["handle"],
            "run_id": self._request["run_id"],
            "claim": self._request["claim"],
            "id": str(pid),
            "pid": pid,
            "ticks": syscalls.start_ticks(pid) if self._proc else None,
            "shim_started_at": time.time(),
            "boot_clock": syscalls.boot_clock(),
            "stop_grace": self._limits["stop_grace"],
            # this shim obeys no signal without stop.json
            "needs_reason": True,
        }

    def _reserve_record(self) -> int:
        # room on the disk for exit.json: how a run ended must be recorded even if that run has filled the disk
        fd = os.open(self._path("exit.spare"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, 4096)
        except OSError:
            pass  # not every file system can; the record is then written as far as there is room
        return fd

    def _await_exec(self) -> tuple[dict[str, Any] | None, str | None]:
        """The trouble, None once the command has begun (its end of the pipe is closed); and why the start was cold."""
        words = b""
        while True:
            self._wait(self._child.report)
            if self._child.report in self._ready:
                data = os.read(self._child.report, 65536)
                words += data
                if not data:
                    break
        os.close(self._child.report)
        trouble, cold = spawn.parse_report(words)
        return spawn.failure_record(trouble, self._request, self._folder) if trouble else None, cold

    def _never_began(self, trouble: dict[str, Any]) -> None:
        self._clear()
        record = {"v": 1, "begun": False, "ended_at": time.time(), **trouble}
        try:
            atomic_files.write_json(self._path("exit.json"), record)
            self._drop("exit.spare")
            self._mark_cleared()
        finally:
            self._reply("late" if trouble.get("late") else "failed", error=trouble["error"])

    # -- watching

    def _watch(self, cap: log_cap.LogCap) -> None:
        next_tick = time.monotonic() + _TICK_SECONDS
        while not self._tree.ended():
            now = time.monotonic()
            times = (next_tick, self._stopping.due, self._memory.next_look(now))
            timeout = max(0.0, min(at for at in times if at is not None) - now)
            self._wait(*self._memory.descriptors, timeout=self._switch.shortened(timeout))
            self._memory.look()
            now = time.monotonic()
            if self._switch.over():
                self._stopping.ask(self._stopping.record or switch.STOP, now, kill=True)
            self._stopping.go_on(now)
            if now >= next_tick:
                cap.apply()
                self._memory.tick()
                next_tick = now + _TICK_SECONDS
        cap.apply()
        cap.close()

    def _wait(self, *others: int, timeout: float | None = None) -> None:
        """Sleep until a signal, one of the other descriptors, or the timeout; act on what signals and engine say."""
        session = self._session.descriptors() if self._session is not None else []
        self._ready = select.select([self._wake, *others, *session], [], [], timeout)[0]
        if self._session is not None:
            # before the signals: an engine that has just connected can still be told of its cancel
            self._session.serve(self._ready)
        if self._wake not in self._ready:
            return
        for number in os.read(self._wake, 4096):
            if number != signal.SIGCHLD:
                self._obey(number)

    def _obey(self, number: int) -> None:
        stop = atomic_files.read_json(self._path("stop.json")) or {}
        asks = number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        if not asks or stop.get("claim") != self._request["claim"]:
            name = signal.Signals(number).name
            self._ignored[name] = self._ignored.get(name, 0) + 1
            return
        if self._over:
            return  # the command has ended by itself: nobody has stopped it
        self._stopping.ask(stop, time.monotonic(), kill=number == signal.SIGUSR1)

    # -- the end

    def _finish(self, started_at: float, spare: int) -> None:
        self._over = True
        self._wait(timeout=0.0)  # signals that came with the end are counted too
        wall_seconds = time.monotonic() - self._began
        code, leftovers = self._tree.kill_group()
        if self._session is not None:
            self._session.close()
        stop = self._stopping
        by_others = code == -signal.SIGKILL and stop.by != "kill"
        record = {
            "v": 1,
            "run_id": self._request["run_id"],
            "claim": self._request["claim"],
            "begun": True,
            "code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            **self._memory.end(killed=by_others),
            "stopped_by": stop.by,
            "stop_reason": stop.record.get("reason"),
            "stop_worker": stop.record.get("by"),
            **(self._session.facts() if self._session is not None else {}),
            "ignored": self._ignored,
            "started_at": started_at,
            "ended_at": time.time(),
            "wall_seconds": round(wall_seconds, 3),
            "max_rss_kib": self._tree.max_rss_kib,
            "cpu_seconds": round(self._tree.cpu_seconds, 3),
            "leftovers": leftovers,
        }
        failpoint.hit(self._request, "shim.before_exit_record")
        try:
            self._write_record(record, spare)
        finally:  # even if the folder is gone: nothing of the run may stay
            if self._clear():
                self._mark_cleared()

    def _write_record(self, record: dict[str, Any], spare: int) -> None:
        data = json.dumps(record).encode()
        os.pwrite(spare, data, 0)
        os.ftruncate(spare, len(data))
        os.fsync(spare)
        os.replace(self._path("exit.spare"), self._path("exit.json"))
        atomic_files.sync_folder(self._folder)

    def _clear(self) -> bool:
        gone = self._tree.clear(lambda seconds: self._wait(timeout=seconds))
        cleared = [cgroup.clear(group, lambda seconds: self._wait(timeout=seconds)) for group in self._groups]
        return gone and all(cleared)

    # -- small things

    def _hit(self, name: str) -> None:
        failpoint.hit(self._request, name)

    def _reply(self, status: str, **facts: Any) -> None:
        try:
            framing.send(self._connection, {"status": status, **facts})
        except OSError:
            pass  # the worker died meanwhile; its successor finds everything in the folder
        self._connection.close()

    def _mark_cleared(self) -> None:
        os.close(os.open(self._path("cleared"), os.O_WRONLY | os.O_CREAT, 0o600))

    def _drop(self, name: str) -> None:
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            pass

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)
