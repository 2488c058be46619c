"""Abilities: what this platform can do for runs, probed once at start and never assumed."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from workers.shim import syscalls


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """Each one is True only where it was seen to work; without any of them a worker runs in plain mode."""

    #: /proc tells start times, parents and environments
    proc: bool
    #: processes are watched and signalled by descriptor: an end is seen at once, a reused pid is never met
    pidfd: bool
    #: orphans of a run, daemons too, come back to its shim
    subreaper: bool
    #: the head of a log can be given back to the disk while the run writes on
    holes: bool
    #: the exit of a process that is not our child can still be asked for
    pidfd_info: bool

    @classmethod
    def probe(cls, environ: Mapping[str, str]) -> Abilities:
        """See what works here; `FLOWFLEET_PLAIN=1` switches all of it off."""
        if environ.get("FLOWFLEET_PLAIN") == "1":
            return cls.plain()
        proc = syscalls.start_ticks(os.getpid()) is not None
        pidfd, pidfd_info = _probe_pidfd()
        return cls(
            proc=proc,
            pidfd=pidfd and proc,
            subreaper=syscalls.LINUX and proc,
            holes=syscalls.LINUX,
            pidfd_info=pidfd_info,
        )

    @classmethod
    def plain(cls) -> Abilities:
        """Nothing beyond POSIX: everything is polled, and promises fall away (`missing`)."""
        return cls(proc=False, pidfd=False, subreaper=False, holes=False, pidfd_info=False)

    def missing(self) -> list[str]:
        """The promises that fall away here, one sentence each, for the worker to say at start."""
        sentences = []
        if not self.pidfd:
            sentences.append("The end of a run is seen within a second, not at once.")
        if not self.subreaper:
            sentences.append("A daemon that a run leaves behind is only found by its environment.")
        if not self.holes:
            sentences.append("Lines can be lost when the output of a run is cut to its cap.")
        return sentences


def _probe_pidfd() -> tuple[bool, bool]:
    # old kernels lack the calls, and seccomp profiles of old container engines refuse them
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return False, False
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError:
        return False, False
    try:
        signal.pidfd_send_signal(fd, 0)  # 0 only asks
        return True, syscalls.pidfd_info_works(fd)
    except OSError:
        return False, False
    finally:
        os.close(fd)
