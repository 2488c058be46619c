"""Settings classes: which options exist, their types, defaults and variables, and the frozen values of one command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowfleet.errors import SettingsError
from flowfleet.ledger.claims import Lease
from flowfleet.settings.common import (
    CommonSettings,
    agent_address_option,
    agent_config_option,
    api_option,
    cloud_logs_option,
    labels_option,
    name_option,
    pools_option,
    redis_option,
    state_dir_option,
    work_queues_option,
)
from flowfleet.settings.option import Option, ValueKind, setting
from flowfleet.settings.values import (
    COUNT,
    DAYS,
    FOLDER,
    GRACE,
    LABEL,
    NUMBER,
    PAIR,
    PORT,
    SECONDS,
    SIZE,
    SWITCH,
    between,
    label,
    one_of,
    shown_as,
)

#: a worker begins nothing in the last seconds of its lease, so a shorter one would let nothing begin
LEASE_MARGIN_SECONDS = 3.0

#: ends the help of options that are accepted but not acted on yet, so that they promise nothing
_NOT_YET = "This version only records it: lost runs are not judged yet."


@dataclass(frozen=True, kw_only=True)
class PollerSettings(CommonSettings):
    """The settings of `poller start`."""

    name: str = setting("agent", name_option())
    pools: tuple[str, ...] = setting((), pools_option("Only claim for this pool (repeatable)."))
    work_queues: tuple[str, ...] = setting((), work_queues_option("Only claim from this work queue (repeatable)."))
    labels: tuple[str, ...] = setting((), labels_option("Only claim for workers with this label (repeatable)."))
    max_polls: int | None = setting(None, Option(flag="--max-polls", kind=NUMBER, help="End after this many polls."))
    agent_config_id: str | None = setting(None, agent_config_option())
    agent_address: str | None = setting(None, agent_address_option())
    require_api: bool = setting(
        False,
        Option(
            flag="--require-api/--no-require-api",
            kind=SWITCH,
            help="End with exit code 3 when the API cannot be reached at the start, instead of waiting.",
        ),
    )
    cloud_logs: bool = setting(
        True, cloud_logs_option("Say on the log page of a run that nobody here can take why (default: yes).")
    )
    on_lost_run: str = setting(
        "report",
        Option(
            flag="--on-lost-run",
            kind=one_of("report", "requeue"),
            help=f"What becomes of a run whose host is lost (default: report). {_NOT_YET}",
        ),
    )
    max_attempts: int = setting(
        3,
        Option(
            flag="--max-attempts",
            kind=COUNT,
            help=f"Start a lost run again at most this often (default: 3). {_NOT_YET}",
        ),
    )
    lease: Lease = setting(
        Lease(),
        Option(
            flag="--lease-seconds",
            kind=SECONDS,
            part="ttl_seconds",
            help="Without a renewal for this long a run counts as missing (default: 20).",
        ),
        Option(
            flag="--renew-seconds", kind=SECONDS, part="renew_seconds", help="Workers renew this often (default: 5)."
        ),
        Option(
            flag="--adopt-grace",
            kind=SECONDS,
            part="grace_seconds",
            help=f"A missing run's host may come back for this long (default: 120). {_NOT_YET}",
        ),
    )
    leader_seconds: float = 15.0
    queued_seconds: float = 60.0
    idle_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Refuse a lease that lapses between two renewals, or while a run is being started."""
        ttl, renew = self.lease.ttl_seconds, self.lease.renew_seconds
        if ttl < 3 * renew or ttl <= LEASE_MARGIN_SECONDS + renew:
            raise SettingsError(
                f"--lease-seconds {ttl:g} is too short for --renew-seconds {renew:g}: "
                f"it must be at least three renewals, and over {LEASE_MARGIN_SECONDS:g} seconds more than one."
            )


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(CommonSettings):
    """The settings of `worker start`."""

    pools: tuple[str, ...] = setting(
        ("flowfleet",), pools_option("Run what this pool has (repeatable; default: flowfleet).")
    )
    work_queues: tuple[str, ...] = setting((), work_queues_option("Only this work queue of the pools (repeatable)."))
    labels: tuple[str, ...] = setting((), labels_option("Prefect 1: a label that this worker has (repeatable)."))
    hostname_label: bool = setting(
        True,
        Option(
            flag="--hostname-label/--no-hostname-label",
            kind=SWITCH,
            help="Prefect 1: the host's name is a label too (default: yes).",
        ),
    )
    agent_config_id: str | None = setting(None, agent_config_option())
    slots: int = setting(
        1, Option(flag="-c --slots", kind=COUNT, help="Runs at the same time (default: the CPU cores).")
    )
    deploy: str = setting(
        "process",
        Option(flag="--deploy", kind=shown_as("process|NAME"), help="How runs are started (default: process)."),
    )
    env: tuple[str, ...] = setting(
        (),
        Option(
            flag="-e --env",
            separator="\n",  # values hold commas
            kind=PAIR,
            help="A variable for every run (repeatable; in the variable one a line).",
        ),
    )
    import_paths: tuple[str, ...] = setting(
        (),
        Option(
            flag="-p --import-path",
            named="IMPORT_PATHS",
            separator=":",
            kind=shown_as("PATH"),
            help="A folder for the runs' PYTHONPATH (repeatable).",
        ),
    )
    show_flow_logs: bool = setting(
        False,
        Option(
            flag="-f --show-flow-logs/--hide-flow-logs",
            kind=SWITCH,
            help="Copy the runs' output to this worker's own (default: no).",
        ),
    )
    cloud_logs: bool = setting(
        True, cloud_logs_option("Write lines of ours to the run's log at the API (default: yes).")
    )
    python: Path | None = setting(
        None,
        Option(
            flag="--python",
            kind=ValueKind(parse=Path, wants="a path", metavar="PATH"),
            help="The flows' interpreter (default: the one on PATH that has prefect).",
        ),
    )
    warm_start: bool = setting(
        True,
        Option(
            flag="--warm-start/--no-warm-start",
            kind=SWITCH,
            help="Prefect 1: fork engines from a process that has prefect loaded (default: yes).",
        ),
    )
    on_stop: str = setting(
        "auto",
        Option(
            flag="--on-stop",
            kind=one_of("auto", "detach", "wait", "cancel"),
            help="What becomes of the runs when this worker is stopped (default: auto).",
        ),
    )
    stop_grace: float = setting(
        30.0,
        Option(
            flag="--stop-grace",
            kind=GRACE,
            help="How long a stop waits for runs, and a run gets between TERM and KILL (default: 30).",
        ),
    )
    nice: int = setting(
        0,
        Option(
            flag="--nice",
            kind=between(0, 19),
            help="Run flows with this much less priority than this worker's own, up to 19 (default: 0).",
        ),
    )
    state_dir: Path | None = setting(None, state_dir_option("Where this worker keeps its runs' records"))
    agent_address: str | None = setting(None, agent_address_option())
    task_events: bool = setting(
        False,
        Option(
            flag="-E --task-events/--no-task-events",
            kind=SWITCH,
            help="Send Celery's task events, for Flower (default: no).",
        ),
    )
    run_timeout: float | None = setting(
        None, Option(flag="--run-timeout", kind=SECONDS, help="End a run that takes longer.")
    )
    keep_logs_days: float = setting(
        7.0,
        Option(flag="--keep-logs", kind=DAYS, help="Keep ended runs' output and records this long (default: 7)."),
    )
    keep_logs_bytes: int = setting(
        1 << 30, Option(flag="--keep-logs-size", kind=SIZE, help="Keep at most this much of it (default: 1G).")
    )
    log_limit: int = 50 << 20
    #: None = this machine's own; only tests set these two
    machine_id: str | None = setting(None, Option(named="MACHINE_ID", for_tests=True, help="For tests."))
    boot_id: str | None = setting(None, Option(named="BOOT_ID", for_tests=True, help="For tests."))

    def __post_init__(self) -> None:
        """Refuse labels that the API refuses, whichever source they came from."""
        for text in self.labels:
            try:
                label(text)
            except ValueError as error:
                raise SettingsError(f"the label {text[:300]!r} cannot be used: it must be {LABEL.wants}") from error

    @property
    def agent_labels(self) -> tuple[str, ...]:
        """The labels at Prefect 1, in the order of Prefect 1's own agent: sorted, then the host's name."""
        given = tuple(sorted(set(self.labels)))
        return (*given, self.host) if self.hostname_label and self.host not in given else given


