"""Subprocess run: one started subprocess, fresh or adopted, watched through its shim or, if that is dead, directly."""

import dataclasses
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowfleet.wakeup import Wakeup
from workers.deployers import process_handles
from workers.deployers.process_handles import ProcessHandle
from workers.deployment import Exit, Handle, StopReason
from workers.host import Abilities, Host
from workers.shim import cgroup, log_cap, syscalls
from workers.state.run_folders import RunFolder

logger = logging.getLogger(__name__)

_HANDLE = ("kind", "host", "id", "boot_id", "pid_ns", "pid", "ticks", "command_pid", "command_ticks")
#: init reaps an orphan within this time, as a rule; only then does the kernel tell its exit
_INFO_SECONDS = 3.0
_CLEAR_SECONDS = 5.0
_AGAIN_SECONDS = 0.2


class RunWakeup:
    """One descriptor that turns readable when the run should be polled, whichever process is being watched."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: int | None = None
        self._timed = Wakeup()
        self._epoll.register(self._timed, select.EPOLLIN)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The descriptor that turns readable."""
        return self._epoll.fileno()

    def watch(self, fd: int | None) -> None:
        """Wake at the end of the process that this pidfd holds, instead of the one before; None = of no process."""
        if self._watched is not None:
            self._epoll.unregister(self._watched)
        self._watched = fd
        if fd is not None:
            self._epoll.register(fd, select.EPOLLIN)

    def wake_in(self, seconds: float) -> None:
        """Wake once after this time."""
        if seconds <= 0:
            self._wake()
            return
        timer = threading.Timer(seconds, self._wake)
        timer.daemon = True
        timer.start()

    def _wake(self) -> None:
        with self._lock:
            if not self._epoll.closed:
                self._timed.wake()

    def clear(self) -> None:
        """Clear the wakeups of `wake_in`; the end of the watched process stays readable."""
        self._timed.clear()

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            if not self._epoll.closed:
                self._epoll.close()
                self._timed.close()


def _run_wakeup(abilities: Abilities) -> RunWakeup | None:
    try:
        return RunWakeup() if abilities.pidfd else None
    except OSError as exc:  # no descriptor is left: the run is polled each second
        logger.warning("run has no wakeup", extra={"error": str(exc)})
        return None


