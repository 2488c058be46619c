"""Request: what the engine is asked to create for one run, of what the run asks for and what its worker says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from flowfleet.api.container_ask import ContainerAsk
from flowfleet.errors import UnsupportedRun
from workers.containers.allowed import OURS, Permissions
from workers.containers.engine import EngineFacts
from workers.containers.volumes import Volume
from workers.deployment import RunLimits
from workers.shim.spawn import forbidden

#: the labels of ours; whose container it is, and all that a worker needs that finds it without its run folder
FLEET, HOST, RUN, CLAIM, WORKER, FACTS, PART = (
    f"io.flowfleet.{name}" for name in ("fleet", "host", "run", "claim", "worker", "facts", "part")
)
_HOST_NAME = "host.docker.internal"
#: the name that Podman itself gives the host (measured with 4.3.1)
_PODMAN_HOST_NAME = "host.containers.internal"
#: addresses of a host by which it means itself
LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1|0\.0\.0\.0|\[::1?\]")
_LONGEST_NAME = 250
_KEPT_LOGS = 2
_NANO = 1e9
#: the time in which a quota of processors holds, unless a run says otherwise, in the engine's unit
_PERIOD = 100_000
#: on volumes that are made for runs (the reference has it, prefect 1.4.1)
VOLUME_LABEL = "prefect_created"
#: what of a run's settings belongs to the container, and not to its host's side
_OF_CREATE = frozenset(
    [
        "domainname",
        "entrypoint",
        "healthcheck",
        "hostname",
        "mac_address",
        "network_disabled",
        "platform",
        "ports",
        "stdin_open",
        "stop_signal",
        "tty",
        "use_config_proxy",
        "user",
        "working_dir",
    ]
)


@dataclass(frozen=True, kw_only=True)
class ContainerOptions:
    """What the operator of a worker says about its containers."""

    permissions: Permissions
    #: of --volume, which need no permission
    volumes: Sequence[Volume] = ()
    networks: Sequence[str] = ()
    user: str | None = None
    read_only_root: bool = False
    #: False: nobody looks after its containers, which take themselves away at their end
    watched: bool = True
    #: --no-host-network: not even for an API on the loopback interface
    host_network: bool = True


@dataclass(frozen=True, kw_only=True)
class CreateRequest:
    """One container to be created: arguments of the SDK's low-level calls, and what is done before its start."""

    image: str
    name: str
    #: of `create_container`
    create: Mapping[str, Any] = field(repr=False)
    #: of `create_host_config`
    host: Mapping[str, Any]
    #: the network that it is created in; None = as its network mode says
    network: str | None = None
    #: networks that are connected after it was created
    connect: Sequence[str] = ()
    #: the named volumes that it wants, and whether it may have each though somebody else has made it
    volumes: Mapping[str, bool] = field(default_factory=dict)
    #: of those that are made for it
    volume_labels: Mapping[str, str] = field(default_factory=dict)
    #: sentences for people about what the run does not get
    remarks: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose container it is."""

    fleet: str
    #: tells this host from others that use the same engine
    host: str
    worker: str
    run_id: str
    claim: str
    #: the claim's facts as they stand in its run folder, should that be lost
    facts: Mapping[str, Any] = field(default_factory=dict)
    #: "run" or "hooks"
    part: str = "run"

    def labels(self) -> dict[str, str]:
        """The labels that say so."""
        return {
            FLEET: self.fleet,
            HOST: self.host,
            WORKER: self.worker,
            RUN: self.run_id,
            CLAIM: self.claim,
            PART: self.part,
            FACTS: json.dumps(dict(self.facts), separators=(",", ":")),
        }


def create_request(
    ask: ContainerAsk, identity: Identity, limits: RunLimits, options: ContainerOptions, facts: EngineFacts
) -> CreateRequest:
    """Put the request together; raises `UnsupportedRun` for what the run asks for and may not have."""
    own, dropped = options.permissions.options(ask.options, ask.options_name)
    network = _Network.choose(ask, own, options, facts)
    remarks = [
        f"it has {name} in its {ask.options_name}, which is always its worker's: {OURS[name]}" for name in dropped
    ]
    if network.chosen and own.pop("port_bindings", None):
        remarks.append("its port_bindings are not needed: it shares the host's network, as its API is there")
    mounted = [*options.volumes, *map(options.permissions.volume, [*ask.volumes, *own.pop("volumes", ())])]
    mounted += [options.permissions.volume(text) for text in own.pop("binds", ())]
    mounted += [Volume(source=path, target=path, mode="ro") for path in ask.files if options.permissions.local]
    env = {**_environment(own.pop("environment", None)), **ask.env}
    misgiven = forbidden(ask.command, env)
    if misgiven is not None:
        raise UnsupportedRun(misgiven)  # Docker would take a = in a name for the end of it
    create = {
        "command": list(ask.command),
        "environment": env | {name: network.address(env[name]) for name in ask.api_variables if name in env},
        "labels": {**_texts(own.pop("labels", None)), **ask.labels, **identity.labels()},
        "working_dir": ask.working_dir,
        "user": options.user or ask.user,
        "ports": [_port(port) for port in ask.ports],
        "volumes": [volume.target for volume in mounted],
    }
    for name in _OF_CREATE & own.keys():
        asked = own.pop(name)
        create[name] = create.get(name) or asked
    host = {
        # else a command that is process 1 ignores TERM, and zombies stay
        **({"init": True} if facts.has_init else {}),
        **own,
        **_resources(own, limits, ask.options_name),
        **network.host,
        "read_only": options.read_only_root or own.get("read_only"),
        "binds": [str(volume) for volume in mounted if volume.source is not None],
        "auto_remove": not options.watched,
        "restart_policy": {"Name": "no"},
        "log_config": _log_config(limits, facts),
    }
    return CreateRequest(
        image=ask.image,
        name=container_name(ask.name, identity.run_id),
        create=_given(create),
        host=_given(host),
        network=network.first,
        connect=network.connect,
        volumes=_named(mounted, own.get("mounts") or (), options),
        volume_labels={VOLUME_LABEL: "true", FLEET: identity.fleet},
        remarks=remarks,
    )


def _named(
    mounted: Sequence[Volume], mounts: Sequence[Mapping[str, Any]], options: ContainerOptions
) -> dict[str, bool]:
    """The volumes of the engine by name, each with whether its operator lets the run have it."""
    names = [str(volume.source) for volume in mounted if volume.source is not None and not volume.is_folder]
    names += [mount["Source"] for mount in mounts if mount["Type"] == "volume" and mount.get("Source")]
    own = {volume.source for volume in options.volumes}
    return {name: name in own or options.permissions.named_volume(name) for name in names}


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value not in (None, [], {})}


def _port(text: str) -> Any:
    number, _, protocol = text.partition("/")
    return (number, protocol) if protocol else number


def container_name(wanted: str, run_id: str) -> str:
    """The name of a container for a run of this name, as the reference makes it (prefect 1.4.1)."""
    cleaned = re.sub(r"[^a-zA-Z0-9_.-]", "-", wanted).lstrip("_-.")
    return cleaned[:_LONGEST_NAME] or run_id


def _resources(own: Mapping[str, Any], limits: RunLimits, where: str) -> dict[str, Any]:
    """Memory and processors: of what the run's own settings say in several ways, and its worker, the lowest counts."""
    memory, swap = _least(limits.memory, own.get("mem_limit")), own.get("memswap_limit")
    # a limit that swap goes round is none
    swap = memory if memory is not None and (swap is None or swap < memory or limits.memory is not None) else swap
    found: dict[str, Any] = {"mem_limit": memory, "memswap_limit": swap}
    nano, quota = own.get("nano_cpus") or 0, own.get("cpu_quota") or 0
    if nano < 0:
        raise UnsupportedRun(f"it has nano_cpus={nano} in its {where}, which must not be below 0")
    if limits.cpus is None:
        return found
    asked = [nano / _NANO if nano else None, quota / (own.get("cpu_period") or _PERIOD) if quota > 0 else None]
    # the engine takes only one of the two ways, and a quota of -1 would lift the other
    return {**found, "nano_cpus": round(_least(limits.cpus, *asked) * _NANO), "cpu_quota": None, "cpu_period": None}


