"""OOM watch: whether the kernel has killed a run for want of memory, or something else on its host.

Where the run has a control group of its own, that group's count decides, and when it rose; the kernel gives notice of
that, since counting now and then would miss the kill of a run that is gone with it. Else there is only the count of
the whole host, which may be about anything. Standard library only: part of the shim.
"""

from __future__ import annotations

import time

from . import cgroup, syscalls

#: a run that ends by KILL so soon after a kill for memory in its group has ended by it
_NEAR_SECONDS = 1.0
#: after a notice the group is looked at this often: the count may rise, and the killed one die, a little later
_LOOK_SECONDS = 0.02
#: so long, where the rise was seen without a notice
_LOOKS_SECONDS = 0.1
#: where not each kill gives notice, the group is looked at this often
_SAMPLE_SECONDS = 1.0
#: flag of a process that is on its way out, in /proc/PID/stat
_EXITING = 0x4
_KILL_PENDING = 1 << 8


class OomWatch:
    """The kernel's kills for memory from the start of a run to its end."""

    def __init__(self, *, proc: bool) -> None:
        self._proc = proc
        self._group: cgroup.RunGroup | None = None
        self._root = 0
        #: the host's count at the last two ticks; the older one counts, since a large process takes its time between
        #: kill and end
        self._host = [self._host_kills()] * 2
        #: the group's count as last read, and when that was
        self._kills = 0
        self._read_at = time.monotonic()
        #: until when the group is looked at again and again; None = it is not
        self._look_until: float | None = None
        #: when the group's count rose last, as far as that is known
        self._rose_at: float | None = None
        #: the run's first process was seen dying right after a kill for memory in the group
        self._hit = False

    def open(self, path: str | None, root: int) -> None:
        """Watch the group of the command with this pid, which has entered it by now; None = it has none."""
        if path is None:
            return
        try:
            self._group = cgroup.RunGroup(path)
        except OSError:
            return  # the command could not enter it
        self._root = root
        self.look()

    @property
    def descriptors(self) -> list[int]:
        """What turns readable when `look` is due."""
        return [self._group.notice] if self._group is not None and self._group.notice >= 0 else []

    def next_look(self, now: float) -> float | None:
        """When `look` is due even without a notice, by the monotonic clock; None = it is not."""
        if self._group is None:
            return None
        if self._look_until is not None:
            return now + _LOOK_SECONDS
        return None if self._group.tells_all else self._read_at + _SAMPLE_SECONDS

    def look(self) -> None:
        """Read the group's count: at a notice, and when it is due."""
        if self._group is None:
            return
        now, before = time.monotonic(), self._read_at
        if self._group.take_notice():
            self._look_until = now + _NEAR_SECONDS
        kills, self._read_at = self._group.oom_kills(), now
        if kills > self._kills:
            self._kills = kills
            if self._look_until is None:
                # without a notice it rose at any time since it was read before
                self._rose_at, self._look_until = before, now + _LOOKS_SECONDS
            else:
                self._rose_at = now
        if self._look_until is not None:
            self._hit = self._hit or (self._rose_near(now) and self._root_dies())
            if now > self._look_until:
                self._look_until = None

    def _rose_near(self, now: float) -> bool:
        return self._rose_at is not None and now - self._rose_at <= _NEAR_SECONDS

    def tick(self) -> None:
        """Read the host's count, every few seconds."""
        self._host.append(self._host_kills())
        del self._host[0]

    def end(self, *, killed: bool) -> dict[str, object]:
        """The facts for the record of a run that has just ended; `killed`: by a KILL that nobody of us has sent."""
        facts: dict[str, object] = {"oom": False, "oom_on_host": None, "oom_kills": None, "tree_peak_kib": None}
        now_kills = self._host_kills()
        if self._host[0] >= 0:
            facts["oom_on_host"] = killed and now_kills > self._host[0]
        if self._group is None:
            return facts
        before, ended_at = self._kills, time.monotonic()
        self.look()
        near = self._kills > before or self._rose_near(ended_at)
        facts["oom"] = killed and (self._hit or near)
        facts["oom_kills"] = self._kills
        facts["tree_peak_kib"] = self._group.peak_kib()
        self._group.close()
        return facts

    def _root_dies(self) -> bool:
        fields = syscalls.stat_fields(self._root)
        if not fields or fields[0] in "ZX" or int(fields[6]) & _EXITING:
            return True
        try:
            with open(f"/proc/{self._root}/status", "rb") as file:
                pending = next((line.split()[1] for line in file if line.startswith(b"SigPnd")), b"0")
        except OSError:
            return True
        return bool(int(pending, 16) & _KILL_PENDING)

    def _host_kills(self) -> int:
        return syscalls.oom_kills() if self._proc else -1
