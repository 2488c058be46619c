"""Broker: the Celery app of a fleet, the queues of its routes, and the one way to publish a message.

The app is made by a function from plain values: nothing is read from the environment, and Celery's own variables are
taken off the process (`take_off_celery_variables`), since CELERY_BROKER_URL beats an app's own setting and would put
messages and ledger on two servers.
"""

import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from celery import Celery
from celery.app.amqp import AMQP
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.transport import redis as redis_transport
from redis import exceptions

from flowfleet.errors import LedgerError, LedgerUnavailable
from flowfleet.flow_run import TASK_NAME, Message, Route
from flowfleet.ledger import sentinel
from flowfleet.ledger.error_answers import REFUSED, answer_of, ledger_error
from flowfleet.ledger.login import TLS, Login, tls_of, without_login
from flowfleet.ledger.sentinel import SentinelAddress, Sentinels, named_by

#: the type of an app, for modules that only hand it on and must not import Celery
App = Celery

#: seconds that a blocking read of the queues lasts: kombu waits for its end when it closes, so this bounds a stop
READ_SECONDS = 0.25
#: time-out of Celery's emulated acknowledgements. Only messages that are off their queue and not yet begun stand under
#: it, for moments; one that comes back although its worker lives is dropped, since its claim is taken
VISIBILITY_SECONDS = 120
#: how often workers look for messages whose time-out is over (Celery 5.7; 5.6 looks each 100 s)
RESTORE_SECONDS = 10


def key_prefix(fleet: str) -> str:
    """The prefix of all of Celery's keys in this fleet."""
    return f"flowfleet:{fleet}:broker:"


def queue_key(fleet: str, route: Route) -> str:
    """The Redis list behind the queue of a route: newest message at its head, oldest at its tail."""
    return f"{key_prefix(fleet)}{route}"


def queue_of(route: Route) -> Queue:
    """The queue of a route, named as the route, with an exchange of its own, as Celery declares it."""
    name = str(route)
    exchange: Any = Exchange(name, type="direct")  # type: ignore[no-untyped-call]
    queue: Queue = Queue(name, exchange, routing_key=name)  # type: ignore[no-untyped-call]
    return queue


def take_off_celery_variables(environ: MutableMapping[str, str]) -> list[str]:
    """Remove each `CELERY_*` variable from our own process; returns the names of those that were set."""
    names = sorted(name for name in environ if name.startswith("CELERY_"))
    for name in names:
        del environ[name]
    return names


class _LostByErrors:
    """A connection that counts as lost with each error answer; mixed into the classes of the client library.

    kombu waits for a lost connection. Of an error answer (READONLY, MISCONF, NOREPLICAS, NOPERM, UNBLOCKED, …) it knows
    no way on: it would end the worker, and the poller would keep a connection to a primary that became a replica.
    """

    _greets = False

    def connect(self) -> None:
        self._greet("connect")

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        self._greet("connect_check_health", *args, **options)

    def _greet(self, method: str, *args: Any, **options: Any) -> None:
        # the greeting asks for what old servers refuse, and the client library passes over that
        base: Any = super()
        before, self._greets = self._greets, True
        try:
            getattr(base, method)(*args, **options)
        except exceptions.ResponseError as exc:
            raise _lost(exc) from exc
        finally:
            self._greets = before

    def read_response(self, *args: Any, **options: Any) -> Any:
        base: Any = super()
        try:
            return base.read_response(*args, **options)
        except exceptions.NoScriptError:
            raise  # the client library loads the script
        except exceptions.ResponseError as exc:
            if self._greets:
                raise
            own: Any = self
            own.disconnect()
            raise _lost(exc) from exc


def _lost(exc: exceptions.ResponseError) -> exceptions.ConnectionError:
    """The error of a lost connection for an error answer: it stands in kombu's list of what is waited for."""
    code, text = answer_of(exc)
    return exceptions.AuthenticationError(text) if code in REFUSED else exceptions.ConnectionError(text)


def broker_error(exc: Exception, address: str) -> LedgerError:
    """Our error for what Celery and kombu raise over Redis, in the words that the ledger has for it."""
    cause = exc.__cause__ if isinstance(exc.__cause__, exceptions.ResponseError) else exc
    if isinstance(cause, exceptions.RedisError):
        return ledger_error(cause, address, answered=True)
    return LedgerUnavailable(f"Redis at {address} does not answer ({cause})")


