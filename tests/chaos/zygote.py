"""Zygote: a process with poller and worker imported, which forks them; a part then costs its work and no imports.

    zygote = Zygote({"workers.runs.leases:MARGIN_SECONDS": 0.5})
    part = zygote.start("worker", ["start", …], env, cwd, out=…, log=…)

Each part is a process of its own that runs the entry point of the installed command. The numbers are constants of the
product, by module and name, that a test has shorter: a chaos test waits for all of them, hundreds of times.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.waiting import SCALE

ROOT = Path(__file__).parents[2]


class ForkedPart:
    """What `subprocess.Popen` is for a part that the zygote has forked: pid, poll, wait, send_signal, kill."""

    def __init__(self, zygote: "Zygote", number: int, pid: int) -> None:
        self.pid = pid
        self._zygote, self._number = zygote, number

    @property
    def returncode(self) -> int | None:
        return self._zygote.codes.get(self._number)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._zygote.news:
            if not self._zygote.news.wait_for(lambda: self._number in self._zygote.codes, timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self._zygote.codes[self._number]

    def send_signal(self, number: int) -> None:
        # not reaped by us, so the pid may be nobody's, but not somebody else's while the zygote has not told its end
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The tests' end of it."""

    def __init__(self, numbers: Mapping[str, float]) -> None:
        #: number of the start → exit code, or minus the signal; a pid comes again
        self.codes: dict[int, int] = {}
        self.news = threading.Condition()
        self._started: list[tuple[int, int]] = []
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(dict(numbers))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(
        self, command: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path, *, out: Path, log: Path
    ) -> ForkedPart:
        """Fork a part: `command` is `poller` or `worker`, `argv` its arguments."""
        asked = {"command": command, "argv": list(argv), "env": dict(env), "cwd": str(cwd)}
        asked |= {"out": str(out), "log": str(log)}
        with self._turn:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            with self.news:
                assert self.news.wait_for(lambda: self._started or self._over(), 120), "the zygote does not answer"
                return ForkedPart(self, *self._started.pop())

    def _over(self) -> bool:
        code = self._process.poll()
        assert code is None, f"the zygote ended with {code}"
        return False

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self.news:
                if "started" in told:
                    self._started.append((told["started"], told["pid"]))
                else:
                    self.codes[told["ended"]] = told["code"]
                self.news.notify_all()

    def close(self) -> None:
        """End it, and every part that still lives."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30 * SCALE)
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()


# -- the process itself


def _set_numbers(numbers: Mapping[str, float]) -> None:
    import importlib  # noqa: PLC0415 - only the zygote itself

    for name, value in numbers.items():
        module, _, path = name.partition(":")
        target = importlib.import_module(module)
        *classes, attribute = path.split(".")
        for part in classes:
            target = getattr(target, part)
        if classes:  # the default of a dataclass's field
            defaults = target.__init__.__kwdefaults__
            assert attribute in defaults, name
            defaults[attribute] = value
        assert hasattr(target, attribute), name
        setattr(target, attribute, value)


def _become(asked: Mapping[str, object], mains: Mapping[str, object]) -> None:
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDONLY)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        for fd, target in ((null, 0), (os.open(str(asked["out"]), flags, 0o600), 1)):
            os.dup2(fd, target)
        os.dup2(os.open(str(asked["log"]), flags, 0o600), 2)
        os.closerange(3, 64)
        os.chdir(str(asked["cwd"]))
        os.environ.clear()
        os.environ.update(asked["env"])  # type: ignore[call-overload]
        sys.argv = [str(Path(sys.executable).with_name(str(asked["command"]))), *asked["argv"]]  # type: ignore[misc]
        import random  # noqa: PLC0415 - else all parts would have the same jitter

        random.seed()
        mains[str(asked["command"])]()  # type: ignore[operator]
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork a part for each line; tell of each start and end by a line."""
    # all that the parts import late is here before the first fork
    import gc  # noqa: PLC0415
    import selectors  # noqa: PLC0415

    import celery.app.amqp  # noqa: PLC0415
    import celery.concurrency.thread  # noqa: PLC0415
    import celery.worker  # noqa: PLC0415, F401
    import kombu.transport.redis  # noqa: PLC0415, F401

    import poller.cli  # noqa: PLC0415
    import workers.cli  # noqa: PLC0415

    _set_numbers(json.loads(sys.argv[1]))
    mains = {"poller": poller.cli.main, "worker": workers.cli.main}
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    alive: dict[int, int] = {}
    numbers = itertools.count()
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(reader, selectors.EVENT_READ)
    rest = b""
    while True:
        for key, _ in selector.select():
            if key.fd == reader:
                os.read(reader, 4096)
                continue
            data = os.read(0, 1 << 16)
            if not data:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become(asked, mains)
                alive[pid] = next(numbers)
                _tell({"started": alive[pid], "pid": pid})
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _tell({"ended": alive.pop(pid), "code": os.waitstatus_to_exitcode(status)})


def _tell(what: Mapping[str, int]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
