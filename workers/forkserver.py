"""Fork server: a small process beside the worker that forks a shim for each connection it is handed.

Started as a file, `python -I -S -E forkserver.py FD MODE DESCRIPTORS`, so that no setting or package of the user gets
into it. It never sees what is started: the request goes from the worker to the shim over the connection handed on, and
the environment of a run is in no memory but theirs.
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

if __name__ == "__main__":  # the file is alone on the path: find its siblings, last, so that they shadow nothing
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from workers import kernel, shim, wire


def serve(control: socket.socket) -> None:
    """Fork a shim for each connection until the worker closes the control socket or dies."""
    while True:
        try:
            data, connections, _, _ = socket.recv_fds(control, 1, 4)
        except ConnectionResetError:
            return
        for fd in connections:
            os.set_inheritable(fd, False)  # noqa: FBT003
            _fork_shim(control, fd)
        if not data:
            return


def _fork_shim(control: socket.socket, fd: int) -> None:
    with socket.socket(fileno=fd) as connection:
        try:
            pid = os.fork()
        except OSError as exc:
            wire.send(connection, {"status": "failed", "error": f"no process could be forked: {exc.strerror}"})
            return
        if pid:
            return
        try:
            control.close()
            shim.serve(connection)
        finally:
            os._exit(0)


def _limit_descriptors(soft: int) -> None:
    # the worker has raised its own limit; programs that use select() rely on the usual one
    if soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def main() -> None:
    """Run until the worker is gone."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)  # noqa: FBT003
    control = socket.socket(fileno=fd)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the shims
    if sys.argv[2] == "reap":
        # and what a killed shim leaves: a first process that never reaps would keep it as zombies, its exit untold
        kernel.become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _limit_descriptors(int(sys.argv[3]))
    kernel.set_name("flowfleet-fork")
    kernel.set_title("flowfleet launcher")
    gc.collect()
    gc.freeze()  # a collection in a shim would copy every page
    gc.disable()
    serve(control)


if __name__ == "__main__":
    main()
