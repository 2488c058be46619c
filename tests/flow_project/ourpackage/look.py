"""What a process can see of itself and its surroundings."""

import os
import re
import resource
import signal
import stat
import sys
from pathlib import Path

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFREG: "a file", stat.S_IFSOCK: "a socket"}


def _status(*names):
    text = Path("/proc/self/status").read_text()
    return {name: re.search(rf"^{name}:\s*(.*)$", text, re.MULTILINE)[1] for name in names}


def _opened(number):
    target = str(Path(f"/proc/self/fd/{number}").readlink())
    return target if target == os.devnull else _KINDS.get(stat.S_IFMT(os.fstat(number).st_mode), target)


def _inherited():
    """What a program that was executed here would have, beside the three of everybody."""
    # the descriptor of the listing itself is closed again
    numbers = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    numbers = [number for number in numbers if number > 2 and os.path.lexists(f"/proc/self/fd/{number}")]
    return sorted(str(Path(f"/proc/self/fd/{number}").readlink()) for number in numbers if os.get_inheritable(number))


def _umask():
    mask = os.umask(0o077)
    os.umask(mask)
    return oct(mask)


def _handlers():
    return {number.name: repr(signal.getsignal(number)).partition(" at ")[0] for number in signal.Signals}


def _limits():
    return {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}


def look():
    """All that is compared."""
    main = sys.modules["__main__"]
    return {
        "environ": dict(os.environ),
        "folder": str(Path.cwd()),
        # what stands there twice is found in its first place
        "sys.path": list(dict.fromkeys(sys.path)),
        "sys.argv": list(sys.argv),
        "sys.orig_argv": sys.orig_argv,
        "sys.flags": repr(sys.flags),
        "sys.executable": sys.executable,
        "__main__": [repr(getattr(main, name, None)) for name in ("__name__", "__file__", "__spec__")],
        "command line": Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0"),
        "process name": Path("/proc/self/comm").read_text(),
        "umask": _umask(),
        "limits": _limits(),
        "signal masks": _status("SigBlk", "SigIgn"),
        "signal handlers": _handlers(),
        "stdin": _opened(0),
        "stdout, stderr": [_opened(1), _opened(2)],
        "descriptors": _inherited(),
        "leads its group": os.getpgrp() == os.getpid(),
        "leads its session": os.getsid(0) == os.getpid(),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduling": [os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))],
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text().strip(),
        "identity": [os.getresuid(), os.getresgid(), os.getgroups()],
        "privileges": _status("NoNewPrivs", "CapEff", "Seccomp"),
        "cgroup": Path("/proc/self/cgroup").read_text(),
    }


def put(queue):
    """Look, in a process that multiprocessing has started."""
    from ourpackage import deep  # noqa: F401, PLC0415

    queue.put(look())
