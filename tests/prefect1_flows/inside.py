"""Writes all that an engine can tell about itself, as JSON; and leaves things for the end of the interpreter to do."""

import atexit
import gc
import json
import locale
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import warnings
from pathlib import Path

import prefect
from prefect import Flow, Parameter, task

LEFT = []


class Leaver:
    """Writes when it is finalized, as late as that may be."""

    def __init__(self, path):
        self.path, self.open = path, open

    def __del__(self):
        with self.open(self.path, "a") as file:
            file.write("finalized\n")


def described(handler):
    shape = [getattr(handler.formatter, name, None) for name in ("_fmt", "datefmt")]
    return [type(handler).__name__, handler.level, *shape, getattr(handler, "stream", None) is sys.stdout]


def loggers():
    manager = logging.Logger.manager.loggerDict
    found = {}
    for name in sorted(manager):
        logger = manager[name]
        if isinstance(logger, logging.Logger) and (logger.handlers or logger.level):
            found[name] = [logger.level, logger.propagate, [described(one) for one in logger.handlers]]
    return found


def child():
    """A process that multiprocessing starts afresh looks for our own main module."""
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join(60)
    return process.exitcode


@task
def look(out, spawn):
    logging.getLogger("odd.logger").info("said by an odd logger")
    prefect.context.logger.info("said by the task")
    main = sys.modules["__main__"]
    process = Path("/proc/self")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    parent = process / ".." / str(os.getppid())
    seen = {
        "environ": dict(os.environ),
        "cwd": str(Path.cwd()),
        "original_dir": multiprocessing.process.ORIGINAL_DIR,
        "path": sys.path,
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "executable": [sys.executable, sys.prefix],
        "flags": repr(sys.flags),
        "main": [main.__name__, main.__file__, main.__spec__.name, sorted({*vars(main)} - {"__annotations__"})],
        "config": json.loads(json.dumps(prefect.config, default=str)),
        "context_config": json.loads(json.dumps(prefect.context.config, default=str)),
        "context": sorted(prefect.context),
        "secrets": dict(prefect.context.get("secrets", {})),
        "loggers": loggers(),
        "handlers": {
            str(number): getattr(signal.getsignal(number), "__name__", signal.getsignal(number))
            for number in sorted(signal.valid_signals())
        },
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "main_thread": threading.current_thread() is threading.main_thread(),
        # without sockets: the connection to the API comes and goes; tests/integration/test_warm_client.py looks at them
        "descriptors": sorted(
            (int(one.name), link)
            for one in (process / "fd").iterdir()
            if one.exists() and (link := str(one.readlink()).partition(":")[0]) != "socket"
        ),
        "gc": [gc.isenabled(), gc.get_threshold()],
        "recursion": sys.getrecursionlimit(),
        "stdout": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdout.write_through],
        "locale": locale.setlocale(locale.LC_CTYPE),
        "streams": [stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "filters": repr(warnings.filters),
        "hooks": [sys.excepthook is sys.__excepthook__, threading.excepthook.__name__],
        "ours": sorted(name for name in sys.modules if name.partition(".")[0] in ("workers", "flowfleet")),
        "status": [status["Name"], status["SigIgn"], status["SigBlk"]],
        "cmdline": [part for part in (process / "cmdline").read_text().split("\0") if part],
        "shown": sorted(part for part in (process / "environ").read_text(errors="replace").split("\0") if part),
        "limits": [resource.getrlimit(one) for one in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        "nice": int((process / "stat").read_text().rpartition(")")[2].split()[16]),
        "score": (process / "oom_score_adj").read_text(),
        "group": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getppid()],
        "spawned": child() if spawn else None,
    }
    grandparent = Path("/proc", (parent / "stat").read_text().rpartition(")")[2].split()[1])
    started_by = (grandparent / "comm").read_text().strip()
    LEFT.append(Leaver(out + ".late"))
    atexit.register(Path(out + ".atexit").write_text, "done")
    Path(out).write_text(json.dumps({"seen": seen, "by": started_by, "pid": os.getpid()}))


with Flow("inside") as flow:
    look(Parameter("out"), Parameter("spawn", default=False))
