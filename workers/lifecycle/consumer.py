"""Consumer: Celery's consumer, kept to the worker's slots.

A bootstep lets a message in only while there is room for its run, and lets no message end the worker. The bootstep
leans on five places inside Celery and kombu that are public by use and not by promise; `require_hooks` looks for each
before the worker starts, since without them a worker would fetch more than it can run.
"""

import logging
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import celery
import kombu
from celery import Celery, bootsteps
from celery.platforms import SecurityWarning
from celery.worker import state as celery_state
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from kombu.common import ignore_errors
from kombu.transport import redis as redis_transport

from flowfleet import logs
from flowfleet.broker import broker_error, queue_of
from flowfleet.errors import BadMessage, FleetError
from flowfleet.flow_run import TASK_NAME, Message, Route
from flowfleet.retry import Outage, backoff
from flowfleet.settings.classes import WorkerSettings
from flowfleet.wakeup import Wakeup
from workers.lifecycle.messages import check_message
from workers.state.attempts import Attempts
from workers.state.ledger_view import LedgerView

logger = logging.getLogger(__name__)

#: the errors that Celery and kombu raise over a message that they cannot read; a body nested too deeply is one such
FAULTS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
#: the pause before each new try to consume: its least, and what it grows to while Redis stays away
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 5.0
#: seconds of consuming that prove that Redis is back. A replica lets us connect, and refuses the first read at once
PROOF_SECONDS = 1.0


def require_hooks() -> None:
    """Raise `FleetError` when the installed Celery or kombu lacks a place that the slots need."""
    missing = [
        words
        for words, there in (
            ("kombu QoS.can_consume", callable(getattr(redis_transport.QoS, "can_consume", None))),
            ("kombu Channel._brpop_read", callable(getattr(redis_transport.Channel, "_brpop_read", None))),
            ("celery Consumer.create_task_handler", callable(getattr(Consumer, "create_task_handler", None))),
            ("celery Consumer.add_task_queue", callable(getattr(Consumer, "add_task_queue", None))),
            ("celery Consumer.ensure_connected", callable(getattr(Consumer, "ensure_connected", None))),
            (
                "celery Consumer.on_connection_error_after_connected",
                callable(getattr(Consumer, "on_connection_error_after_connected", None)),
            ),
            ("celery worker state.requests", isinstance(getattr(celery_state, "requests", None), dict)),
        )
        if not there
    ]
    if missing:
        raise FleetError(
            f"Celery {celery.__version__} with kombu {kombu.__version__} lacks {', '.join(missing)}, "
            f"without which slots cannot be kept: install celery 5.6 or 5.7"
        )