class _Channel(redis_transport.Channel):
    """A channel whose connections ask for the login whenever they are opened, and are lost by an error answer.

    kombu would keep the first login for ever.
    """

    def _connparams(self, asynchronous: bool = False) -> Any:
        found = super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]
        login = self.connection.client.transport_options["login"]
        sentinels = self.connection.client.transport_options.get("sentinels")
        # of TCP or of a socket, and with what kombu has added to it
        kind = found["connection_class"]
        if sentinels is not None:
            kind = named_by(sentinels, kind)
        lost_by_errors = type(kind.__name__, (_LostByErrors, kind), {})
        return {
            **found,
            "username": None,
            "password": None,
            "credential_provider": login,
            "connection_class": lost_by_errors,
        }


class _Transport(redis_transport.Transport):
    Channel = _Channel
    #: True: kombu leaves the address of a socket whole, and the channel reads it
    can_parse_url = True


class _Connection(Connection):
    """A connection over our transport. kombu's pools hold copies of another class, with its transport and address."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # the base class understands the scheme of the address, `redis` or `redis+socket`
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self.transport_cls = _Transport
        self.uri_prefix = None

    def as_uri(self, *_args: Any, **_options: Any) -> str:
        """The address, for Celery's log; it never has a password."""
        options: Any = self.transport_options
        if "address" in options:
            return str(options["address"])
        host = str(self.hostname)
        return f"redis+{host}" if "://" in host else f"redis://{host}:{self.port or 6379}/{self.virtual_host}"

    def info(self) -> dict[str, Any]:
        """The facts that Celery's remote control tells Flower in JSON, so without the login, an object of ours."""
        found = super().info()  # type: ignore[no-untyped-call]
        told = {name: value for name, value in found["transport_options"].items() if name not in ("login", "sentinels")}
        return {**found, "transport": "redis", "transport_options": told}


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = BrokerConnection = _Connection


def make_app(redis_url: str, *, fleet: str, login: Login | None = None, task_events: bool = False) -> Celery:
    """The Celery app of a fleet; no connection is opened yet.

    Each connection asks `login` for user and password; without `login` the address has them.
    """
    address, tls = without_login(redis_url), None  # so that no part of Celery can show the password
    login = login or Login(lambda: redis_url)
    parts = urlsplit(address)
    named: dict[str, Any] = {}
    if parts.scheme in sentinel.SCHEMES:
        found = SentinelAddress.parse(parts)
        named = {"sentinels": Sentinels(found, login), "address": address}
        address, tls = f"redis://{found.hosts[0][0]}/{found.database}", found.tls
    elif parts.scheme == TLS:
        # our transport is that of plain Redis; what encrypts is asked for beside the address
        address, tls = urlunsplit(parts._replace(scheme="redis", query="")), tls_of(parts)
    app = Celery("flowfleet", broker=address, amqp=_Amqp, set_as_current=False, fixups=[])
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_create_missing_queues=False,
        task_default_queue=f"unrouted.{fleet}",
        task_serializer="json",
        accept_content=["json"],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_redirect_stdouts=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=task_events,
        task_send_sent_event=False,
        worker_enable_remote_control=task_events,  # Flower asks through it; we do not
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # an error answer within a transaction is no lost connection, and ends no worker either
        broker_channel_error_retry=True,
        broker_use_ssl=tls,
        broker_transport_options={
            "login": login,
            **named,
            "global_keyprefix": key_prefix(fleet),
            "priority_steps": [0],
            "polling_interval": READ_SECONDS,
            "socket_timeout": 5.0,
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "visibility_timeout": VISIBILITY_SECONDS,
            "unacked_restore_interval": RESTORE_SECONDS,
            "unacked_restore_throttle": 1,
        },
    )
    return app


class Publisher:
    """Publisher of messages to the queues of routes: each message once, with the time of sending in a header."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(self, message: Message) -> None:
        """Put the message into its route's queue; raises `LedgerUnavailable` when Redis may not have taken it."""
        try:
            self._app.send_task(
                TASK_NAME,
                kwargs=message.to_kwargs(),
                task_id=message.task_id,
                queue=queue_of(message.route),
                headers={"enqueued_at": time.time()},
                retry=False,
                ignore_result=True,
            )
        except (OperationalError, exceptions.RedisError, OSError) as exc:
            raise LedgerUnavailable(f"Redis did not take the message of run {message.run_id}: {exc}") from exc