@dataclass(frozen=True, kw_only=True)
class LogsSettings(CommonSettings):
    """The settings of `flowfleet logs`."""

    state_dir: Path | None = setting(None, state_dir_option("Where the workers of this host keep their runs' records"))


@dataclass(frozen=True, kw_only=True)
class UpSettings(CommonSettings):
    """The settings of `flowfleet up`."""

    api: str | None = setting(
        None,
        api_option("Use the Prefect API at this address (default: start a Prefect server)."),
    )
    redis: str = setting(
        "redis://127.0.0.1:6379/0",
        redis_option("Use the Redis at redis://HOST:PORT/DB or redis+socket:///PATH (default: start one)."),
    )
    # `up` names its parts itself and works with Prefect 3 only, so these three are no options here
    name: str = setting("worker")
    backend: str = setting("prefect3")
    tenant_id: str | None = setting(None)
    slots: int = setting(
        1, Option(flag="-c --slots", kind=COUNT, help="Slots of each worker (default: the CPU cores).")
    )
    workers: int = setting(1, Option(flag="--workers", kind=COUNT, help="How many workers (default: 1)."))
    pools: tuple[str, ...] = setting(("flowfleet",), pools_option("Serve this pool (repeatable; default: flowfleet)."))
    data_dir: Path | None = setting(
        None,
        Option(
            flag="--data-dir",
            kind=FOLDER,
            help="Where Redis and the Prefect server keep their data (default: under XDG_DATA_HOME).",
        ),
    )
    port: int | None = setting(
        None, Option(flag="--port", kind=PORT, help="Port of the Prefect server (default: a free one).")
    )

    @property
    def pool(self) -> str:
        """The pool that the demo and `up.json` name: the first of `pools`."""
        return self.pools[0]
