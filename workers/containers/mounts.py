"""Mounts: one entry of a run's `mounts`, made anew of the parts that we know.

The engine takes the names of such a table in any case and any spelling that its JSON library folds together, and the
last of two counts. So what a run has written is never handed on: a name that is not exactly one of these is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flowfleet.errors import UnsupportedRun
from workers.containers import kinds
from workers.containers.kinds import Kind

_TYPES = ("bind", "volume", "tmpfs")
_DRIVER: Mapping[str, Kind] = {"Name": kinds.text, "Options": kinds.texts_by_name}
#: the options of each type of mount
_OPTIONS: Mapping[str, Mapping[str, Kind]] = {
    "BindOptions": {"Propagation": kinds.text, "NonRecursive": kinds.flag, "CreateMountpoint": kinds.flag},
    "VolumeOptions": {
        "NoCopy": kinds.flag,
        "Labels": kinds.texts_by_name,
        "DriverConfig": partial(kinds.made, "mounts", "DriverConfig", _DRIVER),
    },
    "TmpfsOptions": {"SizeBytes": kinds.number, "Mode": kinds.number},
}
_MOUNT: Mapping[str, Kind] = {
    "Target": kinds.text,
    "Source": kinds.text,
    "Type": kinds.text,
    "ReadOnly": kinds.flag,
    "Consistency": kinds.text,
    **{name: partial(kinds.made, "mounts", name, parts) for name, parts in _OPTIONS.items()},
}
#: what mounts inside do not show on the host
_OWN_PROPAGATION = (None, "", "private", "rprivate", "slave", "rslave")


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The mount of what is given, with Type and Target; raises `UnsupportedRun` where that is none."""
    mount = kinds.made("mounts", "mount", _MOUNT, given)
    kind, source = mount.setdefault("Type", "volume"), mount.get("Source", "")
    if kind not in _TYPES or not mount.get("Target", "").startswith("/"):
        raise UnsupportedRun(
            f"it has a mount of the type {kind[:20]!r} at {mount.get('Target', '')[:60]!r}: give bind, volume or tmpfs "
            "with a Target that begins with /"
        )
    if kind == "volume" and source and not source[0].isalnum():
        raise UnsupportedRun(f"it has a mount of the type volume whose source {source[:100]!r} is no name of one")
    return mount


def gives_host(mount: Mapping[str, Any]) -> bool:
    """Whether it has options by which a run could have folders of the host, or show it its own mounts."""
    # `type=none,o=bind,device=/` would be the whole host
    driver = (mount.get("VolumeOptions") or {}).get("DriverConfig")
    return bool(driver) or (mount.get("BindOptions") or {}).get("Propagation") not in _OWN_PROPAGATION