@dataclass
class Slots:
    """The slots of one worker, wired into Celery's consumer at each connection (each reconnect makes a new channel)."""

    slots: int
    ledger_view: LedgerView
    attempts: Attempts
    #: called with the routes whose queues are read from now on; with none when no queue is
    on_serving: Callable[[frozenset[Route]], None]
    #: called with the reason of each refused message, a few words for the log
    on_refused: Callable[[str], None]
    wakeup: Wakeup = field(default_factory=Wakeup)
    stopping: bool = False
    #: called with the time (by the sender's clock) at which an accepted message was sent
    on_arrival: Callable[[float], None] = lambda _sent_at: None

    def in_use(self) -> int:
        """The number of slots in use: runs and launches.

        Both are counted by id, since a task that hands its run over is both for a moment.
        """
        # a copy of the dict's keys: pool threads change it, and Celery's WeakSets may not be iterated at all
        return len(set(celery_state.requests.copy()) | self.attempts.occupying())

    def has_room(self) -> bool:
        """Whether one more message may be fetched."""
        return not self.stopping and self.ledger_view.accepting and self.in_use() < self.slots

    def stop(self) -> None:
        """Let no more messages in, and Celery's loop end at its next turn; safe in a signal handler."""
        self.stopping = True
        celery_state.should_stop = 0
        self.wakeup.wake()

    def step(self) -> type[bootsteps.StartStopStep]:
        """The bootstep class; Celery makes an instance of it for each consumer."""
        slots = self

        class SlotsStep(bootsteps.StartStopStep):  # type: ignore[misc]
            """The bootstep that wires the slots in at each connection, after the task consumer is made."""

            requires = (Tasks,)

            def start(self, c: Any) -> None:
                slots.attach(c)

        return SlotsStep

    def attach(self, consumer: Any) -> None:
        """Wire the slots into a consumer that is about to read."""
        channel = consumer.task_consumer.channel
        qos = channel.qos
        # the method of the class, below Celery's own override on the instance, which would count requests only
        original = type(qos).can_consume.__get__(qos)
        qos.can_consume = lambda: self.has_room() and bool(original())
        guarded = guard_read(channel._brpop_read, self.on_refused)  # noqa: SLF001 - kombu has no other place
        channel._brpop_read = guarded  # noqa: SLF001 - closing a channel reads once more by this name
        channel.handlers["BRPOP"] = guarded
        if not hasattr(consumer, "flowfleet_handler"):
            consumer.flowfleet_handler = consumer.create_task_handler
            consumer.create_task_handler = lambda: self.wrap(consumer.flowfleet_handler())
        self.on_serving(frozenset())
        self.subscribe(consumer)
        consumer.hub.add_reader(self.wakeup.fileno(), self._on_wakeup, consumer)

    def _on_wakeup(self, consumer: Any) -> None:
        self.wakeup.clear()
        if self.stopping:
            self.on_serving(frozenset())
        else:
            self.subscribe(consumer)

    def subscribe(self, consumer: Any) -> None:
        """Read the queues of all routes that are to be served; may be called in Celery's own thread only."""
        routes = self.ledger_view.routes()
        for route in sorted(routes):
            if not consumer.task_consumer.consuming_from(str(route)):
                consumer.app.amqp.queues.add(queue_of(route))
                consumer.add_task_queue(str(route))
        self.on_serving(routes)

    def wrap(self, handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Put a check before Celery's handler: a message that does not pass is acknowledged and goes no further."""

        def checked(message: Any) -> Any:
            if self.stopping:
                return None  # not acknowledged: the channel puts it back into its queue as it closes
            try:
                task_id = check_message(
                    message.headers, message.body, message.content_type, message.content_encoding
                ).task_id
            except BadMessage as exc:
                self._refuse(message, str(exc))
                return None
            sent_at = message.headers.get("enqueued_at")
            if isinstance(sent_at, int | float):
                self.on_arrival(sent_at)
            before = celery_state.requests.get(task_id)
            try:
                return handler(message)
            except FAULTS as exc:
                # a header that only Celery reads is wrong: the request made of it must not take up a slot for ever
                request = celery_state.requests.get(task_id)
                if request is not None and request is not before:
                    celery_state.task_ready(request)
                self._refuse(message, f"Celery cannot read it ({type(exc).__name__})")
                return None

        return checked

    def _refuse(self, message: Any, reason: str) -> None:
        if not message.acknowledged:
            # an acknowledgement that meets one of these errors lets the message come back and be refused again
            transport = redis_transport.Transport
            message.ack_log_error(logger, (*transport.connection_errors, *transport.channel_errors))
        self.on_refused(reason)


def guard_read(read: Callable[..., Any], refused: Callable[[str], None]) -> Callable[..., Any]:
    """Wrap kombu's read, so that an item that is no message is refused and does not end the worker."""

    def guarded(**options: Any) -> Any:
        try:
            return read(**options)
        except FAULTS as exc:
            # the item is off its queue already, so nothing is left to acknowledge
            refused(f"not a Celery message ({type(exc).__name__})")
            return True

    return guarded


def waiting_consumer(outage: Outage, wait: Callable[[float], object], jitter: random.Random) -> type[Consumer]:
    """The class of a consumer that waits before each new try; Celery makes the instance.

    `wait` sleeps, but no longer than until a stop is asked for.
    """

    class WaitingConsumer(Consumer):  # type: ignore[misc]
        """Celery's consumer with one way out of each error of Redis: said once, a pause, then connected anew."""

        failures = 0
        opened: Any = None

        def ensure_connected(self, conn: Any) -> Any:
            """Try once: the pause is that of every other error, and not kombu's, which grows to half a minute."""
            self.opened = conn
            conn.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            self.first_connection_attempt = False
            return conn

        def on_connection_error_before_connected(self, exc: Exception) -> None:
            """Drop what is open, then wait: kombu writes to Redis before Celery has the connection, and leaves it."""
            if self.opened is not None:
                ignore_errors(self.opened, self.opened.close)  # type: ignore[no-untyped-call]
            self._pause(exc)

        def on_connection_error_after_connected(self, exc: Exception) -> None:
            """Drop the connection, then wait."""
            super().on_connection_error_after_connected(exc)
            self._pause(exc)

        def _pause(self, exc: Exception) -> None:
            # the longest grows from 2 s, and all of it is jitter: a fleet does not come back in one moment
            longest = backoff(self.failures, first=2 * SHORTEST_PAUSE_SECONDS, most=LONGEST_PAUSE_SECONDS)
            seconds = jitter.uniform(SHORTEST_PAUSE_SECONDS, longest)
            self.failures += 1
            outage.failed(broker_error(exc, self.conninfo.as_uri()), next_try=seconds)
            wait(seconds)
            celery_state.maybe_shutdown()

        def on_ready(self) -> None:
            """Count the outage as over when consuming has gone well for a moment."""
            super().on_ready()
            self.hub.call_later(PROOF_SECONDS, self._proved, self.failures)

        def _proved(self, failures: int) -> None:
            if failures == self.failures:
                self.failures = 0
                outage.passed()

    return WaitingConsumer


def serve(
    app: Celery,
    settings: WorkerSettings,
    slots: Slots,
    launch: Callable[[Message], None],
    *,
    outage: Outage,
    wait: Callable[[float], object],
) -> int:
    """Launch what comes for the free slots until Celery's worker is told to end; its exit code."""
    register_task(app, launch)
    app.steps["consumer"].add(slots.step())
    worker = make_worker(app, settings.identity, settings, outage=outage, wait=wait)
    worker.start()
    return int(worker.exitcode or 0)


def make_worker(
    app: Celery, name: str, settings: WorkerSettings, *, outage: Outage, wait: Callable[[float], object]
) -> Any:
    """Make a Celery worker that reads no queue yet; its `start` blocks, and its `exitcode` tells how it ended."""
    base: Any = app.Worker

    class QuietWorker(base):  # type: ignore[misc]
        """A Celery worker without signal handlers of its own: Celery's would wait for every run."""

        def install_platform_tweaks(self, worker: Any) -> None:
            """Install no signal handlers: ours stay."""

        def setup_logging(self, colorize: Any = None) -> Any:
            """Answer that the logs are set up already."""
            del colorize
            return True

        def set_process_status(self, info: str) -> None:
            """Set no process title: the process keeps the name of its command."""

    with warnings.catch_warnings():
        # the warning is about pickle under root; we take JSON only, and flows may need root
        warnings.simplefilter("ignore", SecurityWarning)
        return QuietWorker(
            hostname=name,
            pool="threads",
            # one thread more than slots, for a launch that hands back while all other threads are taken
            concurrency=settings.slots + 1,
            quiet=True,
            task_events=settings.task_events,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel=logs.level_number(settings.log_level),
            consumer_cls=waiting_consumer(outage, wait, random.Random()),
        )


def register_task(app: Celery, launch: Callable[[Message], None]) -> None:
    """Register the one Celery task of the app, which calls `launch` with the message."""

    @app.task(name=TASK_NAME, shared=False, ignore_result=True, acks_late=False)  # type: ignore[untyped-decorator]
    def flowfleet_launch(**kwargs: Any) -> None:
        try:
            message = Message.from_kwargs(kwargs)
        except BadMessage as exc:  # the bootstep has checked the message before; eager calls come here directly
            logger.warning("message refused", extra={"error": str(exc)})
            return
        launch(message)


def forget_stop() -> None:
    """Clear Celery's stop flag, which holds for the whole process: a program that goes on may start another worker."""
    celery_state.should_stop = None
