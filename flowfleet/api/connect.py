"""Connect: the connector, which learns from settings or by asking which Prefect API is meant, and opens its client."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flowfleet.api import detect
from flowfleet.api.client import ApiClient
from flowfleet.api.prefect1 import access as access1
from flowfleet.api.prefect1 import defaults as prefect1_defaults
from flowfleet.api.prefect1.access import Access, find_access
from flowfleet.api.prefect1.client import Prefect1
from flowfleet.api.prefect1.graphql import PREFECT1, GraphQL
from flowfleet.api.prefect1.settings import Prefect1Settings
from flowfleet.api.prefect3 import access as access3
from flowfleet.api.prefect3.access import AccessSource, home_of, no_address
from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.prefect3.settings import prefect_settings
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.contact import Contact
from flowfleet.api.transport.flavour import PREFECT3, Flavour
from flowfleet.api.transport.session import Session
from flowfleet.errors import KeyRefused, SettingsError
from flowfleet.failpoints import Failpoints
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import Found, add, refresh

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=CommonSettings)

_PREFECT3 = "PREFECT_API_URL"


class Connector:
    """A connector opens the client of the Prefect API that the settings mean.

    The settings are read when the connector is made. The API is asked which Prefect it is only in `open`, and only
    where the settings leave that undecided. Whoever waits for the API calls `open` until the API answers. The connector
    holds the secrets of either Prefect, also before it is known which one answers, so a replaced key is found at SIGHUP
    and after a refusal.
    """

    def __init__(
        self,
        settings: CommonSettings,
        environ: Mapping[str, str],
        *,
        folder: Path | None = None,
        home: Path | None = None,
        pause: Callable[[float], object] = time.sleep,
        failpoints: Failpoints | None = None,
        contact: Contact | None = None,
    ) -> None:
        """Raises `SettingsError` when no address is set anywhere, or when the address cannot be used."""
        self._settings, self._environ, self._pause = settings, environ, pause
        self._failpoints, self._contact = failpoints or Failpoints(), contact or Contact()
        self._folder, self._home = folder or Path.cwd(), home or home_of(environ)
        #: prefect1, prefect3, or None = the API has to be asked
        self.backend = decide(settings, environ, self._folder, self._home)
        self._client: ApiClient | None = None
        self._refused = False
        self._last: Access | None = None
        # read here already, so that an error in the settings of the Prefect that is meant is told at once
        self._source = AccessSource(settings, environ, self._folder, self._home) if self.backend != "prefect1" else None
        self._shown = self._credentials() if self.backend != "prefect1" else (None, self._access().address)

    @property
    def key_refused(self) -> bool:
        """Whether the last answer refused our credentials."""
        return self._client.session.key_refused if self._client else self._refused

    def renew(self) -> bool:
        """Read the credentials again; True when they have changed."""
        if self._client:
            return self._client.session.renew()
        before, self._shown = self._shown, self._credentials()
        return self._shown != before

    def open(self) -> ApiClient:
        """The client; where the settings do not tell which Prefect is meant, the API is asked first.

        Raises `ApiUnavailable` while nobody answers, `ApiRejected` for an address where neither Prefect is, and
        `SettingsError` for settings that name two addresses which both answer.
        """
        if self._client is None:
            self._refused = False
            try:
                backend = self.backend or self._ask()
            except KeyRefused:
                self._refused = True
                raise
            self.backend = backend
            self._client = self._prefect3() if backend == "prefect3" else self._prefect1(self.defaults(self._settings))
        return self._client

    def client_for(self, settings: CommonSettings) -> ApiClient:
        """The opened client for a part with these settings, which name the agent and what its runs get.

        Raises what `open` raises, and `ApiRejected` for a tenant that does not exist.
        """
        client = self.open()
        if self.backend == "prefect1":
            self._client = client = fitted = self._prefect1(settings)
            fitted.tenants.check()
        return client

    def defaults(self, settings: C) -> C:
        """The settings of a command, with the values of Prefect 1's own agent settings where nothing nearer is set."""
        return prefect1_defaults.applied(settings, self._found1()) if self.backend == "prefect1" else settings

    def _between(self) -> None:
        self._failpoints.hit("report.between")

    # which Prefect it is

    def _ask(self) -> str:
        session = self._session()
        candidates = [detect.prefect3(session)]
        trouble: SettingsError | None = None
        try:
            candidates.append(detect.prefect1(self._graphql(self._access())))
        except SettingsError as error:  # this error only matters where Prefect 3 does not answer
            trouble = error
        try:
            backend = detect.choose(candidates, hint=lambda: self._nearby(session.address))
        except detect.NotThere as error:
            raise trouble or error from error
        logger.info("the API was asked which it is", extra={"backend": backend})
        return backend

    def _nearby(self, address: Address) -> str:
        """What answers at the other path of the same server, with or without `/api`, which people often mean."""
        other = address.url.removesuffix("/api") if address.url.endswith("/api") else f"{address.url}/api"
        there = replace(address, url=other)
        if other.endswith("/api"):
            candidate = detect.prefect3(Session(there, pause=self._pause), tries=1)
        else:
            candidate = detect.prefect1(GraphQL(Session(there, flavour=PREFECT1, pause=self._pause)), tries=1)
        return detect.remedy(candidate)

    # the clients

    def _found1(self) -> Prefect1Settings:
        return Prefect1Settings(self._environ, self._home)

    def _access(self) -> Access:
        """Prefect 1's access, read anew each time: secret files and Prefect 1's own files may have been replaced."""
        try:
            self._last = find_access(refresh(self._settings), self._found1())
        except SettingsError as error:
            if self._last is None:
                raise
            logger.warning("credentials could not be read again", extra={"error": str(error)})
        return self._last

    def _current_source(self) -> tuple[AccessSource, Address]:
        assert self._source is not None  # only called where Prefect 3 is meant, or may be
        try:
            return self._source, self._source.look()
        except SettingsError as error:
            logger.warning("credentials could not be read again", extra={"error": str(error)})
            return self._source, self._source.address

    def _credentials(self) -> tuple[Address | None, Address | None]:
        """The addresses with the credentials that Prefect 3 and Prefect 1 would get; None where there is none."""
        of3 = self._current_source()[1] if self._source else None
        try:
            return of3, self._access().address
        except SettingsError:
            return of3, None

    def _session(self) -> Session:
        source, address = self._current_source()
        return self._session_to(address, source.look)

    def _session_to(self, address: Address, look: Callable[[], Address], flavour: Flavour = PREFECT3) -> Session:
        seconds = self._settings.api_read_seconds
        return Session(
            address,
            flavour=flavour,
            find_again=look,
            pause=self._pause,
            read_seconds=seconds,
            contact=self._contact,
        )

    def _graphql(self, access: Access) -> GraphQL:
        def look() -> Address:
            return self._access().address

        return GraphQL(self._session_to(access.address, look, PREFECT1), tenant=access.tenant)

    def _prefect3(self) -> Prefect3:
        # what a deployment may name in `{{ $NAME }}`: our own password or page token is not for flows to read
        open_to_flows = {name: value for name, value in self._environ.items() if not name.startswith("FLOWFLEET_")}
        assert self._source is not None
        return Prefect3(
            self._session(),
            settings=self._source.for_runs,
            environ=open_to_flows,
            worker=self._settings.identity,
            between=self._between,
        )

    def _prefect1(self, settings: CommonSettings) -> Prefect1:
        access, found = self._access(), self._found1()
        return Prefect1(
            self._graphql(access),
            agent_name=settings.name,
            agent_config_id=getattr(settings, "agent_config_id", None),
            server_backend=access.server_backend,
            labels=getattr(settings, "agent_labels", ()) or getattr(settings, "labels", ()),
            deploy=getattr(settings, "deploy", "process"),
            log_level=found.log_level_of_runs,
            cloud_logs=getattr(settings, "cloud_logs", True),
            between=self._between,
        )


