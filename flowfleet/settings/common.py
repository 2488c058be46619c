"""Common: what every command has, and the options that more than one command has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowfleet.settings.option import Option, Origin, setting
from flowfleet.settings.values import ADDRESS, FILE, FOLDER, LABEL, NAME, SECONDS, SWITCH, one_of, shown_as


def name_option() -> Option:
    """`--name`, the part's name."""
    return Option(flag="-n --name", kind=NAME, help="This part's name. With the host's it is its identity, NAME@HOST.")


def pools_option(meaning: str) -> Option:
    """`--pool`."""
    return Option(flag="--pool", named="POOLS", separator=",", kind=shown_as("NAME"), help=meaning)


def work_queues_option(meaning: str) -> Option:
    """`--work-queue`."""
    return Option(flag="--work-queue", named="WORK_QUEUES", separator=",", kind=shown_as("NAME"), help=meaning)


def labels_option(meaning: str) -> Option:
    """`--label`."""
    return Option(flag="-l --label", named="LABELS", separator=",", kind=LABEL, help=meaning)


def state_dir_option(meaning: str) -> Option:
    """`--state-dir`; the default is added to the meaning."""
    return Option(flag="--state-dir", kind=FOLDER, help=f"{meaning} (default: under XDG_STATE_HOME).")


def agent_address_option() -> Option:
    """`--agent-address`."""
    return Option(flag="--agent-address", kind=ADDRESS, help="Serve health, metrics and the like here.")


def agent_config_option() -> Option:
    """`--agent-config-id`."""
    return Option(
        flag="--agent-config-id",
        kind=shown_as("ID"),
        help="Prefect 1: the agent config at the API whose settings win over those given here.",
    )


def api_option(meaning: str) -> Option:
    """`--api`."""
    return Option(flag="-a --api", kind=shown_as("URL"), help=meaning)


def redis_option(meaning: str) -> Option:
    """`--redis`, which may hold a password."""
    return Option(flag="-r --redis", secret=True, by_file=True, kind=shown_as("URL"), help=meaning)


def cloud_logs_option(meaning: str) -> Option:
    """`--no-cloud-logs`."""
    return Option(flag="--cloud-logs/--no-cloud-logs", kind=SWITCH, help=meaning)


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """The settings that every command has."""

    #: None = the address that Prefect's own command finds
    api: str | None = setting(
        None,
        api_option("Address of the Prefect API (default: as Prefect's own command finds it)."),
    )
    backend: str = setting(
        "auto",
        Option(
            flag="--backend",
            kind=one_of("auto", "prefect1", "prefect3"),
            help="Which API that is (default: auto, by Prefect's own settings or by asking it).",
        ),
    )
    key: str | None = setting(
        None,
        Option(
            flag="-k --key",
            secret=True,
            by_file=True,
            kind=shown_as("KEY"),
            help="API key; better by FLOWFLEET_KEY_FILE, since flags show in process lists.",
        ),
    )
    token: str | None = setting(
        None,
        Option(
            flag="-t --token",
            named="API_TOKEN",
            secret=True,
            kind=shown_as("TOKEN"),
            help="API token, the older name of the key.",
        ),
    )
    tenant_id: str | None = setting(None, Option(flag="--tenant-id", kind=shown_as("ID"), help="Prefect 1's tenant."))
    #: may hold the password, so it is shown only through `logs.redact_url`
    redis: str = setting(
        "redis://127.0.0.1:6379/0",
        redis_option(
            "Redis of the fleet, redis://HOST:PORT/DB or redis+socket:///PATH (default: redis://127.0.0.1:6379/0)."
        ),
    )
    redis_password: str | None = setting(
        None,
        Option(
            named="REDIS_PASSWORD", secret=True, by_file=True, help="Password of Redis when it is not in the address."
        ),
    )
    ca_file: Path | None = setting(None, Option(flag="--ca-file", kind=FILE, help="Certificates to trust at the API."))
    api_read_seconds: float = setting(
        30.0,
        Option(
            named="API_READ_SECONDS",
            kind=SECONDS,
            help="How long an answer of the API may take (default: 30); one to many states twice that.",
        ),
    )
    fleet: str = setting(
        "default",
        Option(flag="--fleet", kind=NAME, help="The pollers and workers that work together (default: default)."),
    )
    name: str = setting("worker", name_option())
    #: this machine's host name; tests set another
    host: str = setting(
        "localhost",
        Option(named="HOST", kind=NAME, help="This host's name in the fleet, where its own is not unique."),
    )
    log_level: str = setting(
        "INFO",
        Option(
            flag="--log-level",
            kind=one_of("DEBUG", "INFO", "WARNING", "ERROR"),
            help="How much to log (default: {level}).",
        ),
    )
    log_format: str = setting(
        "text",
        Option(flag="--log-format", kind=one_of("text", "json"), help="How log lines look (default: text)."),
    )
    page_token: str | None = setting(
        None,
        Option(
            named="PAGE_TOKEN",
            secret=True,
            by_file=True,
            help="What our own pages ask for, beyond health, when they are served off loopback.",
        ),
    )
    #: field name (or option key, for parts of a field) → where its value came from
    origins: Mapping[str, Origin] = field(default_factory=dict, repr=False, compare=False)

    @property
    def identity(self) -> str:
        """The part's identity in the fleet, NAME@HOST."""
        return f"{self.name}@{self.host}"
