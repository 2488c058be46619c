"""Poller and workers: how `flowfleet up` starts them, by their console scripts."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowfleet.ledger.login import without_password
from flowfleet.local.child import Part, own_script
from flowfleet.local.data_folder import DataFolder
from flowfleet.settings.classes import UpSettings
from flowfleet.settings.option import options_of
from flowfleet.up.prefect_server import environment as server_environment

POLLER = "poller"
READY_SECONDS = 60.0
#: variables, without FLOWFLEET_, that `up` decides for its parts: the user's own values of them are taken away
_DECIDED = (
    "API",
    "REDIS",
    "REDIS_FILE",
    "REDIS_PASSWORD",
    "REDIS_PASSWORD_FILE",
    "FLEET",
    "NAME",
    "BACKEND",
    "TENANT_ID",
    "AGENT_ADDRESS",
    "STATE_DIR",
    "SLOTS",
    "POOLS",
    "WORK_QUEUES",
    "ON_STOP",
    "STOP_GRACE",
    "MAX_POLLS",
    "REQUIRE_API",
)
#: settings of `up` that its parts are to have too
_HANDED_ON = ("api", "key", "token", "ca_file", "redis", "fleet", "log_format")
#: between TERM and KILL of a run and of the poller, when `up` is stopped
STOP_GRACE_SECONDS = 10.0


def environment(
    folder: DataFolder, environ: Mapping[str, str], settings: UpSettings, *, own_server: bool, own_redis: bool
) -> dict[str, str]:
    """The environment of poller and workers: addresses and secrets go by variables, since process lists show flags."""
    env = server_environment(folder, environ) if own_server else dict(environ)
    for name in _DECIDED:
        env.pop(f"FLOWFLEET_{name}", None)
    options = options_of(UpSettings)
    env |= {options[name].variable: str(value) for name in _HANDED_ON if (value := getattr(settings, name))}
    env["FLOWFLEET_BACKEND"] = settings.backend
    env = _by_file(env, settings, own_redis=own_redis)
    if settings.origin("log_level").kind not in ("machine", "default"):
        # our own default is for log lines between the output of `up`; the parts log to files, with their own default
        env["FLOWFLEET_LOG_LEVEL"] = settings.log_level
    # so that flows find the commands of the environment that runs them
    env["PATH"] = f"{Path(sys.executable).parent}:{env.get('PATH', '')}"
    if own_server and (Path(sys.executable).with_name("prefect")).is_file():
        # the server's own environment certainly has the right prefect
        env.setdefault("FLOWFLEET_PYTHON", sys.executable)
    return env


def _by_file(env: Mapping[str, str], settings: UpSettings, *, own_redis: bool) -> dict[str, str]:
    """The environment with secrets that were given by a file left there: the parts read a replaced file again."""
    by_file, options = dict(env), options_of(UpSettings)
    for name in ("key", "redis", "redis_password"):
        origin = settings.origin(name)
        if origin.kind == "secret-file" and not (own_redis and name.startswith("redis")):
            by_file.pop(options[name].variable, None)
            # the parts may be started in another folder
            by_file[options[name].file_variable] = str(Path(origin.name).absolute())
            if name == "redis_password" and "FLOWFLEET_REDIS" in by_file:
                by_file["FLOWFLEET_REDIS"] = without_password(settings.redis, settings.redis_password)
    return by_file


def start_poller(folder: DataFolder, env: Mapping[str, str], address: str, cwd: Path) -> Part:
    """Start the poller."""
    argv = [own_script(POLLER), "start", "--agent-address", address]
    return Part.start(POLLER, folder, argv, env=env, cwd=cwd, grace=STOP_GRACE_SECONDS)


def state_dir(folder: DataFolder) -> Path:
    """The folder where the workers keep their runs' records."""
    return folder.path / "state"


def start_worker(
    folder: DataFolder, env: Mapping[str, str], address: str, cwd: Path, *, name: str, slots: int, pools: Sequence[str]
) -> Part:
    """Start one worker; its runs end with it, since they belong to this `up`."""
    argv = [own_script("worker"), "start", "--name", name, "--slots", str(slots), "--agent-address", address]
    # the poller gets no pool: it claims for whatever its workers offer
    argv += [word for pool in pools for word in ("--pool", pool)]
    argv += ["--state-dir", str(state_dir(folder)), "--on-stop", "cancel"]
    argv += ["--stop-grace", f"{STOP_GRACE_SECONDS:g}"]
    return Part.start(name, folder, argv, env=env, cwd=cwd, grace=2 * STOP_GRACE_SECONDS + 5.0)


def worker_names(count: int) -> list[str]:
    """The names of the workers: `worker` for a single one, else `worker-1` and so on."""
    return ["worker"] if count == 1 else [f"worker-{number}" for number in range(1, count + 1)]
