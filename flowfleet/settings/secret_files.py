"""Secret files: the login at Redis and the token of our own pages, which may be replaced while a part runs."""

import logging
import threading

from flowfleet.errors import SettingsError
from flowfleet.ledger.login import Login, without_login
from flowfleet.settings.common import CommonSettings
from flowfleet.settings.layers import refresh

logger = logging.getLogger(__name__)

_LOGIN, _TOKEN = "login at Redis", "page token"
_FIELDS = {_LOGIN: ("redis", "redis_password"), _TOKEN: ("page_token",)}


class SecretFiles:
    """Reads a secret again each time it is needed, so that a replaced file is enough, before and after a refusal.

    That is seldom: a login is needed when a connection is opened, a token when somebody asks from another machine. A
    file that cannot be read just now, since it is being replaced, leaves the last secret in use.
    """

    #: always False: each new connection reads the file by itself, so the reload need not look for a new login
    key_refused = False

    def __init__(self, settings: CommonSettings) -> None:
        self._settings = settings
        self._reading = threading.Lock()
        self._complaint = ""
        #: passed to every client of Redis
        self.login = Login(lambda: self._read(_LOGIN).redis)

    def page_token(self) -> str | None:
        """The token that our own pages ask for now; None when none is set."""
        return self._read(_TOKEN).page_token

    def renew(self) -> bool:
        """Read all secrets again now; True when one of them has changed."""
        before = self._settings
        for secret in _FIELDS:
            self._read(secret)
        return self._settings != before

    def _read(self, secret: str) -> CommonSettings:
        with self._reading:
            try:
                found = refresh(self._settings, _FIELDS[secret])
            except SettingsError as error:
                return self._complain(str(error))
            if without_login(found.redis) != without_login(self._settings.redis):
                # a password is for one server only, and the clients know no other
                return self._complain("the address of Redis has changed, which needs a restart")
            changed, self._settings, self._complaint = found != self._settings, found, ""
        if changed:
            logger.info("a replaced secret is in use from now on", extra={"secret": secret})
        return found

    def _complain(self, why: str) -> CommonSettings:
        """Warn once for each reason: a part that waits for Redis opens a connection each second."""
        if why != self._complaint:
            self._complaint = why
            logger.warning("a secret could not be read again, the last one stays in use", extra={"error": why})
        return self._settings
