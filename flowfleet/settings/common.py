"""Common: the settings that every command has."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowfleet.settings.option import NO_FLAG, Origin, setting
from flowfleet.settings.values import ANY_NAME, FILE, NAME, SECONDS, SECRET, fitting, one_of, secret, text_as

logger = logging.getLogger(__name__)

NAME_HELP = "This part's name. With the host's it is its identity, NAME@HOST."
URL = text_as("URL")


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """The settings that every command has."""

    #: None = the address that Prefect's own command finds
    api: str | None = setting(
        None, "Address of the Prefect API (default: as Prefect's own command finds it).", URL, "-a"
    )
    backend: str = setting(
        "auto",
        "Which API that is (default: auto, by Prefect's own settings or by asking it).",
        one_of("auto", "prefect1", "prefect3"),
    )
    key: str | None = setting(
        None, "API key; better by FLOWFLEET_KEY_FILE, since flags show in process lists.", secret("KEY"), "-k"
    )
    token: str | None = setting(
        None, "API token, the older name of the key.", secret("TOKEN", by_file=False), "-t API_TOKEN"
    )
    tenant_id: str | None = setting(None, "Prefect 1's tenant.", text_as("ID"))
    #: may hold the password, so it is shown only through `logs.redact_url`
    redis: str = setting(
        "redis://127.0.0.1:6379/0",
        "Redis of the fleet, redis://HOST:PORT/DB, rediss:// for TLS, redis+socket:///PATH (default: redis://127.0.0.1:6379/0).",
        secret("URL"),
        "-r",
    )
    redis_password: str | None = setting(None, "Password of Redis when it is not in the address.", SECRET, NO_FLAG)
    ca_file: Path | None = setting(None, "Certificates to trust at the API, and at a Redis by rediss://.", FILE)
    api_read_seconds: float = setting(
        30.0, "How long an answer of the API may take (default: 30); one to many states twice that.", SECONDS, NO_FLAG
    )
    fleet: str = setting("default", "The pollers and workers that work together (default: default).", NAME)
    name: str = setting("worker", NAME_HELP, ANY_NAME, "-n")
    #: this machine's host name; tests set another
    host: str = setting("localhost", "This host's name in the fleet, where its own is not unique.", NAME, NO_FLAG)
    log_level: str = setting(
        "INFO",
        "How much to log; TRACE has Celery's own lines too (default: {level}).",
        one_of("TRACE", "DEBUG", "INFO", "WARNING", "ERROR"),
    )
    log_format: str = setting("text", "How log lines look (default: text).", one_of("text", "json"))
    page_token: str | None = setting(
        None, "What our own pages ask for, beyond health, when they are served off loopback.", SECRET, NO_FLAG
    )
    #: where each field's value came from; a field that is not there has its default
    origins: Mapping[str, Origin] = field(default_factory=dict, repr=False, compare=False)

    @property
    def own_name(self) -> str:
        """The part's name as keys and folders have it."""
        return fitting(self.name)

    @property
    def identity(self) -> str:
        """The part's identity in the fleet, NAME@HOST."""
        return f"{self.own_name}@{self.host}"

    def tell_identity(self) -> None:
        """Log the identity where the name is one that keys and folders cannot have."""
        if self.name != self.own_name:
            extra = {"called": self.name, "identity": self.identity}
            logger.info("the name is not fit for keys and folders, so the identity is another", extra=extra)

    def origin(self, name: str) -> Origin:
        """Where the value of this field came from."""
        return self.origins.get(name, Origin("default"))