def _log_config(limits: RunLimits, facts: EngineFacts) -> Any:
    from docker.types import LogConfig  # noqa: PLC0415 - only workers of containers need the SDK

    # The engine keeps its own copy of the output, from which a worker that comes back reads on. Its files are bounded
    # as the run's own file is: two of them, so that the newest half is always there. Podman has only one, and would
    # throw all of it away.
    if limits.log_limit <= 0 or facts.product != "docker":
        return None
    config = {"max-size": str(max(limits.log_limit // _KEPT_LOGS, 1 << 16)), "max-file": str(_KEPT_LOGS)}
    return LogConfig(type="json-file", config=config)


@dataclass(frozen=True, kw_only=True)
class _Network:
    """The networks of a container, and by which name its host is reached from inside."""

    host: Mapping[str, Any]
    first: str | None = None
    connect: Sequence[str] = ()
    #: None = as the host itself does
    host_name: str | None = None
    #: the host's network was chosen by us, and the run has not asked for it
    chosen: bool = False

    @classmethod
    def choose(cls, ask: ContainerAsk, own: dict[str, Any], options: ContainerOptions, facts: EngineFacts) -> _Network:
        """Choose, and take what is chosen from the run's `own` settings; raises `UnsupportedRun`."""
        of_host = options.host_network and not options.networks
        given = (own.pop("network_mode", None), own.pop("network", None))
        mode = ask.network_mode or given[0]
        for name in filter(None, (mode, *given, *ask.networks)):
            options.permissions.check_network(name, ask.options_name, of_host=of_host)
        networks = [*dict.fromkeys([*filter(None, [given[1]]), *options.networks, *ask.networks])]
        if networks and networks[0] in ("host", "none"):
            mode, networks = mode or networks[0], networks[1:]
        chosen = not mode and not networks and of_host and _on_loopback(ask)
        mode = "host" if chosen else mode
        if mode in ("host", "none"):
            own.pop("extra_hosts", None)
            return cls(host={"network_mode": mode}, host_name=None, chosen=chosen)
        extra, name = _extra_hosts(own.pop("extra_hosts", None)), _HOST_NAME
        if facts.knows_host_gateway:
            extra.setdefault(_HOST_NAME, "host-gateway")
        elif facts.product == "podman":
            name = _PODMAN_HOST_NAME
        first = None if mode or not networks else networks[0]
        rest = networks if first is None else networks[1:]
        return cls(
            host={"extra_hosts": extra, "network_mode": mode or first}, first=first, connect=rest, host_name=name
        )

    def address(self, url: str) -> str:
        """The address of the API as the container reaches it."""
        try:
            parts, host, number = urlsplit(url), urlsplit(url).hostname, urlsplit(url).port
        except ValueError:  # the run's own words, by which it will reach nothing
            return url
        if self.host_name is None or not host or not LOOPBACK.fullmatch(host):
            return url
        port = f":{number}" if number else ""
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        return parts._replace(netloc=f"{user}{self.host_name}{port}").geturl()


def _on_loopback(ask: ContainerAsk) -> bool:
    return any(LOOPBACK.fullmatch(_host_of(ask.env.get(name, ""))) for name in ask.api_variables)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _extra_hosts(given: Any) -> dict[str, str]:
    if isinstance(given, Mapping):
        return {str(name): str(address) for name, address in given.items()}
    pairs = [str(each).partition(":") for each in given or ()]
    return {name: address for name, _, address in pairs}


def _environment(given: Any) -> dict[str, str]:
    if isinstance(given, Mapping):
        return {str(name): str(value) for name, value in given.items() if value is not None}
    pairs = [str(each).partition("=") for each in given or ()]
    return {name: value for name, sign, value in pairs if sign}


def _texts(given: Any) -> dict[str, str]:
    if isinstance(given, Mapping):
        return {str(name): str(value) for name, value in given.items()}
    return {str(name): "" for name in given or ()}


def _least(*limits: float | None) -> Any:
    given = [limit for limit in limits if limit is not None]
    return min(given) if given else None
