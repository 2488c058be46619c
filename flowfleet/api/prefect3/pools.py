"""Pools: Prefect 3's work pools and their queues: created, found by name, and cached for a short while."""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from flowfleet.api.prefect3.pool_template import POOL_TYPE, base_job_template
from flowfleet.api.transport.reading import reading, rows
from flowfleet.api.transport.responses import Conflict, NotFound, ResponseRefused
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiRejected, SettingsError
from flowfleet.flow_run import Offer, Route

#: how long answers about pools and deployments are kept
FRESH_SECONDS = 30.0
_DESCRIPTION = "Runs of this pool are claimed by a flowfleet poller and run by its workers."
#: types of Prefect's own pools
_PROCESS, _DOCKER = "process", "docker"
_NEEDED = frozenset({"command", "env", "working_dir"})
_PAGE = 200


def pool_path(pool: str, *steps: str) -> str:
    """The path of a pool, or of something in it."""
    return "/".join(("/work_pools", *(quote(step, safe="") for step in (pool, *steps))))


@dataclass
class ExpiringCache:
    """A small thread-safe cache of answers, each kept for some seconds."""

    seconds: float
    clock: Callable[[], float]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _kept: dict[Any, tuple[float, Any]] = field(default_factory=dict, init=False, repr=False)

    def get(self, key: Any, ask: Callable[[], Any], *, seconds: float | None = None) -> Any:
        """The kept answer, or a new one from `ask`; what `ask` raises is not kept. `seconds` wants a newer one."""
        now, fresh = self.clock(), self.seconds if seconds is None else seconds
        with self._lock:
            if key in self._kept and now - self._kept[key][0] < fresh:
                return self._kept[key][1]
        answer = ask()
        with self._lock:
            if len(self._kept) >= 1000:
                self._kept = {k: v for k, v in self._kept.items() if now - v[0] < self.seconds}
            self._kept[key] = (now, answer)
        return answer

    def forget(self, key: Any) -> None:
        """Drop the kept answer, so that the next `get` asks anew."""
        with self._lock:
            self._kept.pop(key, None)


