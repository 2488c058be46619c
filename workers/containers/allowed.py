"""Allowed: which settings of a container a run may choose, and which would give it the host.

Whoever may edit a deployment chooses them, and is not always who runs the host. What could take the host over is
refused unless the worker's operator has allowed it; so is what we do not know. Some settings are always ours, since
the run would be started twice or its end would not be seen otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfleet.errors import UnsupportedRun
from workers.containers import kinds, mounts, volumes
from workers.containers.kinds import Kind
from workers.containers.volumes import Volume

#: by them no other container and no file of the host can be reached (SDK 7.2 of Docker); each with its form. Networks
#: are looked at together, by `check_network`
FREE: Mapping[str, Kind] = {
    "blkio_weight": kinds.number,
    "blkio_weight_device": kinds.tables,
    "cap_drop": kinds.texts,
    "cpu_count": kinds.number,
    "cpu_percent": kinds.number,
    "cpu_period": kinds.number,
    "cpu_quota": kinds.number,
    "cpu_shares": kinds.number,
    "cpuset_cpus": kinds.text,
    "cpuset_mems": kinds.text,
    "device_read_bps": kinds.tables,
    "device_read_iops": kinds.tables,
    "device_write_bps": kinds.tables,
    "device_write_iops": kinds.tables,
    "dns": kinds.texts,
    "dns_opt": kinds.texts,
    "dns_search": kinds.texts,
    "domainname": kinds.text,
    "entrypoint": kinds.words,
    "environment": kinds.pairs,
    "extra_hosts": kinds.pairs,
    "group_add": kinds.texts,
    "healthcheck": kinds.table,
    "hostname": kinds.text,
    "init": kinds.flag,
    "isolation": kinds.text,
    "kernel_memory": kinds.size,
    "labels": kinds.pairs,
    "mac_address": kinds.text,
    "mem_limit": kinds.size,
    "mem_reservation": kinds.size,
    "mem_swappiness": kinds.number,
    "memswap_limit": kinds.size,
    "nano_cpus": kinds.number,
    "network": kinds.text,
    "network_disabled": kinds.flag,
    "network_mode": kinds.text,
    "pids_limit": kinds.number,
    "platform": kinds.text,
    "port_bindings": kinds.ports,
    "ports": kinds.texts,
    "publish_all_ports": kinds.flag,
    "read_only": kinds.flag,
    "shm_size": kinds.size,
    "stdin_open": kinds.flag,
    "stop_signal": kinds.signal,
    "storage_opt": kinds.texts_by_name,
    "tmpfs": kinds.pairs,
    "tty": kinds.flag,
    "ulimits": kinds.tables,
    "use_config_proxy": kinds.flag,
    "user": kinds.text,
    "working_dir": kinds.text,
}
#: always ours, with one log line where a run asks otherwise
OURS = {
    "auto_remove": "its exit would be lost",
    "restart_policy": "it would be run twice",
    "name": "it stands in the run's own settings",
    "detach": "a worker never waits in its start",
    "log_config": "its output goes to the run's file",
    "image": "it stands in the run's own settings",
    "command": "it stands in the run's own settings",
    "cgroup_parent": "its engine knows where containers belong",
}
#: refused unless the worker has --allow-privileged
_GUARDED = frozenset(
    [
        "cap_add",
        "cgroup_parent",
        "cpu_rt_period",
        "cpu_rt_runtime",
        "device_cgroup_rules",
        "devices",
        "init_path",
        "links",
        "lxc_conf",
        "oom_kill_disable",
        "oom_score_adj",
        "privileged",
        "runtime",
        "security_opt",
        "sysctls",
        "volume_driver",
        "volumes_from",
    ]
)
#: namespaces that may be those of the host or of another container; networks are looked at with all others
_NAMESPACES = ("pid_mode", "ipc_mode", "uts_mode", "userns_mode", "cgroupns")
#: of these, what gives nothing away
_HARMLESS = {"ipc_mode": ("private", "shareable", "none")}
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_DEVICE_PARTS: Mapping[str, Kind] = {
    "Driver": kinds.text,
    "Count": kinds.number,
    "DeviceIDs": kinds.texts,
    "Capabilities": kinds.lists_of_texts,
    "Options": kinds.texts_by_name,
}
#: as the SDK names them beside that
_DEVICE_SPELLINGS = {
    "driver": "Driver",
    "count": "Count",
    "device_ids": "DeviceIDs",
    "capabilities": "Capabilities",
    "options": "Options",
}
_GPU_DRIVERS = ("", "nvidia")
_GPU_CAPABILITIES = frozenset({"gpu", "compute", "compat32", "graphics", "utility", "video", "display"})


@dataclass(frozen=True, kw_only=True)
class Permissions:
    """What the operator of a worker allows to the runs on it."""

    #: --allow-privileged
    privileged: bool = False
    #: the folders of the host and the volumes of the engine of --allow-mount
    mounts: Sequence[str] = ()
    #: sockets by which a program has the whole host, beside those of the usual names
    sockets: Sequence[str] = ()
    #: where a relative folder begins: the worker's own
    folder: Path
    #: whether we see the folders of the engine's host
    local: bool = True

    def options(self, asked: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
        """The options that count, and the names of those that are ours in any case; raises `UnsupportedRun`.

        `where` tells where the run has them, as `host_config`.
        """
        kept: dict[str, Any] = {}
        dropped = []
        for name, value in asked.items():
            if value is None or value == "":
                continue
            if name in OURS and not (name in _GUARDED and not self.privileged):
                dropped.append(name)
                continue
            checked = self._checked(str(name), value, where)
            if checked is not None:
                kept[str(name)] = checked
        return kept, dropped

    def check_network(self, name: str, where: str, *, of_host: bool) -> None:
        """Raise `UnsupportedRun` where a run may not have this network, or network mode.

        `of_host`: the host's own is open to runs.
        """
        if self.privileged:
            return
        if name == "host" and not of_host:
            raise UnsupportedRun(
                f"it asks for the host's network in its {where}, and its worker was started with --network or "
                "--no-host-network: take it away"
            )
        if name.startswith(("container:", "ns:")) or not _NETWORK.fullmatch(name):
            raise UnsupportedRun(_refusal(where, f"the network {name[:60]!r}"))

    def volume(self, text: str) -> Volume:
        """A volume that a run asks for; raises `UnsupportedRun`."""
        return self._open(volumes.parse(text, folder=self.folder), text)

    def named_volume(self, name: str) -> bool:
        """Whether a run may have this volume of the engine, whoever has made it."""
        return self.privileged or name in self.mounts

    def _open(self, volume: Volume, text: str) -> Volume:
        if "Z" in volume.mode.split(",") and not self.privileged:
            # it would take a folder of the host away from all others
            raise UnsupportedRun(_refusal("volumes", f"the mode Z of {text[:100]!r}"))
        return volumes.check(volume, self.mounts, local=self.local, sockets=self.sockets)

    def _checked(self, name: str, value: Any, where: str) -> Any:
        kind = FREE.get(name)
        if kind is not None:
            return kinds.given(name, kind, value, where)
        if name in _NAMESPACES:
            return self._namespace(name, kinds.given(name, kinds.text, value, where), where)
        if name in ("volumes", "binds"):
            return _as_texts(value)  # each is looked at with those of the other settings
        if name == "mounts":
            return [self._mount(each, where) for each in kinds.given(name, kinds.tables, value, where)]
        if name == "device_requests":
            return [self._devices(each, where) for each in kinds.given(name, kinds.tables, value, where)]
        if name in _GUARDED:
            if self.privileged or value in (False, [], {}):
                return value
            raise UnsupportedRun(_refusal(where, name))
        raise UnsupportedRun(f"it has {name[:60]!r} in its {where}, which this worker does not know: take it away")

    def _namespace(self, name: str, value: str, where: str) -> str:
        if value in _HARMLESS.get(name, ("private",)) or self.privileged:
            return value
        raise UnsupportedRun(_refusal(where, f"{name}={value[:60]}"))

    def _mount(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        mount = mounts.checked(given)
        kind, source, target = mount["Type"], mount.get("Source", ""), mount["Target"]
        if not self.privileged and mounts.gives_host(mount):
            raise UnsupportedRun(_refusal(where, f"the options of its mount at {target[:60]}"))
        if kind == "bind":
            mount["Source"] = self._open(volumes.parse(f"{source}:{target}", folder=self.folder), source).source
        return mount

    def _devices(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A request for devices, which is one for GPUs unless the operator allows more."""
        spelled = [(_DEVICE_SPELLINGS.get(name, name), value) for name, value in given.items()]
        if len(dict(spelled)) < len(spelled):  # the SDK and we might read different ones
            raise UnsupportedRun("it has a device request that has a part of it twice")
        request = kinds.made("device_requests", "device request", _DEVICE_PARTS, dict(spelled))
        names = {name for each in request.get("Capabilities", ()) for name in each}
        gpu = "gpu" in names and names <= _GPU_CAPABILITIES and request.get("Driver", "") in _GPU_DRIVERS
        if not self.privileged and not (gpu and not request.get("Options")):
            raise UnsupportedRun(_refusal(where, "device_requests other than for GPUs"))
        return request


def _as_texts(value: Any) -> list[str]:
    """Volumes in both forms of the SDK: a list of texts, or a table SOURCE → {bind, mode}."""
    if isinstance(value, Mapping):
        return [
            f"{source}:{how.get('bind')}:{how.get('mode') or 'rw'}" if isinstance(how, Mapping) else f"{source}:{how}"
            for source, how in value.items()
        ]
    if not isinstance(value, list | tuple):
        raise UnsupportedRun(f"its volumes must be a list, not {type(value).__name__}")
    return list(kinds.given("volumes", kinds.texts, value, "settings"))


def _refusal(where: str, name: str) -> str:
    return (
        f"it asks for {name} in its {where}, by which it could take its host over: its worker gives that only with "
        "--allow-privileged, which is for hosts that all who may edit deployments may have"
    )
