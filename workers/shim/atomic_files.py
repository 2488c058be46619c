"""Atomic files: small JSON records on disk that are either there whole or not there at all.

Standard library only: worker and shim both write by these rules, so that a kill or a power cut between any two steps
leaves a folder that the next worker can read.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Mapping
    from typing import Any

#: the errors by which a file system without hard links refuses one
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.ENOTSUP})


def read_json(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a record; None when the file is not there or holds no JSON object."""
    try:
        with open(path, "rb") as file:
            record = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any], *, sync: bool = True) -> None:
    """Replace a record in one step; with `sync` it survives a power cut once this returns."""
    target = os.fspath(path)
    temporary = f"{target}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    whole = False
    try:
        _write(fd, record)
        if sync:
            os.fsync(fd)
        whole = True
    finally:
        os.close(fd)
        if not whole:
            os.unlink(temporary)
    os.replace(temporary, target)
    if sync:
        sync_folder(os.path.dirname(target))


def create_once(path: str | os.PathLike[str], record: Mapping[str, Any]) -> int | None:
    """Create a record that only one process can create; the winner gets its descriptor, locked, all others None.

    The file is filled, synced and locked under another name and then linked into place, so nobody ever sees it empty
    or unlocked. The lock lasts as long as the descriptor: it tells anybody on this host, in any pid namespace,
    whether its creator still lives.
    """
    target = os.fspath(path)
    temporary = f"{target}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        _write(fd, record)
        os.fsync(fd)
        os.link(temporary, target)
    except FileExistsError:
        os.close(fd)
        return None
    except OSError as exc:
        os.close(fd)
        if exc.errno in _NO_LINKS:
            return _create_in_place(target, record)
        raise
    finally:
        os.unlink(temporary)
    sync_folder(os.path.dirname(target))
    return fd


def _create_in_place(target: str, record: Mapping[str, Any]) -> int | None:
    # without hard links there is a moment in which the file is there and empty: readers wait for its lock
    try:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return None
    fcntl.flock(fd, fcntl.LOCK_EX)
    _write(fd, record)
    os.fsync(fd)
    sync_folder(os.path.dirname(target))
    return fd


def locked(path: str | os.PathLike[str]) -> bool:
    """True while a living process holds the lock of this file; raises `OSError` where that cannot be told."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # some file systems cannot sync a folder, and need not
            raise
    finally:
        os.close(fd)


def _write(fd: int, record: Mapping[str, Any]) -> None:
    data = json.dumps(record).encode()
    while data:
        data = data[os.write(fd, data) :]
