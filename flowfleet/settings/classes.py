"""Settings classes: which options exist, their types, defaults and variables, and the frozen values of one command."""

from dataclasses import dataclass
from pathlib import Path

from flowfleet.errors import SettingsError
from flowfleet.ledger.claims import Lease
from flowfleet.settings import values as kind
from flowfleet.settings.common import NAME_HELP, URL, CommonSettings
from flowfleet.settings.host_label import label_of_host
from flowfleet.settings.option import NO_FLAG, setting

Texts = tuple[str, ...]

#: what a worker may do at its stop, and where it was drained
WAIT = "wait"

#: a worker begins nothing in the last seconds of its lease, so a shorter one would let nothing begin
LEASE_MARGIN_SECONDS = 3.0

_AGENT_ADDRESS = "Serve a page with health and metrics at this address."
_AGENT_CONFIG = "Prefect 1: the agent config at the API whose settings win over those given here."


@dataclass(frozen=True, kw_only=True)
class PollerSettings(CommonSettings):
    """The settings of `poller start`."""

    name: str = setting("agent", NAME_HELP, kind.ANY_NAME, "-n")
    pools: Texts = setting((), "Only claim for this pool (repeatable).", kind.NAMES)
    work_queues: Texts = setting((), "Only claim from this work queue (repeatable).", kind.NAMES)
    labels: Texts = setting((), "Only claim for workers with this label (repeatable).", kind.LABELS, "-l")
    max_polls: int | None = setting(None, "End after this many polls. A standby counts its rounds.", kind.NUMBER)
    agent_config_id: str | None = setting(None, _AGENT_CONFIG, kind.text_as("ID"))
    agent_address: str | None = setting(None, _AGENT_ADDRESS, kind.ADDRESS)
    require_api: bool = setting(
        False, "End with exit code 3 when the API cannot be reached at the start, instead of waiting."
    )
    cloud_logs: bool = setting(True, "When no worker here can take a run, say why on its log page (default: yes).")
    on_lost_run: str = setting(
        "report",
        "What becomes of a run when its host is lost, or the stop of its worker ends it: report it as crashed, or "
        "start it again once none of its processes can live any more (default: report).",
        kind.one_of("report", "requeue"),
    )
    max_attempts: int = setting(3, "With requeue, start a run again at most this often (default: 3).", kind.COUNT)
    lease_seconds: float = setting(
        Lease.ttl_seconds, "A run counts as missing after this long without a renewal (default: 20).", kind.SECONDS
    )
    renew_seconds: float = setting(
        Lease.renew_seconds, "How often workers renew their runs (default: 5).", kind.SECONDS
    )
    adopt_grace: float = setting(
        Lease.grace_seconds,
        "How long the host of a missing run may take to come back, before the run is told as lost (default: 120).",
        kind.SECONDS,
    )
    leader_seconds: float = 15.0
    queued_seconds: float = 60.0
    idle_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a lease that lapses between two renewals, or while a run is being started."""
        ttl, renew = self.lease_seconds, self.renew_seconds
        if ttl < 3 * renew or ttl <= LEASE_MARGIN_SECONDS + renew:
            raise SettingsError(
                f"--lease-seconds {ttl:g} is too short for --renew-seconds {renew:g}: "
                f"it must be at least three renewals, and over {LEASE_MARGIN_SECONDS:g} seconds more than one."
            )

    @property
    def lease(self) -> Lease:
        """The lease that the leader writes into the ledger for all workers."""
        return Lease(renew_seconds=self.renew_seconds, ttl_seconds=self.lease_seconds, grace_seconds=self.adopt_grace)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(CommonSettings):
    """The settings of `worker start`."""

    pools: Texts = setting(("flowfleet",), "Run what this pool has (repeatable; default: flowfleet).", kind.NAMES)
    work_queues: Texts = setting((), "Only this work queue of the pools (repeatable).", kind.NAMES)
    create_pool: bool = setting(True, "Make a pool that does not exist (default: yes).")
    labels: Texts = setting((), "Prefect 1: a label that this worker has (repeatable).", kind.LABELS, "-l")
    hostname_label: bool = setting(True, "Prefect 1: the host's name is a label too (default: yes).")
    agent_config_id: str | None = setting(None, _AGENT_CONFIG, kind.text_as("ID"))
    slots: int = setting(1, "Runs at the same time (default: the CPU cores).", kind.COUNT, "-c")
    deploy: str = setting("process", "How runs are started (default: process).", kind.text_as("process|docker|NAME"))
    env: Texts = setting(
        (), "A variable for every run (repeatable; FLOWFLEET_ENV has one on each line).", kind.PAIRS, "-e"
    )
    import_paths: Texts = setting(
        (), "A folder for the runs' PYTHONPATH (repeatable).", kind.text_as("PATH", ":"), "-p"
    )
    show_flow_logs: bool = setting(
        False, "Copy the runs' output to this worker's own (default: no).", told="-f --show-flow-logs/--hide-flow-logs"
    )
    cloud_logs: bool = setting(True, "Write lines of ours to the run's log at the API (default: yes).")
    python: Path | None = setting(
        None, "The flows' interpreter (default: the one on PATH that has prefect).", kind.PATH
    )
    warm_start: bool = setting(True, "Prefect 1: fork engines from a process that has prefect loaded (default: yes).")
    on_stop: str = setting(
        "auto",
        "What becomes of the runs when this worker is stopped (default: auto).",
        kind.one_of("auto", "detach", WAIT, "cancel"),
    )
    on_drained: str = setting(
        "end",
        "What this worker does when it was drained before its start: end with code 7, or wait until it is resumed, for "
        "what starts it anew whenever it ends (default: end).",
        kind.one_of("end", WAIT),
    )
    stop_grace: float = setting(
        30.0, "How long a stop waits for runs, and a run gets between TERM and KILL (default: 30).", kind.GRACE
    )
    linger: float | None = setting(
        None,
        "Kill what is left of a run this long after its end was seen at the API (default: never).",
        kind.SECONDS,
    )
    nice: int = setting(
        0, "Run flows with this much less priority than this worker's own, up to 19 (default: 0).", kind.between(0, 19)
    )
    state_dir: Path | None = setting(
        None, "Where this worker keeps its runs' records (default: under XDG_STATE_HOME).", kind.FOLDER
    )
    agent_address: str | None = setting(None, _AGENT_ADDRESS, kind.ADDRESS)
    task_events: bool = setting(False, "Send Celery's task events, for Flower (default: no).", told="-E")
    run_timeout: float | None = setting(None, "End a run that takes longer.", kind.SECONDS)
    memory: int | None = setting(
        None, "The most memory that a run may use, such as 2G; a run may ask for less (default: no limit).", kind.MEMORY
    )
    cpus: float | None = setting(
        None,
        "The most processors that a run may use, such as 1.5; a run may ask for less (default: no limit).",
        kind.CPUS,
    )
    require_engine: bool = setting(
        False, "Docker: end with exit code 6 when the engine does not answer at the start, instead of waiting."
    )
    base_url: str | None = setting(
        None,
        "Docker: the engine's address (default: DOCKER_HOST, then the current context).",
        kind.text_as("URL"),
        "-b",
    )
    pull: Texts = setting(
        (),
        "Docker: when to pull an image. Give several with commas, and the next one is tried when one fails (default: "
        "always for latest, else if-not-present).",
        kind.some_of("always", "if-not-present", "never"),
    )
    no_pull: bool = setting(False, "Docker: never pull (the same as --pull never).", told="--no-pull/--may-pull")
    volumes: Texts = setting((), "Docker: a volume for every run, SOURCE:PATH (repeatable).", kind.VOLUMES)
    networks: Texts = setting((), "Docker: a network for every run (repeatable).", kind.NAMES)
    host_network: bool = setting(
        True, "Docker: runs share the host's network where the API is on its loopback interface (default: yes)."
    )
    allow_images: Texts = setting(
        (), "Docker: run only images that match this pattern, such as ghcr.io/us/* (repeatable).", kind.NAMES
    )
    allow_mounts: Texts = setting(
        (),
        "Docker: a folder of this host that runs may mount, with all below it, or the name of a volume (repeatable).",
        kind.text_as("PATH", ":"),
    )
    allow_privileged: bool = setting(
        False,
        "Docker: runs may ask for power over this host: privileged, devices and the like (default: no).",
    )
    user: str | None = setting(None, "Docker: the user inside the containers, USER or USER:GROUP.", kind.USER)
    read_only_root: bool = setting(False, "Docker: runs cannot write to their image's own files (default: no).")
    docker_client_timeout: float = setting(
        60.0, "Docker: how long one request to the engine may take (default: 60).", kind.SECONDS
    )
    keep_logs_days: float = setting(
        7.0, "Keep ended runs' output and records this long (default: 7).", kind.DAYS, "--keep-logs"
    )
    keep_logs_bytes: int = setting(2**30, "Keep at most this much of it (default: 1G).", kind.SIZE, "--keep-logs-size")
    log_limit: int = 50 << 20
    #: None = this machine's own; only tests set these two
    machine_id: str | None = setting(None, "For tests.", kind.FOR_TESTS, NO_FLAG)
    boot_id: str | None = setting(None, "For tests.", kind.FOR_TESTS, NO_FLAG)

    @property
    def agent_labels(self) -> Texts:
        """The labels at Prefect 1, in the order of Prefect 1's own agent: sorted, then the host's name."""
        given, host = tuple(sorted(set(self.labels))), label_of_host(self.host)
        return (*given, host) if self.hostname_label and host not in given else given


@dataclass(frozen=True, kw_only=True)
class LogsSettings(CommonSettings):
    """The settings of `flowfleet logs`."""

    state_dir: Path | None = setting(
        None, "Where the workers of this host keep their runs' records (default: under XDG_STATE_HOME).", kind.FOLDER
    )


@dataclass(frozen=True, kw_only=True)
class UpSettings(CommonSettings):
    """The settings of `flowfleet up`."""

    api: str | None = setting(None, "Use the Prefect API at this address (default: start a Prefect server).", URL, "-a")
    redis: str = setting(
        CommonSettings.redis,
        "Use the Redis at redis://HOST:PORT/DB or redis+socket:///PATH (default: start one).",
        kind.secret("URL"),
        "-r",
    )
    # `up` names its parts itself and works with Prefect 3 only, so these three are no options here
    name: str = "worker"
    backend: str = "prefect3"
    tenant_id: str | None = None
    slots: int = setting(1, "Slots of each worker (default: the CPU cores).", kind.COUNT, "-c")
    workers: int = setting(1, "How many workers (default: 1).", kind.COUNT)
    pools: Texts = setting(("flowfleet",), "Serve this pool (repeatable; default: flowfleet).", kind.NAMES)
    data_dir: Path | None = setting(
        None, "Where Redis and the Prefect server keep their data (default: under XDG_DATA_HOME).", kind.FOLDER
    )
    port: int | None = setting(None, "Port of the Prefect server (default: a free one).", kind.PORT)

    @property
    def pool(self) -> str:
        """The pool that the demo and `up.json` name: the first of `pools`."""
        return self.pools[0]
