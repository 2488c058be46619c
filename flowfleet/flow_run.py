"""Flow run: the run, route, offer and message, the facts that poller and workers must agree on."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

from flowfleet.errors import BadMessage

#: version of messages, claims, roster rows and disk records
VERSION = 1
#: name of the one Celery task
TASK_NAME = "flowfleet.launch"
#: upper bound of a message's JSON body, in bytes
MESSAGE_LIMIT = 4096

BACKENDS = ("prefect1", "prefect3")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: what people may write for an id: ids that are made one after the other begin alike, and differ at their ends
ID_PART = re.compile(r"[0-9a-f-]{4,36}")
#: letters of an id that people are shown, unless more are needed to tell it from the others
_ID_LETTERS = 8


def telling_ids(run_ids: Iterable[str]) -> dict[str, str]:
    """Whole id → its beginning, of as many letters as tell these ids apart, at least 8 and as many of each.

    Ids that are made one after the other begin alike: 8 letters of them are the same for a minute.
    """
    ids = sorted(set(run_ids))
    # never up to a dash, which all have in the same places
    letters = max([_ID_LETTERS, *(_alike(*pair) + 1 for pair in itertools.pairwise(ids))])
    return {run_id: run_id[:letters] for run_id in ids}


def _alike(one: str, other: str) -> int:
    """How many letters both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """What decides who can run a run; each route has a Celery queue.

    `scope` is the pool's or tenant's uuid, `name` the work queue's name or the sorted labels joined by commas (a comma
    in a label is escaped: `labels`). The text form is `BACKEND/SCOPE/NAME` with `name` percent-encoded.
    """

    backend: str
    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.backend}/{self.scope}/{quote(self.name, safe='')}"

    @classmethod
    def of_labels(cls, tenant: str, labels: Iterable[str]) -> Route:
        """The route of a Prefect 1 run with these labels."""
        return cls("prefect1", tenant, ",".join(_escaped(label) for label in sorted(set(labels))))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a Prefect 1 route."""
        return tuple(unquote(label) for label in self.name.split(",") if label)

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read the text form; raises `BadMessage` when it is not one."""
        parts = text.split("/")
        if len(parts) != 3 or parts[0] not in BACKENDS or not UUID.fullmatch(parts[1]):
            raise BadMessage(f"not a route: {text[:200]!r}")
        return cls(parts[0], parts[1], unquote(parts[2]))


def _escaped(label: str) -> str:
    # only % and comma, which would be misread: the text form encodes the whole name once more, and a message is short
    return label.replace("%", "%25").replace(",", "%2C")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRun:
    """A run that the API would hand out, with what the leader knows of it before it claims the run."""

    run_id: str
    name: str
    route: Route
    #: when the run is to start, aware UTC
    due: datetime
    #: the state at the API: Prefect 1 also hands out Running runs, of which a task is to be tried again
    state: str = "Scheduled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How many runs whose time has come are held back, by what holds them."""

    #: their pool or queue is paused
    paused: int = 0
    #: a limit of their pool, queue or deployment is reached
    limit: int = 0
    #: the API would hand them out, and no worker of this fleet takes them: they count as due, too
    unserved: int = 0

    @property
    def not_due(self) -> int:
        """How many the API would not hand out now: they wait beside those that are due."""
        return self.paused + self.limit


NOTHING_HELD = Held()


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a worker offers to run; the offer filter of a poller only limits it."""

    backend: str
    pools: tuple[str, ...] = ()  # Prefect 3 pool names
    pool_ids: tuple[str, ...] = ()  # their uuids, in the same order
    work_queues: tuple[str, ...] = ()  # empty = all queues of the pools
    labels: tuple[str, ...] = ()  # Prefect 1, sorted
    tenant: str | None = None
    #: how the worker starts runs: process, docker, or the name of a plugged-in deployer
    deploy: str = "process"

    def is_for(self, backend: str) -> bool:
        """Whether the offer is one to this Prefect API: workers of both may share a ledger."""
        return self.backend == backend

    def serves(self, route: Route) -> bool:
        """Whether a worker with this offer can run the runs of this route."""
        if route.backend != self.backend:
            return False
        if self.backend == "prefect3":
            return route.scope in self.pool_ids and (not self.work_queues or route.name in self.work_queues)
        labels = set(route.labels)
        # Prefect 1: the labels of a run are a subset of those of its worker, and a run without labels goes only to
        # workers without labels only
        return route.scope == self.tenant and (labels <= set(self.labels)) and (bool(labels) or not self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The message that tells a worker to take a run: no command, no secret; the claim id is the fence."""

    run_id: str
    claim: str
    route: Route
    v: int = VERSION

    @property
    def task_id(self) -> str:
        """The Celery task id, `RUN.CLAIM`."""
        return f"{self.run_id}.{self.claim}"

    def to_kwargs(self) -> dict[str, Any]:
        """The task's keyword arguments, exactly `{v, run_id, claim, route}`."""
        return {"v": self.v, "run_id": self.run_id, "claim": self.claim, "route": str(self.route)}

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Message:
        """Validate and read the task's keyword arguments; raises `BadMessage`."""
        if set(kwargs) != {"v", "run_id", "claim", "route"}:
            raise BadMessage(
                f"a message has the keys v, run_id, claim, route; this one has {sorted(map(str, kwargs))[:8]}"
            )
        if kwargs["v"] != VERSION or isinstance(kwargs["v"], bool):
            raise BadMessage(f"message version {kwargs['v']!r} is unknown; this flowfleet reads version {VERSION}")
        for key in ("run_id", "claim"):
            if not isinstance(kwargs[key], str) or not UUID.fullmatch(kwargs[key]):
                raise BadMessage(f"{key} of a message must be a uuid")
        if not isinstance(kwargs["route"], str):
            raise BadMessage("route of a message must be text")
        if len(json.dumps(dict(kwargs))) > MESSAGE_LIMIT:
            raise BadMessage(f"a message has at most {MESSAGE_LIMIT} bytes")
        return cls(run_id=kwargs["run_id"], claim=kwargs["claim"], route=Route.parse(kwargs["route"]))


def claim_id(call: str, run_id: str) -> str:
    """The claim id of one run in a bulk call: uuid5(call id, run id).

    A Prefect 3 bulk call has one state, so one `transition_id`, for all its runs (measured); the claim id must still
    be one per run and derivable by whoever settles the claim after a crash.
    """
    return str(uuid.uuid5(uuid.UUID(call), run_id))


def is_claim_of(call: object, run_id: str, claim: str) -> bool:
    """Whether `claim` is the claim id of this run in the bulk call with this id; the id may be anybody's text."""
    try:
        return claim_id(str(call), run_id) == claim
    except ValueError:
        return False


def report_id(claim: str, kind: str) -> str:
    """The id of the report of this kind of end of a claim, by which a repeat is recognised.

    It is the same whoever sends the report: the worker, the next one on its host, or the leader for a host that is
    away.
    """
    return str(uuid.uuid5(uuid.UUID(claim), f"reported {kind}"))


def again_id(claim: str, run_id: str) -> str:
    """The id of the state by which we start the run of a claim once more: where it stands, that was carried out."""
    return str(uuid.uuid5(uuid.UUID(claim), f"{run_id} runs again"))
