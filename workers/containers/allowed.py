"""Allowed: which settings of a container a run may choose, and which would give it the host.

Whoever may edit a deployment chooses them, and is not always who runs the host. What could take the host over is
refused unless the worker's operator has allowed it; so is what we do not know. Some settings are always ours, since
the run would be started twice or its end would not be seen otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfleet.errors import UnsupportedRun
from workers.containers import volumes
from workers.containers.volumes import Volume

#: no other container or host can be reached by them (SDK 7.2 of Docker)
FREE = frozenset(
    [
        "blkio_weight",
        "blkio_weight_device",
        "cap_drop",
        "cpu_count",
        "cpu_percent",
        "cpu_period",
        "cpu_quota",
        "cpu_rt_period",
        "cpu_rt_runtime",
        "cpu_shares",
        "cpuset_cpus",
        "cpuset_mems",
        "device_read_bps",
        "device_read_iops",
        "device_requests",
        "device_write_bps",
        "device_write_iops",
        "dns",
        "dns_opt",
        "dns_search",
        "domainname",
        "entrypoint",
        "extra_hosts",
        "group_add",
        "healthcheck",
        "hostname",
        "init",
        "isolation",
        "kernel_memory",
        "links",
        "mac_address",
        "mem_limit",
        "mem_reservation",
        "mem_swappiness",
        "memswap_limit",
        "nano_cpus",
        "network_disabled",
        "pids_limit",
        "platform",
        "port_bindings",
        "ports",
        "publish_all_ports",
        "read_only",
        "shm_size",
        "stdin_open",
        "stop_signal",
        "storage_opt",
        "tmpfs",
        "tty",
        "ulimits",
        "use_config_proxy",
        "user",
        "working_dir",
    ]
)
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
        "device_cgroup_rules",
        "devices",
        "init_path",
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
#: namespaces that may be those of the host or of another container
_NAMESPACES = ("network_mode", "pid_mode", "ipc_mode", "uts_mode", "userns_mode", "cgroupns")
#: of these, what gives nothing away
_HARMLESS = {"network_mode": ("host", "none", "bridge", "default"), "ipc_mode": ("private", "shareable", "none")}


@dataclass(frozen=True, kw_only=True)
class Permissions:
    """What the operator of a worker allows to the runs on it."""

    #: --allow-privileged
    privileged: bool = False
    #: the folders of --allow-mount
    mounts: Sequence[str] = ()
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
            if value is None:
                continue
            if name in OURS and not (name in _GUARDED and not self.privileged):
                dropped.append(name)
            else:
                kept[name] = self._checked(name, value, where)
        return kept, dropped

    def volume(self, text: str) -> Volume:
        """A volume that a run asks for; raises `UnsupportedRun`."""
        return volumes.check(volumes.parse(text, folder=self.folder), self.mounts, local=self.local)

    def _checked(self, name: str, value: Any, where: str) -> Any:
        if name in FREE or name in ("labels", "environment", "network", "networking_config"):
            return value
        if name in _NAMESPACES:
            self._check_namespace(name, str(value), where)
            return value
        if name in ("volumes", "binds"):
            return _as_texts(value)  # each is looked at with those of the other settings
        if name == "mounts":
            return [self._mount(each) for each in value]
        if name in _GUARDED:
            if self.privileged or value in (False, [], {}, ""):
                return value
            raise UnsupportedRun(_refusal(where, name))
        raise UnsupportedRun(f"its {where} has {name!r}, which this worker does not know: take it away")

    def _check_namespace(self, name: str, value: str, where: str) -> None:
        if value.startswith("container:"):
            if not self.privileged:
                raise UnsupportedRun(_refusal(where, f"{name}={value[:60]}"))
            return
        if value in _HARMLESS.get(name, ("", "private")) or self.privileged:
            return
        # a network of the engine, by its name; of the other namespaces there is nothing else to choose
        if name == "network_mode" and ":" not in value and "/" not in value:
            return
        raise UnsupportedRun(_refusal(where, f"{name}={value[:60]}"))

    def _mount(self, given: Any) -> Any:
        """Look at one mount, in the form of a table with Target, Source, Type and the like."""
        if not isinstance(given, Mapping):
            raise UnsupportedRun("its mounts must be tables with Target, Source and Type")
        mount = {str(key).lower(): value for key, value in given.items()}
        kind, source, target = str(mount.get("type") or "volume"), str(mount.get("source") or ""), mount.get("target")
        if kind not in ("bind", "volume", "tmpfs") or not target:
            raise UnsupportedRun(f"it has a mount of the type {kind[:20]!r}, give bind, volume or tmpfs with a target")
        options = mount.get("volumeoptions") or mount.get("volume_options")
        if options and not self.privileged:
            # `type=none,o=bind,device=/` would be the whole host
            raise UnsupportedRun(_refusal("mounts", "options of a volume's driver"))
        if kind == "bind":
            checked = volumes.check(
                volumes.parse(f"{source}:{target}", folder=self.folder), self.mounts, local=self.local
            )
            return {**given, **{key: checked.source for key in given if str(key).lower() == "source"}}
        if kind == "volume" and source.startswith(("/", ".", "~")):
            raise UnsupportedRun(f"it has a mount of the type volume whose source {source[:100]!r} is a folder")
        return dict(given)


def _as_texts(value: Any) -> list[str]:
    """Volumes in both forms of the SDK: a list of texts, or a table SOURCE → {bind, mode}."""
    if isinstance(value, Mapping):
        return [
            f"{source}:{how.get('bind')}:{how.get('mode') or 'rw'}" if isinstance(how, Mapping) else f"{source}:{how}"
            for source, how in value.items()
        ]
    if not isinstance(value, list | tuple):
        raise UnsupportedRun(f"its volumes must be a list, not {type(value).__name__}")
    return [str(each) for each in value]


def _refusal(where: str, name: str) -> str:
    return (
        f"its {where} asks for {name}, by which it could take its host over, and its worker does not allow that: start "
        "the worker with --allow-privileged if all who may edit deployments may have that host"
    )
