"""Arguments: how an agent's arguments become the settings of its worker and the environment of its poller."""

from collections.abc import Iterable, Mapping
from typing import Any

from flowfleet.api.prefect1.defaults import applied
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.api.prefect3.access import home_of
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.click_options import read_config
from flowfleet.settings.layers import machine_facts, resolve
from flowfleet.settings.option import Option, options_of

NAME = "agent"
#: variables that the agent decides for its poller, whatever the environment says for other programs
_DECIDED = frozenset(
    f"FLOWFLEET_{name}"
    for name in ("LABELS", "POOLS", "WORK_QUEUES", "MAX_POLLS", "AGENT_ADDRESS", "BACKEND", "CLOUD_LOGS")
)
#: option keys that go to the agent's poller, not to its worker
_POLLER_ONLY = frozenset({"max-polls", "agent-address"})
#: option keys that go to the agent's worker, not to its poller
_WORKER_ONLY = frozenset({"label"})
#: options whose place an argument of the agent takes: given as well, they would have no effect
_SAID_OTHERWISE = {
    "label": "write labels=[…]",
    "env": "write env_vars={…}",
    "import-path": "write import_paths=[…], of LocalAgent",
    "cloud-logs": "write no_cloud_logs=True or no_cloud_logs=False",
    "hostname-label": "it is one of LocalAgent; here, write the host's name among the labels",
    "deploy": "the class says how runs are started, and your own deploy_flow if it has one",
    "backend": "agents are of Prefect 1",
}
#: the LocalAgent of 2019 started containers
_OF_DOCKER = frozenset({"base_url", "no_pull", "volumes", "network", "networks", "docker_interface", "reg_allow_list"})


def key_of(name: str) -> str:
    """The key of the option with this Python name."""
    return name.rstrip("_").replace("_", "-")


def check_options(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `worker start` that were given as keywords, by option key; raises `TypeError` for others."""
    known = {option.key for settings in (WorkerSettings, PollerSettings) for option in options_of(settings).values()}
    for name in options:
        if key_of(name) in _SAID_OTHERWISE:
            raise TypeError(f"{cls.__name__}() has no argument {name!r}: {_SAID_OTHERWISE[key_of(name)]}")
        if name in _OF_DOCKER:
            raise TypeError(f"{cls.__name__}() has no argument {name!r}: it is one of DockerAgent")
        if key_of(name) not in known:
            raise TypeError(f"{cls.__name__}() has no argument {name!r}, and worker start no option --{key_of(name)}")
    return {key_of(name): value for name, value in options.items() if value is not None}


def worker_settings(given: Mapping[str, Any], environ: Mapping[str, str]) -> WorkerSettings:
    """The settings of the agent's worker, from arguments, variables, the config file, Prefect 1's own settings."""
    keys = {option.key for option in options_of(WorkerSettings).values()} - _POLLER_ONLY
    flags = {key: value for key, value in given.items() if key in keys}
    config = read_config(environ.get("FLOWFLEET_CONFIG"), "worker")
    settings = resolve(WorkerSettings, flags, environ, config, {**machine_facts(), "name": NAME})
    return applied(settings, Prefect1Settings(environ, home_of(environ)))


def address_of_prefect(environ: Mapping[str, str]) -> str:
    """The address where Prefect 1's own settings have agents serve their page; empty = nowhere."""
    return str(Prefect1Settings(environ, home_of(environ)).resolved("cloud.agent.agent_address").value)


def poller_environment(
    given: Mapping[str, Any], settings: WorkerSettings, environ: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the agent's poller, which gets its options by variables: process lists show flags."""
    env = {name: value for name, value in environ.items() if name not in _DECIDED}
    for option in options_of(PollerSettings).values():
        if option.key in given and option.key not in _WORKER_ONLY:
            env[option.variable] = _as_text(option, given[option.key])
    # the poller uses the Redis, fleet and host that the worker has found
    return env | {"FLOWFLEET_REDIS": settings.redis, "FLOWFLEET_FLEET": settings.fleet, "FLOWFLEET_HOST": settings.host}


def poller_settings(given: Mapping[str, Any], settings: WorkerSettings, environ: Mapping[str, str]) -> PollerSettings:
    """The settings that the agent's poller will find, so that a wrong one is told before anything is started."""
    config = read_config(environ.get("FLOWFLEET_CONFIG"), "poller")
    flags = {key: value for key, value in given.items() if key not in _WORKER_ONLY}  # an error is to name the argument
    return resolve(PollerSettings, flags, poller_environment(given, settings, environ), config, machine_facts())


def variables(pairs: Iterable[str]) -> dict[str, str]:
    """The mapping that these `K=V` texts stand for."""
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _as_text(option: Option, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if option.kind.separator and isinstance(value, list | tuple):
        return option.kind.separator.join(map(str, value))
    return str(value)
