"""Prefect 1 engine: how a fork of the warm parent becomes one, equal to one that was started afresh.

What prefect 1.4.1 keeps from its import on is made anew from the run's environment: configuration, context, loggers
(source: prefect 1.4.1, measured). What cannot be made anew, since interpreter,
C library or a package have read it once, must be as it was, else `LoadedPrefect.unfit` says why and the command is
executed.

Standard library and prefect only: this runs in the interpreter of the flows.
"""

from __future__ import annotations

import gc
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import runpy
import signal
import site
import sys
import time
import types

from . import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

#: what an engine imports anyway, most of it; never a flow's own modules
_PRELOADED = (
    *("prefect", "prefect.cli", "prefect.cli.execute", "prefect.engine.cloud", "prefect.storage"),
    *("prefect.serialization", "prefect.run_configs"),
)
_COMMAND = ("-m", "prefect")
#: variables that are read once: by the interpreter, by the C library, or at the import of prefect and what it imports
#: (each seen to be read there)
_ONCE = (
    *("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "OPENSSL_", "COVERAGE_", "SETUPTOOLS_"),
    *("DASK_", "PENDULUM_", "PSUTIL_", "MSGPACK_", "TORNADO_"),
)
_ONCE_NAMES = frozenset({"LANG", "LANGUAGE", "LOCPATH", "HOME", "TZ", "TZDIR", "PYTZDATA_TZDATADIR"})
#: those of Prefect's own settings that each engine reads anew
_ANEW = tuple(f"PREFECT__{name}" for name in ("BACKEND", "CLOUD__", "CONTEXT__", "LOGGING__", "ENGINE__", "FLOWS__"))
#: no kernel that we know of refuses less (Linux: 128 KiB a variable, 2 MiB in all unless the stack is small)
_LARGE_BYTES = 100_000
#: the variables by which the processes of a run are found when its shim is dead; so they come first
_MARKS = ("FLOWFLEET_RUN_ID", "FLOWFLEET_CLAIM")
#: modules that Python itself runs at its start, if it finds them on the path
_AT_START = frozenset({"sitecustomize", "usercustomize"})


class CannotWarmStart(Exception):
    """No warm start is possible here; the text says why."""


class _Missed:
    """The last finder: notes the modules that were looked for and are not there, since a run may bring them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, name: str, path: object = None, _target: object = None) -> None:
        """Note the name and find nothing."""
        if path is None:
            self.names.add(name)


class LoadedPrefect:
    """The state of the warm parent when it had loaded prefect, and how its forks renew that."""

    def __init__(self, before: Mapping[str, Any], wanted: Iterable[str]) -> None:
        self._handlers = {number: _handler(number) for number in signal.valid_signals()}
        self._environ = _environ_at_start()
        #: variables that Python and the imports have set by themselves: Python's LC_CTYPE where the locale is C
        self._added = {name: value for name, value in os.environ.items() if name not in self._environ}
        self._path = list(sys.path)
        self._names = {name.partition(".")[0] for name in sys.modules}
        self._names = (self._names | set(wanted)) - set(sys.builtin_module_names) - {"__main__"} | _AT_START
        #: a path that changed while it was read counts as changed
        self._files = {path: _signature(path) for path in self._watched()} | dict(before)

    @classmethod
    def load(cls, *ours: int) -> LoadedPrefect:
        """Load prefect; `ours` are the descriptors that we use.

        Raises `CannotWarmStart`, and whatever an import may raise.
        """
        if getattr(sys.flags, "safe_path", False):
            raise CannotWarmStart("PYTHONSAFEPATH keeps the folder of a run off its path")
        if sys.getfilesystemencoding() != "utf-8":
            raise CannotWarmStart("its locale is not UTF-8, and a run may have values that only UTF-8 can write")
        before = {path: _signature(path) for path in _own_path()}
        missed = _Missed()
        sys.meta_path.append(missed)
        try:
            modules = [importlib.import_module(name) for name in _PRELOADED]
        finally:
            sys.meta_path.remove(missed)
        if _threads() != 1:
            raise CannotWarmStart(
                "something that prefect loads or Python starts with runs a thread, and a fork would lose it"
            )
        if _open_descriptors() - {0, 1, 2, *ours}:
            raise CannotWarmStart(
                "something that prefect loads or Python starts with keeps a file open, which all runs would share"
            )
        missing = [name for name in ("config", "context", "Client") if not hasattr(modules[0], name)]
        if missing:
            raise CannotWarmStart(f"this prefect has no {missing[0]}")
        return cls(before, missed.names)

    # -- called by the parent

    def stale(self) -> bool:
        """Whether anything has changed that was read once, so that a new parent must read it."""
        return _threads() != 1 or any(_signature(path) != seen for path, seen in self._files.items())

    def _watched(self) -> Iterator[str]:
        yield from _own_path()
        yield sys.executable
        yield os.path.join(sys.prefix, "pyvenv.cfg")
        configuration = sys.modules["prefect.configuration"]
        yield str(sys.modules["prefect"].__file__)
        for path in (configuration.USER_CONFIG, configuration.BACKEND_CONFIG):
            yield os.path.expanduser(os.path.expandvars(path))
        dask = sys.modules.get("dask.config")
        for path in getattr(dask, "paths", ()):
            yield path
            yield from (os.path.join(path, name) for name in _names_in(path) if name.endswith((".yaml", ".yml")))

    # -- called by the forked command, in its working folder

    def unfit(self, request: Mapping[str, Any]) -> str | None:
        """Why this command must be executed; None = `become` does the same."""
        argv, env = request["argv"], request["env"]
        if tuple(argv[1:3]) != _COMMAND or not _same_file(argv[0], sys.executable):
            return "it is not the engine of this Python"
        name = next(iter(sorted(self._differing(env))), None)
        if name is not None:
            return f"its variable {name} is read once at the start"
        if not _settable(env):
            return "the kernel should judge its environment"
        try:
            return self._shadowed(env)
        except OSError as exc:
            return f"its path cannot be looked through: {exc.strerror}"

    def _differing(self, env: Mapping[str, str]) -> Iterator[str]:
        for name in {*env, *self._environ}:
            once = name.startswith(_ONCE) or name in _ONCE_NAMES
            fixed = name.startswith("PREFECT__") and not name.startswith(_ANEW)
            if (once or fixed) and name != "PYTHONPATH" and env.get(name) != self._environ.get(name):
                yield name

    def _shadowed(self, env: Mapping[str, str]) -> str | None:
        for entry in _entries(env):
            if entry in self._path or not os.path.exists(entry):
                continue
            if not os.path.isdir(entry):
                return f"{entry} on its path is no folder"
            for name in sorted({file.partition(".")[0] for file in _names_in(entry)} & self._names):
                spec = importlib.machinery.PathFinder.find_spec(name, [entry])
                # a folder without a package has no loader: a module later on the path is found before it
                if spec is not None and spec.loader is not None and not _loaded_from(name, spec.origin):
                    return f"{spec.origin} on its path stands before the module {name} that is loaded"
        return None

    # -- run by the forked command itself

    def become(self, request: dict[str, Any], report: int) -> None:
        """Run the engine; raises what `python -m prefect` would end with (SystemExit, KeyboardInterrupt)."""
        argv, env = list(request["argv"]), dict(request["env"])
        request.clear()
        self._renew_process(argv, env)
        os.close(report)  # from here on the command has begun
        os.closerange(3, max(_open_descriptors()) + 1)
        self._renew_python(argv, env)
        try:
            _renew_prefect()
            run: Any = runpy._run_module_as_main  # type: ignore[attr-defined]  # noqa: SLF001 - it is what `-m` calls
            run("prefect")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # noqa: BLE001 - guards the user's code, as the interpreter does
            trace = _from_runpy(exc.__traceback__)
            sys.excepthook(type(exc), exc.with_traceback(trace), trace)
            sys.exit(1)

    def _renew_process(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        os.environ.clear()
        os.environ.update({**self._added, **env})
        syscalls.set_name(os.path.basename(argv[0]))
        syscalls.set_title("\0".join(argv))
        syscalls.set_environ(sorted(env.items(), key=lambda pair: pair[0] not in _MARKS))

    def _renew_python(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        gc.enable()
        folder, *listed = _entries(env)
        sys.path[:] = [folder, *dict.fromkeys([*listed, *self._path])]
        importlib.invalidate_caches()
        sys.argv[:] = ["-m", *argv[3:]]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv[:] = argv
        sys.modules["__main__"] = types.ModuleType("__main__")
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None:
            tempfile.tempdir = None  # Python derives it from variables at its first use
        process: Any = sys.modules.get("multiprocessing.process")
        if process is not None:
            process.current_process().authkey = os.urandom(32)  # no run may know another's
            process.ORIGINAL_DIR = folder
        _renew_log_clock()


def _renew_log_clock() -> None:
    # `relativeCreated` of log records counts from the import of logging; nanoseconds from Python 3.13 on
    whole = isinstance(vars(logging)["_startTime"], int)
    vars(logging)["_startTime"] = time.time_ns() if whole else time.time()


def _handler(number: int) -> Any:
    """The handler in a Python that was started with all signals at their defaults, with prefect loaded."""
    handler = signal.getsignal(number)
    if handler is not signal.SIG_IGN or number in (signal.SIGPIPE, signal.SIGXFSZ):
        return handler
    return signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL


def _environ_at_start() -> dict[str, str]:
    with open("/proc/self/environ", "rb") as file:
        pairs = os.fsdecode(file.read()).split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _renew_prefect() -> None:
    """Read configuration, context and logging anew, in place: some fifteen modules hold on to these objects."""
    prefect: Any = sys.modules["prefect"]
    configuration: Any = sys.modules["prefect.configuration"]
    log: Any = sys.modules["prefect.utilities.logging"]
    before = ["prefect", "client.diagnostics", *prefect.context.config.logging.get("extra_loggers", [])]
    configuration.USER_CONFIG = os.getenv("PREFECT__USER_CONFIG_PATH", "~/.prefect/config.toml")
    configuration.BACKEND_CONFIG = os.getenv("PREFECT__BACKEND_CONFIG_PATH", "~/.prefect/backend.toml")
    fresh = configuration.load_default_config()
    configuration.config.clear()
    for name, value in fresh.items():
        configuration.config[name] = value
    prefect.context.clear()
    prefect.context.__init__()
    for name in before:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    prefect.context.logger = log.configure_logging()
    log.configure_extra_loggers()
    prefect.Client.logger = log.create_diagnostic_logger("client.diagnostics")
    log.LOG_MANAGER.__init__()


def _entries(env: Mapping[str, str]) -> list[str]:
    """What `python -m` puts before its own path: the working folder, and PYTHONPATH."""
    listed = env.get("PYTHONPATH") or ""
    return [os.getcwd(), *(os.path.abspath(entry) for entry in (listed.split(os.pathsep) if listed else ()))]


def _settable(env: Mapping[str, str]) -> bool:
    """Whether the kernel would surely take this environment; one variable or all may be too large for it."""
    sizes = [len(os.fsencode(name)) + len(os.fsencode(value)) for name, value in env.items()]
    if any("=" in name or "\0" in name + value for name, value in env.items()) or "" in env:
        return False
    return max(sizes, default=0) < _LARGE_BYTES and sum(sizes) < 4 * _LARGE_BYTES


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _own_path() -> list[str]:
    # what a .pth file adds from elsewhere is a project that somebody works in: flows write there, and it comes last
    own = tuple(os.path.join(prefix, "") for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix})
    return [path for path in sys.path if path.startswith(own) or path == site.USER_SITE]


def _signature(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _same_file(one: str, other: str) -> bool:
    # by name: the same Python through another link may be another environment
    return os.path.abspath(one) == os.path.abspath(other)


def _loaded_from(name: str, origin: str | None) -> bool:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    return bool(file and origin) and os.path.realpath(str(file)) == os.path.realpath(str(origin))


def _open_descriptors() -> set[int]:
    # the descriptor of the listing itself is closed again when `lexists` looks
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


def _from_runpy(trace: types.TracebackType | None) -> types.TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace
