"""Volumes: what of its host a container sees, as people write it, and which of that a run may ask for.

The grammar is the reference's (prefect 1.4.1): PATH, or SOURCE:PATH, or SOURCE:PATH:MODE. A source that begins with
`.`, `/` or `~` is a folder of the host, any other the name of a volume of the engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowfleet.errors import UnsupportedRun

_MOST_FIELDS = 3
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MODES = frozenset({"rw", "ro", "z", "Z", "cached", "delegated", "consistent", "nocopy"})
#: sockets by which a program has the whole host in its hands
SOCKETS = ("docker.sock", "podman.sock", "containerd.sock", "crio.sock")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One volume of a container."""

    #: a folder of the host, or the name of a volume; None = a new volume of its own
    source: str | None
    #: where the container sees it
    target: str
    mode: str = "rw"

    @property
    def is_folder(self) -> bool:
        """Whether the source is a folder (or file) of the host."""
        return self.source is not None and self.source.startswith("/")

    def __str__(self) -> str:
        return self.target if self.source is None else f"{self.source}:{self.target}:{self.mode}"


def parse(text: str, *, folder: Path, home: Callable[[str], str] = os.path.expanduser) -> Volume:
    """Read one volume; a relative folder begins at `folder`. Raises `UnsupportedRun` with one sentence."""
    fields = text.split(":")
    if not text.isprintable():
        raise UnsupportedRun(f"the volume {text[:200]!r} has a character that no path can have here")
    if len(fields) > _MOST_FIELDS or not all(fields):
        raise UnsupportedRun(f"the volume {text[:200]!r} is none: write SOURCE:PATH or SOURCE:PATH:MODE")
    source, target = (None, fields[0]) if len(fields) == 1 else (fields[0], fields[1])
    mode = fields[2] if len(fields) == _MOST_FIELDS else "rw"
    if not target.startswith("/"):
        raise UnsupportedRun(f"the volume {text[:200]!r} must name a path inside the container that begins with /")
    unknown = set(mode.split(",")) - _MODES
    if unknown:
        raise UnsupportedRun(f"the volume {text[:200]!r} has the mode {min(unknown)!r}: give ro or rw")
    target = os.path.normpath(target)
    if source is None:
        return Volume(source=None, target=target)
    if source[0] in "./~":
        found = home(source)
        if found.startswith("~"):
            raise UnsupportedRun(f"the volume {text[:200]!r} names a home that this host does not have")
        return Volume(source=os.path.normpath(folder / found), target=target, mode=mode)
    if not _NAME.fullmatch(source):
        raise UnsupportedRun(f"the volume {text[:200]!r} has a name that no volume can have")
    if "ro" in mode.split(","):
        # as the reference has it
        raise UnsupportedRun(f"the volume {text[:200]!r} is a named one, and these are rw")
    return Volume(source=source, target=target, mode=mode)


def check(volume: Volume, allowed: Sequence[str], *, local: bool, sockets: Sequence[str] = ()) -> Volume:
    """The volume that a run has asked for, its folder without links; raises `UnsupportedRun` where it may not have it.

    `allowed` are the folders of `--allow-mount`. `local` tells whether we see the folders of the engine's host, and
    `sockets` are those of its engine.
    """
    if not volume.is_folder:
        return volume
    assert volume.source is not None
    real = os.path.realpath(volume.source) if local else volume.source
    if _has_socket(real, [os.path.realpath(each) if local else each for each in sockets], local=local):
        raise UnsupportedRun(
            f"it asks for {volume.source}, which is or holds the engine's socket, by which it would have the whole "
            "host: no run may ask for that, the worker's own --volume can give it to all"
        )
    roots = [os.path.realpath(each) if local else os.path.normpath(each) for each in allowed]
    if not any(_is_within(real, root) for root in roots):
        leads = "" if real == volume.source else f" (which leads to {real})"
        raise UnsupportedRun(
            f"it asks for the folder {volume.source}{leads} of its host, which its worker does not allow: if all who "
            f"may edit deployments may have that folder: start the worker with --allow-mount {real}"
        )
    # without links; one that somebody puts there before the engine looks is followed all the same (docs/containers.md)
    return Volume(source=real, target=volume.target, mode=volume.mode)


def _has_socket(path: str, sockets: Sequence[str], *, local: bool) -> bool:
    if Path(path).name in SOCKETS or any(_is_within(each, path) for each in sockets):
        return True
    return local and Path(path).is_socket()


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
