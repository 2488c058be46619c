"""Doctor: the checks of what must be right for a fleet to work, each with what was found and the remedy."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flowfleet.api import traits
from flowfleet.api.backlog import Rival
from flowfleet.api.client import ApiClient, Mark
from flowfleet.api.life import is_of_fleet
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.errors import ApiError, ApiUnavailable, KeyRefused, LedgerError, SettingsError
from flowfleet.flow_run import Offer
from flowfleet.ledger import Ledger
from flowfleet.ledger.ledger_id import ledger_of
from flowfleet.monitor import held
from flowfleet.monitor.metrics import our_version
from flowfleet.monitor.redis_server import RedisServer
from flowfleet.monitor.snapshot import Snapshot, bracketed
from flowfleet.monitor.tables import span

#: the oldest version of Redis that has what our scripts use
OLDEST_REDIS = (6, 2)
#: so many other agents are named one by one, the rest are counted
NAMED = 5
#: clocks further apart than this make states and logs hard to read
SKEW_SECONDS = 5.0


class CheckStatus(StrEnum):
    """The result of a check. Only FAIL makes `doctor` end with 5."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


OK, WARN, FAIL = CheckStatus.OK, CheckStatus.WARN, CheckStatus.FAIL


@dataclass(frozen=True)
class Check:
    """One check: its result, what was found, and the remedy."""

    name: str
    verdict: CheckStatus
    found: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """What was found, and what to do about it."""
        # an error of the settings or the ledger may begin in lower case, since it stands within longer sentences too
        found = self.found[:1].upper() + self.found[1:] if self.found.partition(" ")[0].isalpha() else self.found
        return f"{found.rstrip('.')}. {self.remedy}".rstrip()


def redis_checks(server: RedisServer, clock: Callable[[], float] = time.time) -> Iterator[Check]:
    """Checks of Redis: it is reachable, no cluster and new enough, keeps its data, and its clock agrees with ours."""
    try:
        info = server.info()
        appendonly, save, now = server.config("appendonly"), server.config("save"), server.now()
    except LedgerError as error:
        yield Check("redis", FAIL, str(error), "Start Redis, or correct --redis.")
        return
    yield Check("redis", OK, f"Redis at {server.address} answers.")
    yield _cluster(info)
    yield _version(info)
    yield _persistence(info, appendonly, save)
    yield _eviction(info)
    yield _clock("redis clock", now - clock(), "Redis")


def _cluster(info: Mapping[str, Any]) -> Check:
    if str(info.get("cluster_enabled", "0")) == "1":
        found = "This is a node of a Redis Cluster, where our scripts cannot work on all keys at once."
        return Check("redis mode", FAIL, found, "Use a standalone Redis or one behind Sentinel.")
    return Check("redis mode", OK, "Redis is no cluster.")


def _version(info: Mapping[str, Any]) -> Check:
    name = "Valkey" if info.get("valkey_version") else "Redis"
    found = str(info.get("valkey_version") or info.get("redis_version") or "0")
    parts = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if parts < OLDEST_REDIS:
        return Check("redis version", FAIL, f"{name} {found} is too old.", "Use Redis 6.2 or newer, or Valkey.")
    return Check("redis version", OK, f"{name} {found}.")


def _persistence(info: Mapping[str, Any], appendonly: str | None, save: str | None) -> Check:
    name = "redis persistence"
    # where CONFIG is not allowed, as on many hosted servers, INFO still tells of the append-only file
    if appendonly == "yes" or str(info.get("aof_enabled")) == "1":
        if info.get("aof_last_write_status", "ok") != "ok":
            found = "The append-only file could not be written the last time."
            return Check(name, FAIL, found, "Look at the disk of the Redis host.")
        return Check(name, OK, "The append-only file is on.")
    if save:
        found = "Only snapshots are kept, so a restart of Redis forgets the last minutes."
    else:
        found = "Nothing is kept, so a restart of Redis forgets every claim."
    found = f"{found} The fleet then waits and rebuilds them from workers and API."
    return Check(name, WARN, found, "Set appendonly yes.")