def decide(settings: CommonSettings, environ: Mapping[str, str], folder: Path, home: Path) -> str | None:
    """Which API the settings mean, None where the API has to be asked; raises `SettingsError` where they name none."""
    if settings.backend in ("prefect1", "prefect3"):
        return settings.backend
    if settings.backend != "auto":
        raise SettingsError(f"--backend {settings.backend} is unknown: use auto, prefect1 or prefect3")
    if settings.api:
        return None
    found = Prefect1Settings(environ, home)
    if _PREFECT3 in prefect_settings(environ, folder, home):
        return None if found.names_an_api else "prefect3"
    if found.names_an_api or found.left_behind:
        return "prefect1"
    raise no_address()


class PrefectValues:
    """What Prefect's own settings add to ours, as far as it is known without asking the API."""

    def __init__(self, settings: CommonSettings, environ: Mapping[str, str]) -> None:
        """Read Prefect's own settings; raises `SettingsError` for a file that is broken."""
        home = home_of(environ)
        self._environ = environ
        self._prefect1 = Prefect1Settings(environ, home)
        #: prefect1 or prefect3; None = known only by asking the API, or no API is set
        self.backend: str | None = None
        try:
            self.backend = decide(settings, environ, Path.cwd(), home)
        except SettingsError:  # no API is set, which the lines show
            return

    def complete(self, settings: C) -> C:
        """The settings as a part would use them: with what Prefect's own give where we have no value of our own."""
        own = access3.layer(self._environ)
        if self.backend == "prefect1":
            settings = prefect1_defaults.applied(settings, self._prefect1)
            own = access1.layer(self._prefect1, settings.api or access1.found_url(self._prefect1).value)

        def where_none(name: str) -> Found | None:
            given = settings.token if name == "key" else None
            return own(name) if given is None and getattr(settings, name) is None else None

        return add(settings, where_none)


def connect(
    settings: CommonSettings,
    environ: Mapping[str, str],
    *,
    folder: Path | None = None,
    home: Path | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> ApiClient:
    """The client of the API that the settings mean, for callers that do not wait for it.

    Raises what `Connector` and its `open` raise.
    """
    return Connector(settings, environ, folder=folder, home=home, pause=pause).open()
