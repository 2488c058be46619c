"""Settings classes: which options exist, their types, defaults and variables, and the frozen values of one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowfleet.errors import SettingsError
from flowfleet.ledger.claims import Lease
from flowfleet.settings import values as kind
from flowfleet.settings.common import NAME_HELP, URL, CommonSettings
from flowfleet.settings.option import NO_FLAG, setting

#: a worker begins nothing in the last seconds of its lease, so a shorter one would let nothing begin
LEASE_MARGIN_SECONDS = 3.0

#: ends the help of options that are accepted but not acted on yet, so that they promise nothing
_NOT_YET = "This version only records it: lost runs are not judged yet."
_AGENT_ADDRESS = "Serve health, metrics and the like here."
_AGENT_CONFIG = "Prefect 1: the agent config at the API whose settings win over those given here."


@dataclass(frozen=True, kw_only=True)
class PollerSettings(CommonSettings):
    """The settings of `poller start`."""

    name: str = setting("agent", kind.NAME, NAME_HELP, "-n")
    pools: tuple[str, ...] = setting((), kind.NAMES, "Only claim for this pool (repeatable).")
    work_queues: tuple[str, ...] = setting((), kind.NAMES, "Only claim from this work queue (repeatable).")
    labels: tuple[str, ...] = setting((), kind.LABELS, "Only claim for workers with this label (repeatable).", "-l")
    max_polls: int | None = setting(None, kind.NUMBER, "End after this many polls.")
    agent_config_id: str | None = setting(None, kind.shown_as("ID"), _AGENT_CONFIG)
    agent_address: str | None = setting(None, kind.ADDRESS, _AGENT_ADDRESS)
    require_api: bool = setting(
        False, kind.SWITCH, "End with exit code 3 when the API cannot be reached at the start, instead of waiting."
    )
    cloud_logs: bool = setting(
        True, kind.SWITCH, "Say on the log page of a run that nobody here can take why (default: yes)."
    )
    on_lost_run: str = setting(
        "report",
        kind.one_of("report", "requeue"),
        f"What becomes of a run whose host is lost (default: report). {_NOT_YET}",
    )
    max_attempts: int = setting(3, kind.COUNT, f"Start a lost run again at most this often (default: 3). {_NOT_YET}")
    lease_seconds: float = setting(
        Lease.ttl_seconds, kind.SECONDS, "Without a renewal for this long a run counts as missing (default: 20)."
    )
    renew_seconds: float = setting(Lease.renew_seconds, kind.SECONDS, "Workers renew this often (default: 5).")
    adopt_grace: float = setting(
        Lease.grace_seconds,
        kind.SECONDS,
        f"A missing run's host may come back for this long (default: 120). {_NOT_YET}",
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

    pools: tuple[str, ...] = setting(
        ("flowfleet",), kind.NAMES, "Run what this pool has (repeatable; default: flowfleet)."
    )
    work_queues: tuple[str, ...] = setting((), kind.NAMES, "Only this work queue of the pools (repeatable).")
    labels: tuple[str, ...] = setting((), kind.LABELS, "Prefect 1: a label that this worker has (repeatable).", "-l")
    hostname_label: bool = setting(True, kind.SWITCH, "Prefect 1: the host's name is a label too (default: yes).")
    agent_config_id: str | None = setting(None, kind.shown_as("ID"), _AGENT_CONFIG)
    slots: int = setting(1, kind.COUNT, "Runs at the same time (default: the CPU cores).", "-c")
    deploy: str = setting("process", kind.shown_as("process|NAME"), "How runs are started (default: process).")
    env: tuple[str, ...] = setting(
        (), kind.PAIRS, "A variable for every run (repeatable; in the variable one a line).", "-e"
    )
    import_paths: tuple[str, ...] = setting(
        (), kind.shown_as("PATH", ":"), "A folder for the runs' PYTHONPATH (repeatable).", "-p"
    )
    show_flow_logs: bool = setting(
        False,
        kind.SWITCH,
        "Copy the runs' output to this worker's own (default: no).",
        "-f --show-flow-logs/--hide-flow-logs",
    )
    cloud_logs: bool = setting(True, kind.SWITCH, "Write lines of ours to the run's log at the API (default: yes).")
    python: Path | None = setting(
        None, kind.PATH, "The flows' interpreter (default: the one on PATH that has prefect)."
    )
    warm_start: bool = setting(
        True, kind.SWITCH, "Prefect 1: fork engines from a process that has prefect loaded (default: yes)."
    )
    on_stop: str = setting(
        "auto",
        kind.one_of("auto", "detach", "wait", "cancel"),
        "What becomes of the runs when this worker is stopped (default: auto).",
    )
    stop_grace: float = setting(
        30.0, kind.GRACE, "How long a stop waits for runs, and a run gets between TERM and KILL (default: 30)."
    )
    nice: int = setting(
        0, kind.between(0, 19), "Run flows with this much less priority than this worker's own, up to 19 (default: 0)."
    )
    state_dir: Path | None = setting(
        None, kind.FOLDER, "Where this worker keeps its runs' records (default: under XDG_STATE_HOME)."
    )
    agent_address: str | None = setting(None, kind.ADDRESS, _AGENT_ADDRESS)
    task_events: bool = setting(False, kind.SWITCH, "Send Celery's task events, for Flower (default: no).", "-E")
    run_timeout: float | None = setting(None, kind.SECONDS, "End a run that takes longer.")
    keep_logs_days: float = setting(
        7.0, kind.DAYS, "Keep ended runs' output and records this long (default: 7).", "--keep-logs"
    )
    keep_logs_bytes: int = setting(
        1 << 30, kind.SIZE, "Keep at most this much of it (default: 1G).", "--keep-logs-size"
    )
    log_limit: int = 50 << 20
    #: None = this machine's own; only tests set these two
    machine_id: str | None = setting(None, kind.FOR_TESTS, "For tests.", NO_FLAG)
    boot_id: str | None = setting(None, kind.FOR_TESTS, "For tests.", NO_FLAG)

    @property
    def agent_labels(self) -> tuple[str, ...]:
        """The labels at Prefect 1, in the order of Prefect 1's own agent: sorted, then the host's name."""
        given = tuple(sorted(set(self.labels)))
        return (*given, self.host) if self.hostname_label and self.host not in given else given


@dataclass(frozen=True, kw_only=True)
class LogsSettings(CommonSettings):
    """The settings of `flowfleet logs`."""

    state_dir: Path | None = setting(
        None, kind.FOLDER, "Where the workers of this host keep their runs' records (default: under XDG_STATE_HOME)."
    )


@dataclass(frozen=True, kw_only=True)
class UpSettings(CommonSettings):
    """The settings of `flowfleet up`."""

    api: str | None = setting(None, URL, "Use the Prefect API at this address (default: start a Prefect server).", "-a")
    redis: str = setting(
        CommonSettings.redis,
        kind.secret("URL"),
        "Use the Redis at redis://HOST:PORT/DB or redis+socket:///PATH (default: start one).",
        "-r",
    )
    # `up` names its parts itself and works with Prefect 3 only, so these three are no options here
    name: str = "worker"
    backend: str = "prefect3"
    tenant_id: str | None = None
    slots: int = setting(1, kind.COUNT, "Slots of each worker (default: the CPU cores).", "-c")
    workers: int = setting(1, kind.COUNT, "How many workers (default: 1).")
    pools: tuple[str, ...] = setting(("flowfleet",), kind.NAMES, "Serve this pool (repeatable; default: flowfleet).")
    data_dir: Path | None = setting(
        None, kind.FOLDER, "Where Redis and the Prefect server keep their data (default: under XDG_DATA_HOME)."
    )
    port: int | None = setting(None, kind.PORT, "Port of the Prefect server (default: a free one).")

    @property
    def pool(self) -> str:
        """The pool that the demo and `up.json` name: the first of `pools`."""
        return self.pools[0]