def _eviction(info: Mapping[str, Any]) -> Check:
    policy, limit = str(info.get("maxmemory_policy", "unknown")), int(info.get("maxmemory", 0) or 0)
    if policy == "noeviction":
        return Check("redis eviction", OK, "Nothing is evicted when memory is full.")
    found = f"With maxmemory-policy {policy}, Redis may throw claims away when memory is full."
    return Check("redis eviction", FAIL if limit else WARN, found, "Set maxmemory-policy noeviction.")


def _clock(name: str, skew: float, whose: str) -> Check:
    if abs(skew) <= SKEW_SECONDS:
        return Check(name, OK, f"The clock of {whose} agrees with ours to {abs(skew):.1f} s.")
    direction = "ahead of" if skew > 0 else "behind"
    found = f"The clock of {whose} is {abs(skew):.0f} s {direction} this machine's."
    return Check(name, WARN, found, "Set both by NTP.")


def api_checks(probe: Callable[[], ServerInfo]) -> Iterator[Check]:
    """Checks of the API: it is reachable, we can use it, and its clock agrees with ours."""
    try:
        info = probe()
    except SettingsError as error:
        yield Check("api", FAIL, str(error))
        return
    except ApiError as error:
        # every other error names a remedy of its own, or is a definite answer of the server at that address
        away = isinstance(error, ApiUnavailable) and not isinstance(error, KeyRefused)
        yield Check("api", FAIL, str(error), "Start the API, or correct --api." if away else "")
        return
    there = traits.of(info.backend)
    version = info.version if there.tells_version else there.prefect_versions[-1]
    yield Check("api", OK, f"Prefect {version} answers.")
    yield _clock("api clock", info.skew_seconds, "the API")


def fleet_checks(snapshot: Snapshot) -> Iterator[Check]:
    """Checks of the fleet: a leader, an open gate, live workers, equal versions, and no due runs that nobody serves."""
    leader, fleet = snapshot.leader, snapshot.fleet
    live = [worker for worker in snapshot.workers if worker.row.live]
    # one of them may be on its way; where there is neither nothing is, and no run will ever begin
    lack = WARN if leader or live else FAIL
    if leader:
        yield Check("leader", OK, f"The lead poller is {leader.name}@{leader.host}.")
    else:
        yield Check("leader", lack, f"No poller leads the fleet {fleet}.", "Start one: poller start.")
    trouble = held.api_trouble(snapshot)
    if trouble:
        yield Check("poller's api", WARN, f"{trouble[:1].upper()}{trouble[1:]}.", "Look at the poller's log.")
    if snapshot.gate_open:
        yield Check("gate", OK, "Runs may start.")
    else:
        found = "No run may start: the leader has not accepted this Redis yet."
        yield Check("gate", WARN, found, "Wait, or start a poller if none runs.")
    if live:
        yield Check("workers", OK, f"{len(live)} live, {snapshot.counts['free_slots']} free slots.")
    else:
        yield Check("workers", lack, f"No worker lives in the fleet {fleet}.", "Start one: worker start.")
    for worker in snapshot.workers:
        if worker.state == "shut":
            found = f"{worker.row.worker} takes no runs: {worker.row.shut}."
            yield Check("shut", WARN, found, f"Put it right on {worker.host}; runs wait meanwhile.")
    others = sorted({worker.row.version for worker in live if worker.row.version != our_version()})
    if others:
        found = f"Workers of other versions live ({', '.join(others)}), this is {our_version()}."
        yield Check("versions", WARN, found, "Upgrade all, one after the other.")
    unserved = [queue.route for queue in snapshot.queues if queue.due and not queue.eligible_workers]
    if unserved:
        names = ", ".join(
            bracketed(route.labels) if traits.of(route.backend).by_labels else snapshot.route_name(route)
            for route in unserved
        )
        found = f"Runs are due on {names}, which no active worker serves."
        yield Check("unserved", WARN, found, "Start a worker for it.")

    for found, remedy in held.causes(snapshot):
        yield Check("held", WARN, found, remedy)


