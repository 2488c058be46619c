"""Fork server: a small process beside the worker that forks a shim for each connection it is handed.

Started as a file, `python -I -S -E forkserver.py FD MODE DESCRIPTORS`, so that no setting or package of the user gets
into it. The server never sees what is started: the request goes from the worker to the shim over the connection that
is handed on, and the environment of a run is in no memory but theirs.
"""

from __future__ import annotations

import array  # noqa: F401 - socket.recv_fds would import it later
import gc
import os
import resource
import signal
import socket
import sys
import warnings  # noqa: F401 - os.execvpe would import it later

if __name__ == "__main__":  # started as a file: its folder becomes a package by a name that nobody else has
    sys.modules["flowfleet_shim"] = type(sys)("flowfleet_shim")
    sys.modules["flowfleet_shim"].__path__ = [os.path.dirname(os.path.abspath(__file__))]
    # relative imports go by the spec; `__package__` alone would do until Python 3.14 only
    __spec__ = type(sys.__spec__)("flowfleet_shim.forkserver", None)

from . import framing, run, spawn, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Callable


def serve(
    control: socket.socket, *, unfit: spawn.ColdReason | None = None, stale: Callable[[], bool] = lambda: False
) -> None:
    """Fork a shim for each connection until the worker closes the control socket or dies.

    Of a warm parent, `unfit` says which commands it can be itself, and `stale` that it must be replaced instead of
    forking once more: the worker finds the connection closed and starts the run cold.
    """
    while True:
        try:
            data, connections, _, _ = socket.recv_fds(control, 1, 4)
        except ConnectionResetError:
            return
        if data and stale():
            control.close()  # first: a worker that finds its connection closed finds this socket closed too
            for fd in connections:
                os.close(fd)
            return
        for fd in connections:
            os.set_inheritable(fd, False)  # noqa: FBT003
            _fork_shim(control, fd, unfit)
        if not data:
            return


def _fork_shim(control: socket.socket, fd: int, unfit: spawn.ColdReason | None) -> None:
    with socket.socket(fileno=fd) as connection:
        try:
            pid = os.fork()
        except OSError as exc:
            if unfit is not None:
                return  # this process may be too large for the host; the small launcher is asked next
            framing.send(connection, {"status": "failed", "error": f"no process could be forked: {exc.strerror}"})
            return
        if pid:
            return
        try:
            control.close()
            run.serve(connection, unfit)
        except spawn.CommandBegan:
            raise  # this process is the command by now
        except BaseException:  # noqa: BLE001, S110 - guards the forked child: the shim has left its trace beside the run
            pass
        os._exit(0)


def control_socket(fd: int) -> socket.socket:
    """The control socket that the worker has left open; no started program inherits it."""
    os.set_inheritable(fd, False)  # noqa: FBT003
    return socket.socket(fileno=fd)


def prepare_process(mode: str, descriptors: int, *, name: str, title: str) -> None:
    """Prepare this process to fork at any time: signals, limits, names, memory."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the shims
    if mode == "reap":
        # orphans of a killed shim are reaped as well: a process 1 that never reaps would keep them as zombies, and the
        # kernel tells an exit only after that
        syscalls.become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if descriptors:
        # the worker has raised its own limit; programs that use select() rely on the usual one
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    syscalls.set_name(name)
    syscalls.set_title(title)
    gc.collect()
    gc.freeze()  # a garbage collection in a shim would copy every page
    gc.disable()


def main() -> None:
    """Run until the worker is gone."""
    control = control_socket(int(sys.argv[1]))
    prepare_process(sys.argv[2], int(sys.argv[3]), name="flowfleet-fork", title="flowfleet launcher")
    serve(control)


if __name__ == "__main__":
    main()