class Pools:
    """The work pools that this client was asked about, and their queues, each cached for a short while."""

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        self._session = session
        self._pools = ExpiringCache(FRESH_SECONDS, clock)
        self._queues = ExpiringCache(FRESH_SECONDS * 10, clock)  # an unknown queue id refreshes them at once
        #: whether a pool has a limit changes seldom, and the server itself enforces a new limit at once
        self._limits = ExpiringCache(FRESH_SECONDS * 10, clock)
        #: the queues of each pool as `routes` told them last; the pools that have turned out different since
        self._told: dict[str, frozenset[str]] = {}
        self._changed: set[str] = set()

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        # raises `SettingsError` for a pool that is missing, cannot be created or cannot be served
        with reading("for a pool"):
            ids = [self._resolved(name, offer, create=create) for name in offer.pools]
        if ids:
            self._session.reader.proven.set()  # workers only ask for their pools, and never call `probe`
        return replace(offer, pool_ids=tuple(ids))

    def missing_pools(self, offer: Offer) -> tuple[str, ...]:
        with reading("for a pool"):
            missing = tuple(name for name in offer.pools if self._found(name) is None)
        for name in missing:
            _check_name(name)
        return missing

    def _resolved(self, name: str, offer: Offer, *, create: bool) -> str:
        pool = self._found(name) or (self._create(name) if create else None)
        if pool is None:
            raise SettingsError(f"there is no work pool {name!r}; start a worker with --pool {name} to create it")
        _check_type(pool, offer.deploy)
        return str(pool["id"])

    def read(self, name: str, *, anew: bool = False) -> Mapping[str, Any]:
        """The pool by name, at most 30 s old, or `anew`; raises `NotFound` when it is gone."""
        if anew:
            self._pools.forget(name)
        pool: Mapping[str, Any] = self._pools.get(name, lambda: self._session.get(pool_path(name)))
        return pool

    def limited(self, name: str) -> bool:
        """Whether the pool has a limit of its own, as it was at most 5 minutes ago."""
        limit = self._limits.get(name, lambda: self.read(name).get("concurrency_limit"))
        return limit is not None

    def queues(self, name: str, *, anew: bool = False, seconds: float | None = None) -> dict[str, Mapping[str, Any]]:
        """The pool's queues by id, at most 5 minutes or `seconds` old; `anew` asks the API now."""
        if anew:
            self._queues.forget(name)
        queues: dict[str, Mapping[str, Any]] = self._queues.get(name, lambda: self._list_queues(name), seconds=seconds)
        return queues

    def queue_names(self, name: str, *, anew: bool = False, seconds: float | None = None) -> set[str]:
        """The names of the pool's queues, as `queues` has them."""
        return {str(queue["name"]) for queue in self.queues(name, anew=anew, seconds=seconds).values()}

    def work_queues(self, offer: Offer) -> tuple[str, ...]:
        with reading("for the queues of a pool"):
            return tuple(sorted({name for pool in offer.pools for name in self.queue_names(pool, anew=True)}))

    def forget(self, name: str) -> None:
        """Drop what is cached about a pool, since the pool has turned out to be different."""
        self._pools.forget(name)
        self._queues.forget(name)
        self._limits.forget(name)
        self._changed.add(name)

    def queue_name(self, pool: str, queue_id: str) -> str | None:
        """The name of a queue, None when it does not exist; for a queue that is not cached the API is asked anew."""
        queue = self.queues(pool).get(queue_id) or self.queues(pool, anew=True).get(queue_id)
        return str(queue["name"]) if queue else None

    def routes(self, offer: Offer) -> list[Route]:
        found: list[Route] = []
        with reading("for the queues of a pool"):
            for name, pool_id in zip(offer.pools, offer.pool_ids, strict=True):
                try:
                    names = frozenset(self.queue_names(name, anew=True))
                except NotFound:  # the pool was deleted
                    names = frozenset()
                found += [Route("prefect3", pool_id, queue) for queue in names]
                self._told[name] = names
                self._changed.discard(name)
        return sorted(found)

    def changed(self, offer: Offer) -> bool:
        return not self._changed.isdisjoint(offer.pools)

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        # a worker's heartbeat, which the pool's page shows
        self._session.post(
            pool_path(pool, "workers", "heartbeat"),
            {"name": name, "heartbeat_interval_seconds": max(1, round(interval_seconds))},
        )

    def offline(self, pool: str, name: str) -> None:
        with suppress(NotFound):
            self._session.call("DELETE", pool_path(pool, "workers", name))

    def _list_queues(self, name: str) -> dict[str, Mapping[str, Any]]:
        queues: dict[str, Mapping[str, Any]] = {}
        while True:
            body = {"limit": _PAGE, "offset": len(queues)}
            page = rows(self._session.post(pool_path(name, "queues", "filter"), body))
            queues |= {str(queue["id"]): queue for queue in page}
            if len(page) < _PAGE:
                break
        if self._told.get(name) != frozenset(str(queue["name"]) for queue in queues.values()):
            self._changed.add(name)
        return queues

    def _found(self, name: str) -> Mapping[str, Any] | None:
        try:
            return self.read(name, anew=True)
        except NotFound:
            return None

    def _create(self, name: str) -> Mapping[str, Any] | None:
        _check_name(name)
        body = {
            "name": name,
            "type": POOL_TYPE,
            "description": _DESCRIPTION,
            "base_job_template": base_job_template(),
        }
        try:
            pool: Mapping[str, Any] = self._session.post("/work_pools/", body)
        except Conflict:  # another worker was quicker
            return self._found(name)
        except ResponseRefused as refused:
            raise ApiRejected(f"the work pool {name!r} cannot be created: {refused.detail}") from refused
        return pool


def _check_name(name: str) -> None:
    """Raise `SettingsError` for the name of a pool that Prefect lets nobody make."""
    if name.lower().startswith("prefect"):
        raise SettingsError(
            f"the work pool {name!r} cannot be created because Prefect keeps names that begin with "
            '"prefect" for itself; choose another name for --pool'
        )


def _check_type(pool: Mapping[str, Any], deploy: str) -> None:
    """Raise `SettingsError` for a pool that cannot be served.

    Pools of our own type are served, by processes also those of type `process`, by containers those of type `docker`,
    and any other only if its template has command, env and working folder.
    """
    theirs = {"process": _PROCESS, "docker": _DOCKER}.get(deploy, _PROCESS)
    if pool["type"] in (POOL_TYPE, theirs):
        return
    if pool["type"] in (_PROCESS, _DOCKER) and deploy in ("process", "docker"):
        other = "docker" if deploy == "process" else "process"
        raise SettingsError(
            f"the work pool {pool['name']!r} is of type {pool['type']!r}, whose runs this worker does not start: start "
            f"it with --deploy {other}, or name a pool of type {POOL_TYPE} or {theirs} by --pool"
        )
    configured = set((pool.get("base_job_template") or {}).get("job_configuration") or {})
    if not configured >= _NEEDED:
        raise SettingsError(
            f"the work pool {pool['name']!r} is of type {pool['type']!r}, whose job template lacks "
            f"{', '.join(sorted(_NEEDED - configured))}: use a pool of type {POOL_TYPE} or process"
        )