def rival_checks(api: ApiClient, snapshot: Snapshot, clock: Callable[[], float] = time.time) -> Iterator[Check]:
    """Checks that no other executor takes runs of this fleet's pools or labels, and that each due run has one."""
    offers = tuple(dict.fromkeys(worker.row.offer for worker in snapshot.workers if worker.row.live))
    if not offers:
        return
    try:
        rivals, unserved = _rivals_of(api, offers, snapshot), api.backlog.unserved(offers)
    except ApiError as error:
        yield Check("rivals", WARN, f"Other executors could not be asked for: {error}")
        return
    yield from _rivals(rivals, clock(), locked=api.traits.locks_claims)
    if unserved:
        first, more = unserved[0], len(unserved) - 1
        others = f" {more} more are due that no agent can take." if more else ""
        found = f"The run {first.name} is due and no agent can take it: {first.reason.rstrip('.')}.{others}"
        yield Check("labels", WARN, found, "Start a worker that can, or correct the run.")


def ledger_checks(api: ApiClient, ledger: Ledger, snapshot: Snapshot) -> Iterator[Check]:
    """Check that no run of this fleet's name was claimed through another Redis, as far as a few of them tell."""
    known, ledgers = {claim.run_id for claim in snapshot.claims}, ledger.gate.ledgers()
    if not ledgers:
        return  # no poller of this version has led yet
    try:
        unknown = [
            found.state for found in api.unfinished(Mark(fleet=snapshot.fleet)) if found.state.run_id not in known
        ]
        # what was claimed after the snapshot is known by now; the history of a run costs a request
        looked_at = [state for state in unknown if ledger.claims.get(state.run_id) is None][:NAMED]
        origins = [(state, api.life.origin(state.run_id, snapshot.fleet)) for state in looked_at]
    except ApiError as error:
        yield Check("other redis", WARN, f"Unfinished runs could not be asked for: {error}")
        return
    theirs = [state.run_name for state, origin in origins if origin and ledger_of(origin.call) not in ledgers]
    if theirs:
        which = "through another Redis, or before this one was emptied"
        found = f"The run {theirs[0]} of the fleet {snapshot.fleet} was claimed {which}."
        remedy = "Give each fleet a name of its own by --fleet NAME, or end the run by flowfleet cancel --now."
        yield Check("other redis", WARN, found, remedy)


def _rivals_of(api: ApiClient, offers: Sequence[Offer], snapshot: Snapshot) -> list[Rival]:
    """The executors that take runs of the live workers' pools or labels, without the fleet's own.

    At Prefect 1 the poller itself would count where it lately asked for runs of workers that have left since.
    """
    if api.traits.locks_claims:
        return [rival for rival in api.backlog.rivals(offers) if not is_of_fleet(snapshot.fleet, rival.name)]
    left = tuple(dict.fromkeys(worker.row.offer for worker in snapshot.workers))
    found = api.backlog.rivals(offers)
    if not found or set(left) == set(offers):
        return found
    strangers = api.backlog.rivals(left)
    return [rival for rival in found if rival in strangers]


def _rivals(rivals: Sequence[Rival], now: float, *, locked: bool) -> Iterator[Check]:
    if not rivals:
        yield Check("rivals", OK, "No other executor takes the runs of this fleet.")
    for rival in rivals[:NAMED]:
        ago = span(max(0.0, now - rival.seen.timestamp())) if rival.seen else ""
        yield _beside(rival, ago) if locked else _against(rival, ago)
    if len(rivals) > NAMED:
        yield Check("rivals", WARN, f"{len(rivals) - NAMED} more executors take the same runs.")


def _beside(rival: Rival, ago: str) -> Check:
    """A worker of the same pool, where the server lets one of both win each run."""
    seen = f", last seen {ago} ago," if ago else ""
    found = f"The {rival.type} {rival.name} is online in the pool {rival.pool}{seen} and takes runs of it too."
    remedy = (
        "Stop it when it is idle, or give it another pool. No run is started twice: the server lets one of them win."
    )
    return Check("rivals", WARN, found, remedy)


def _against(rival: Rival, ago: str) -> Check:
    """An agent with the same labels, where both may start a run."""
    found = (
        f"The agent {rival.name} ({rival.type}) with labels {bracketed(rival.labels)} "
        f"{f'asked for runs {ago} ago' if ago else 'is registered'} "
        "and takes the same runs without this fleet's ledger."
    )
    remedy = "Stop it, or give it other labels: a Prefect Server cannot keep a run from being started twice."
    return Check("rivals", WARN, found, remedy)
