"""Broker: the Celery app of a fleet, the queues of its routes, and the one way to publish a message.

The app is made by a function from plain values: nothing is read from the environment, and Celery's own variables are
taken off the process (`take_off_celery_variables`), since CELERY_BROKER_URL beats an app's own setting and would put
messages and ledger on two servers.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from flowfleet.errors import LedgerUnavailable
from flowfleet.flow_run import TASK_NAME, Message, Route

#: seconds a pending read of the queues lasts: kombu reads it out when it closes, so it bounds how long a stop takes
READ_SECONDS = 0.25
#: Celery's emulated acknowledgements: only messages taken off a queue and not yet started stand under it
VISIBILITY_SECONDS = 3600


def key_prefix(fleet: str) -> str:
    """What every key of Celery's in this fleet begins with."""
    return f"flowfleet:{fleet}:broker:"


def queue_name(route: Route) -> str:
    """The Celery queue of a route."""
    return str(route)


def queue_key(fleet: str, route: Route) -> str:
    """The Redis list behind the queue of a route: newest message at its head, oldest at its tail."""
    return key_prefix(fleet) + queue_name(route)


def queue_of(route: Route) -> Queue:
    """The queue of a route with an exchange of its own, as Celery declares it."""
    name = queue_name(route)
    exchange: Any = Exchange(name, type="direct")  # type: ignore[no-untyped-call]
    queue: Queue = Queue(name, exchange, routing_key=name)  # type: ignore[no-untyped-call]
    return queue


def broker_url(redis_url: str, password: str | None) -> str:
    """The address as kombu reads it, with the password in it if it is given apart."""
    if not password:
        return redis_url
    parts = urlsplit(redis_url)
    if parts.password:
        return redis_url
    # kombu takes the socket's path from behind the credentials; a user without a password keeps its name
    host = parts.netloc.rpartition("@")[2]
    credentials = f"{parts.username or ''}:{quote(password, safe='')}@"
    return urlunsplit((parts.scheme, credentials + host, parts.path, parts.query, parts.fragment))


def take_off_celery_variables(environ: MutableMapping[str, str]) -> list[str]:
    """Remove each `CELERY_*` variable from our own process; the names of those that were there."""
    names = sorted(name for name in environ if name.startswith("CELERY_"))
    for name in names:
        del environ[name]
    return names


def make_app(redis_url: str, *, fleet: str, password: str | None = None, task_events: bool = False) -> Celery:
    """The Celery app of a fleet; it opens no connection yet."""
    app = Celery("flowfleet", broker=broker_url(redis_url, password), set_as_current=False, fixups=[])
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
        broker_transport_options={
            "global_keyprefix": key_prefix(fleet),
            "priority_steps": [0],
            "polling_interval": READ_SECONDS,
            "socket_timeout": 5.0,
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "visibility_timeout": VISIBILITY_SECONDS,
        },
    )
    return app


class Publisher:
    """Sends messages to the queues of routes: each once, with the time of sending in a header."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def publish(self, message: Message) -> None:
        """Put the message into its route's queue; raises `LedgerUnavailable` when that is not certain."""
        headers: dict[str, Any] = {"enqueued_at": time.time()}
        try:
            self._app.send_task(
                TASK_NAME,
                kwargs=message.to_kwargs(),
                task_id=message.task_id,
                queue=queue_of(message.route),
                headers=headers,
                retry=False,
                ignore_result=True,
            )
        except (OperationalError, RedisError, OSError) as exc:
            raise LedgerUnavailable(f"Redis did not take the message of run {message.run_id}: {exc}") from exc