@dataclass(kw_only=True)
class SubprocessRun:
    """A started run that is a subprocess of this host."""

    folder: RunFolder
    host: Host
    abilities: Abilities
    #: the handle on disk, or the record of the start file where there is none yet
    started: Mapping[str, Any]
    #: whether the run ended under another boot, so that no pid of it means anything
    over: bool = False
    _shim: ProcessHandle | None = field(default=None, init=False)
    _command: ProcessHandle | None = field(default=None, init=False)
    _exit: Exit | None = field(default=None, init=False)
    _stopped_by: str | None = field(default=None, init=False)
    #: whether the run was signalled past its shim, which then knows of no stop
    _signalled: bool = field(default=False, init=False)
    _over_since: float | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._wakeup = _run_wakeup(self.abilities)
        if not self.over:
            self._shim = self._take_shim()
            self._command = self._take_command()
        self._watch(self._shim or self._command)

    # the StartedRun protocol
    @property
    def handle(self) -> Handle:
        # the shim writes the pid of its command to disk once that is forked
        if not self.started.get("command_pid"):
            self.started = self.folder.started() or self.started
        return {name: self.started.get(name) for name in _HANDLE}

    def fileno(self) -> int | None:
        # None also while the process that is watched has no descriptor of its own
        process = self._shim or self._command
        if self._wakeup is None or (process is not None and process.fileno() is None):
            return None
        return self._wakeup.fileno()

    def poll(self) -> Exit | None:
        if self._exit is not None:
            return self._exit
        if self._wakeup:
            self._wakeup.clear()
        if self._shim is not None:
            if self._shim.alive():
                return None
            self._lost_shim()
        if self._command is not None and self._command.alive():
            return None
        if not self._cleared():
            return None
        end = self._outcome()
        if end is not None:
            self._finish(end)
        return self._exit

    def stop(self) -> None:
        asked = self.folder.stop_record() or {}
        shim = self._shim if self._shim is not None and self._shim.alive() and self._shim_obeys() else None
        if asked.get("intent") and (shim is None or not self._tells_engine()):
            # nobody can tell this engine of its cancel, and on a bare TERM it would write Crashed over that
            self.kill()
        elif shim is not None:
            self._stopped_by = self._stopped_by or "term"
            shim.send(signal.SIGTERM)
        elif not self.over and self._exit is None:
            self._after(float(asked.get("patience") or 0.0), lambda: self._term(asked))

    def _term(self, asked: Mapping[str, Any]) -> None:
        if self._exit is not None:
            return
        self._stopped_by = self._stopped_by or "term"
        self._signalled |= self._signal_members(signal.SIGTERM) > 0
        grace = float(self.started.get("stop_grace") or 0.0)
        self._after(min(grace, float(asked.get("most_grace") or grace)), self.kill)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        if seconds <= 0:
            action()
            return
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        if self._exit is not None or self.over:
            return
        self._stopped_by = "kill"
        if self._shim is not None and self._shim.alive() and self._shim_obeys() and not self._shim_stands():
            self._shim.send(signal.SIGUSR1)
        else:
            self._signalled |= self._signal_members(signal.SIGKILL) > 0
            if self._shim is not None and self._shim_stands():
                self._shim.send(signal.SIGKILL)  # last: what it has below it would be nobody's otherwise

    def _shim_stands(self) -> bool:
        """Whether somebody has stopped the shim (SIGSTOP, a debugger): it obeys nothing, and its switch is dead."""
        fields = syscalls.stat_fields(int(self.started.get("pid") or 0)) if self._of_our_namespace() else None
        return fields is not None and fields[0] in "Tt"

    def _tells_engine(self) -> bool:
        # a shim of before an upgrade keeps no session with its engine, and one may have found no port for it
        return bool((self.folder.started() or self.started).get("control"))

    def _shim_obeys(self) -> bool:
        # a shim of before an upgrade asks for no reason; and where the disk had no room for it, none is to be had
        return not self.started.get("needs_reason") or self.folder.stop_record() is not None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._wakeup:
            self._wakeup.close()
        for process in (self._shim, self._command):
            if process is not None:
                process.close()
        self._shim = self._command = None

    # -- the processes that are watched

    def _take_shim(self) -> ProcessHandle | None:
        pid, ours = int(self.started.get("pid") or 0), self._of_our_namespace()
        by_lock = process_handles.by_lock(pid, self.folder.path / "start", ours=ours)
        # a shim in another container with the same volume: its pids mean nothing here, but its lock does
        return self._take(pid, self.started.get("ticks"), lambda: by_lock) if ours else by_lock

    def _take_command(self) -> ProcessHandle | None:
        pid = int(self.started.get("command_pid") or 0)
        if not pid or not self._of_our_namespace():
            return None

        def by_start_time() -> ProcessHandle | None:
            earliest = float(self.started.get("shim_started_at") or 0.0)
            # between its own start and the command's the shim has written to a disk that may be slow
            latest = float(self.started.get("command_started_at") or earliest)
            process = process_handles.by_start_time(pid, earliest, latest)
            return process if process.alive() else None

        return self._take(pid, self.started.get("command_ticks"), by_start_time)

    def _take(
        self, pid: int, ticks: int | None, without_descriptor: Callable[[], ProcessHandle | None]
    ) -> ProcessHandle | None:
        if self.abilities.pidfd and ticks is not None:  # None: started by a worker in plain mode
            try:
                return process_handles.PidfdHandle.take(pid, ticks)
            except OSError as exc:
                # a missing descriptor is never taken for the end: what is believed to be over is killed
                logger.warning("run is watched without a descriptor", extra={**self.folder.fields, "error": str(exc)})
        return without_descriptor()

    def _of_our_namespace(self) -> bool:
        return bool(self.started.get("pid_ns") == self.host.pid_ns)

    def _watch(self, process: ProcessHandle | None) -> None:
        if self._wakeup is None:
            return
        fd = process.fileno() if process else None
        self._wakeup.watch(fd)
        if fd is None:
            self._wakeup.wake_in(0.0)  # no descriptor tells the end: poll at once, and again and again

    def _lost_shim(self) -> None:
        assert self._shim is not None
        self._watch_none()
        self._shim.close()
        self._shim = None
        if self.folder.exit_record() is None:
            self.started = self.folder.started() or self.started
            self._command = self._command or self._take_command()
            logger.warning("shim was killed", extra=self.folder.fields)
            if self._command is not None:
                self._watch(self._command)
                self._go_on_stopping()

    def _go_on_stopping(self) -> None:
        # the shim may have been asked for that; what a worker before us had asked for is over, but for a cancel
        asked = self.folder.stop_record() or {}
        if asked.get("claim") == self.folder.claim and (self._stopped_by or asked.get("reason") == StopReason.CANCEL):
            (self.kill if asked.get("kill") else self.stop)()

    def _watch_none(self) -> None:
        if self._wakeup is not None:
            self._wakeup.watch(None)

    def _again(self) -> None:
        self._watch_none()
        if self._wakeup is not None:
            self._wakeup.wake_in(_AGAIN_SECONDS)

    # -- the end

    def _cleared(self) -> bool:
        """Whether nothing of the run is left; what is left is killed here, since no shim does it any more."""
        if self.over or (self.folder.cleared() and self.abilities.subreaper):
            return True
        if self._over_since is None:
            self._over_since = time.monotonic()
        left = self._signal_members(signal.SIGKILL)
        if left and time.monotonic() - self._over_since < _CLEAR_SECONDS:
            self._again()
            return False
        return True

    def _outcome(self) -> Exit | None:
        """How the run ended; None = poll again, since the kernel may tell it in a moment."""
        recorded = self.folder.exit()
        if recorded is not None:
            return recorded
        if self.folder.started() is None:
            end = Exit(error="its shim was killed before the command began", ended_at=time.time())
            self.folder.write_exit(end, begun=False)
            return end
        end = Exit(unknown=True, stopped_by=self._stopped_by, ended_at=time.time())
        if self._command is not None and self.abilities.pidfd_info:
            status = self._command.exit_status()
            if status is None and self._waiting_for_init():
                return None
            if status is not None:
                code = os.waitstatus_to_exitcode(status)
                end = dataclasses.replace(
                    end, unknown=False, code=code if code >= 0 else None, signal=-code if code < 0 else None
                )
        end = self.folder.with_reason(end)
        self.folder.write_exit(end, begun=True)
        return end

    def _waiting_for_init(self) -> bool:
        if self._over_since is None:
            self._over_since = time.monotonic()
        if time.monotonic() - self._over_since > _INFO_SECONDS:
            return False
        self._again()
        return True

    def _finish(self, end: Exit) -> None:
        if self._signalled and end.stopped_by is None:
            end = self.folder.with_reason(dataclasses.replace(end, stopped_by=self._stopped_by))
        for group in () if self.over else filter(None, (self._group, self.started.get("cpu_group"))):
            cgroup.remove(str(group))  # as its shim does at a run's end
        self._exit = dataclasses.replace(end, last_lines=log_cap.last_lines(self.folder.log))

    def _signal_members(self, number: signal.Signals) -> int:
        if not self._of_our_namespace():
            return 0
        return process_handles.signal_members(
            self.folder.run_id,
            self.folder.claim,
            number,
            session=int(self.started.get("pid") or 0),
            group=int(self.started.get("command_pid") or 0),
            also=cgroup.members(self._group) if self._group else (),
        )

    @property
    def _group(self) -> str | None:
        # named by run and claim, so that no other run can have it
        group = self.started.get("cgroup")
        return str(group) if group else None
