"""Spawn: the command of a run between the fork and its first own instruction, and why it may not get there.

Standard library only: part of the shim.
"""

from __future__ import annotations

import errno
import json
import os
import signal

from . import cgroup, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    #: why the process that was forked must execute its command; None = it can be the command by itself
    ColdReason = Callable[[dict[str, Any]], str | None]

#: of the range -1000 … 1000: out of memory, the kernel kills a run before its shim, the worker or Redis
_OOM_SCORE = 500
#: letters of a variable's name in an error
_SHOWN = 100


class CannotFork(Exception):
    """This host has no room for one more process; the text is the kernel's."""


class CommandBegan(BaseException):  # no Exception: nothing that handles errors may hold it up
    """The forked command of a warm parent begins: it leaves all frames of shim and fork server behind."""

    def __init__(self, request: dict[str, Any], report: int) -> None:
        super().__init__()
        self.request = request
        #: writing end of the report pipe, to be closed as the last step before the command's first own instruction
        self.report = report


class GatedCommand:
    """The forked command, waiting at its gate."""

    def __init__(self, pid: int, report: int, gate: int = -1) -> None:
        self.pid = pid
        #: reading end of the report pipe: at its end without a message once the command is executed, else it says what
        #: went wrong
        self.report = report
        self._gate = gate

    def release(self) -> None:
        """Let the process execute the command; where it has ended before the gate, its report says why."""
        try:
            os.write(self._gate, b"\n")
        except BrokenPipeError:
            pass
        self.discard()

    def discard(self) -> None:
        """Close the gate: a process that still waits there ends without executing anything."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1


def fork(
    request: dict[str, Any], folder: str, log: int, *, proc: bool, unfit: ColdReason | None = None
) -> GatedCommand:
    """Fork the command in a group of its own; it waits at a gate, and ends there if its shim dies.

    `unfit` is given where this process can be the command without executing it (a warm parent's), and says why not.
    Raises `CannotFork`, and `OSError` when its working folder cannot be made; in the command itself `CommandBegan`.
    """
    if request["cwd"] is None:
        os.makedirs(os.path.join(folder, "work"), mode=0o700, exist_ok=True)
    gate, opener = os.pipe()
    report, reporter = os.pipe()
    # no signal may meet the child before its handlers are the default ones: it would be lost
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError as exc:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for fd in (gate, opener, report, reporter):
            os.close(fd)
        raise CannotFork(exc.strerror) from exc
    if pid == 0:
        try:
            os.close(opener)
            os.close(report)
            _become(request, folder, log, gate, reporter, proc=proc, unfit=unfit)
        except CommandBegan:
            raise
        except BaseException:  # noqa: BLE001, S110 - guards the forked child, which must not go on as a second shim
            pass
        os._exit(127)
    try:
        os.setpgid(pid, pid)  # in parent and child: a stop in between must not miss the group
    except (ProcessLookupError, PermissionError):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(gate)
    os.close(reporter)
    return GatedCommand(pid, report, opener)


def _become(
    request: dict[str, Any], folder: str, log: int, gate: int, reporter: int, *, proc: bool, unfit: ColdReason | None
) -> NoReturn:
    step = "prepare"
    try:
        if request.get("switch"):
            syscalls.die_with_parent()  # without its shim nothing would end it in time
        _prepare(log, nice=limits_of(request).get("nice", 0), proc=proc)
        step = "limits"
        _enter_groups(request, limits_of(request))
        step = "prepare"
        if not os.read(gate, 1):
            os._exit(127)  # the shim is gone: this run never began
        step = "cwd"
        os.chdir(request["cwd"] or os.path.join(folder, "work"))
        os.umask(request["umask"])
        step = "late"
        if request["not_after"] is not None and syscalls.boot_clock() > request["not_after"]:
            raise TimeoutError(0, "")
        step = "exec"
        if unfit is not None:
            why = _reason(unfit, request)
            if why is None:
                raise CommandBegan(request, reporter)
            os.write(reporter, json.dumps({"step": "cold", "why": why}).encode() + b"\n")
        os.execvpe(  # noqa: S606 - by the run's own PATH, without a shell
            request["argv"][0], request["argv"], request["env"]
        )
    except OSError as exc:
        os.write(reporter, json.dumps({"step": step, "errno": exc.errno or 0}).encode())
    except ValueError:
        # told here, since the shim forgets the environment of its run
        why = forbidden(request["argv"], request["env"])
        os.write(reporter, json.dumps({"step": "values", "errno": 0, "why": why}).encode())
    os._exit(127)


def _enter_groups(request: dict[str, Any], limits: dict[str, Any]) -> None:
    memory, cpus = limits.get("memory"), limits.get("cpus")
    group, cpu_group = request.get("cgroup"), request.get("cpu_group")
    one = cpu_group == group
    # without a group the run has less of a certificate, and goes on; without the limits that it is to have it does not
    inside = group is not None and cgroup.enter(group, memory=memory, cpus=cpus if one else None)
    if memory is not None and not inside:
        raise OSError(errno.EPERM, "")
    if cpus is not None and not one:
        inside = cpu_group is not None and cgroup.enter(cpu_group, cpus=cpus)
    if cpus is not None and not inside:
        raise OSError(errno.EPERM, "")


def _reason(unfit: ColdReason, request: dict[str, Any]) -> str | None:
    try:
        return unfit(request)
    except Exception as exc:  # noqa: BLE001 - guards the forked child: a failed check costs only its warm start
        return f"{type(exc).__name__}: {exc}"


def limits_of(request: dict[str, Any]) -> dict[str, Any]:
    """The limits of the run; a worker of before an upgrade, which starts this file, has them in the request itself."""
    limits: dict[str, Any] = request.get("limits", request)
    return limits


def _prepare(log: int, *, nice: int, proc: bool) -> None:
    os.setpgid(0, 0)
    os.nice(nice)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    if proc:
        _raise_oom_score()
    os.dup2(log, 1)
    os.dup2(log, 2)  # 0 is /dev/null already
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _raise_oom_score() -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
        if int(os.read(fd, 16)) < _OOM_SCORE:
            os.write(fd, str(_OOM_SCORE).encode())
        os.close(fd)
    except (OSError, ValueError):
        pass  # a courtesy to the host; the run does not depend on it


def parse_report(words: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """Parse the text of the report pipe: what kept the command from being executed, and why it started cold."""
    trouble = why = None
    for line in words.splitlines():
        word = json.loads(line)
        if word["step"] == "cold":
            why = str(word["why"])
        else:
            trouble = word
    return trouble, why


def failure_record(trouble: dict[str, Any], request: dict[str, Any], folder: str) -> dict[str, Any]:
    """The sentence for what kept the command from being executed."""
    step, number = trouble["step"], trouble["errno"]
    place = request["cwd"] or os.path.join(folder, "work")
    name = request["argv"][0]
    if step == "late":
        return {"late": True, "error": "it was too late to start: this worker's right to the run had run out"}
    if step == "values":
        return {"error": trouble.get("why") or "its command or environment cannot be given to a process"}
    if step == "cwd":
        return {"error": _of_place(place, number, request["handle"]["host"])}
    if step == "limits":
        return {"error": f"its limits of memory or processors cannot be set on {request['handle']['host']}"}
    if step == "prepare":
        return {"error": f"its process could not be set up: {os.strerror(number)}"}
    return {"error": _of_command(name, os.path.join(place, name), request, number)}


def forbidden(argv: Sequence[str], env: Mapping[str, str]) -> str | None:
    """What no process can be given of this command and environment, with the variable's name; None = all can be.

    A value is not told, it may be secret; nor is what stands behind a = in a name.
    """
    for name, value in env.items():
        if not name:
            return "one of its variables has no name"
        shown = name.encode("unicode_escape").decode()[:_SHOWN]
        if "=" in name:
            return f"the name of its variable {shown.partition('=')[0]}=… has a = in it; give name and value apart"
        if not _can_be_given(name):
            return f"the name of its variable {shown} has a character in it that no process can be given"
        if not _can_be_given(value):
            return f"its variable {shown} has a character in its value that no process can be given"
    if not all(map(_can_be_given, argv)):
        return "its command has a character in it that no process can be given"
    return None


def _can_be_given(text: str) -> bool:
    # a zero byte cannot, nor half a character
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _of_place(place: str, number: int, host: str) -> str:
    if number == errno.ENOENT:
        return f"its working folder {place} does not exist on {host}"
    if number == errno.ENOTDIR:
        return f"its working folder {place} is not a folder on {host}"
    if number in (errno.EACCES, errno.EPERM):
        return f"there is no permission to enter its working folder {place} on {host}"
    return f"its working folder {place} on {host} cannot be entered: {os.strerror(number)}"


def _of_command(name: str, path: str, request: dict[str, Any], number: int) -> str:
    if number == errno.ENOENT:
        if "/" not in name:
            return f"there is no command {name} on this host's PATH ({request['path']})"
        if os.path.exists(path):
            return f"the interpreter that the first line of {path} names does not exist on this host"
        return f"there is no {path} on this host"
    known = {
        errno.EACCES: f"there is no permission to execute {name}",
        errno.EPERM: f"there is no permission to execute {name}",
        errno.ENOEXEC: f"{name} is no program that this host can execute",
        errno.E2BIG: "its command and environment together are too large for this host",
    }
    return known.get(number) or f"{name} cannot be executed: {os.strerror(number)}"
