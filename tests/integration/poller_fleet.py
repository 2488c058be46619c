"""PollerFleet: real `poller` processes on a real Valkey and the lawless API, with workers that only pretend to run."""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowfleet.broker import queue_key
from flowfleet.errors import LedgerUnavailable
from flowfleet.flow_run import Message, Offer, Route
from flowfleet.ledger import connect
from flowfleet.ledger.claims import Claim, State
from flowfleet.ledger.roster import WorkerRow
from tests.lawless_api import LawlessApi
from tests.valkey import Valkey
from tests.world import World

RENEW_SECONDS = 0.5


class StandIn(threading.Thread):
    """A worker that takes messages as Redis has them, and holds each run for `seconds` (None: for ever)."""

    def __init__(self, fleet: PollerFleet, name: str, slots: int, seconds: float | None) -> None:
        super().__init__(daemon=True, name=name)
        self._fleet = fleet
        self.identity = f"{name}@test"
        self.slots = slots
        self.seconds = seconds
        self.ledger = connect(fleet.valkey.url, fleet.world.fleet)
        self.nonce = uuid.uuid4().hex
        #: run id → what it holds and until when
        self.held: dict[str, tuple[Claim, float]] = {}
        self.errors: list[BaseException] = []
        self._ended = threading.Event()
        self._beat = 0
        self._next_beat = 0.0
        self._sign_on()

    def _sign_on(self) -> None:
        offer = Offer(backend="prefect3", pools=(self._fleet.world.pool,), pool_ids=(self._fleet.pool_id,))
        row = WorkerRow(
            worker=self.identity,
            nonce=self.nonce,
            offer=offer,
            routes=(self._fleet.route,),
            slots=self.slots,
            version="0.1.0",
            beat=self._beat,
        )
        assert self.ledger.roster.sign_on(row) is None

    def stop(self) -> None:
        self._ended.set()
        self.join(10)
        self.ledger.close()
        assert not self.errors, self.errors

    def run(self) -> None:
        while not self._ended.wait(0.01):
            try:
                self._step()
            except LedgerUnavailable:
                time.sleep(0.2)
            except BaseException as error:
                self.errors.append(error)
                return

    def _step(self) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + RENEW_SECONDS
            self._beat += 1
            held = [item for item, _ in self.held.values()]
            renewal = self.ledger.claims.renew(self.identity, self.nonce, self._beat, held)
            if not renewal.signed_on:
                self._sign_on()
            for run_id in renewal.fenced:
                self.held.pop(run_id, None)
        for run_id, (item, until) in list(self.held.items()):
            if now >= until:
                self.ledger.claims.end(run_id, item.claim, self.identity, {"code": 0})
                self._fleet.api.write(run_id, "COMPLETED")
                self.ledger.claims.release(run_id, item.claim, self.identity, "completed")
                del self.held[run_id]
        if len(self.held) < self.slots:
            self._take()

    def _take(self) -> None:
        body = self.ledger.store.ask(lambda client: client.rpop(queue_key(self._fleet.world.fleet, self._fleet.route)))
        if body is None:
            return
        _, kwargs, _ = json.loads(base64.b64decode(json.loads(str(body))["body"]))
        message = Message.from_kwargs(kwargs)
        self._fleet.messages[message.task_id] += 1
        claims, who = self.ledger.claims, (self.identity, self.nonce)
        if not claims.take(message.run_id, message.claim, *who).moved:
            return
        taken = claims.get(message.run_id)
        if taken is None or not claims.start(message.run_id, message.claim, *who).moved:
            return
        self._fleet.starts[message.run_id] += 1
        self._fleet.started_at[message.run_id] = time.time()
        claims.run(message.run_id, message.claim, self.identity, {"kind": "process", "host": "test", "id": "1"})
        self._fleet.api.write(message.run_id, "RUNNING")
        held = replace(taken, state=State.RUNNING)
        until = float("inf") if self.seconds is None else time.monotonic() + self.seconds
        self.held[message.run_id] = (held, until)


class PollerFleet:
    """One fleet: its API, its Valkey, its pollers and stand-ins."""

    def __init__(self, folder: Path, valkey: Valkey) -> None:
        self.valkey = valkey
        self.api = LawlessApi().start()
        folder.mkdir(parents=True, exist_ok=True)
        self.world = World(folder, self.api.api_url, valkey.url)
        self.world.env |= {"FLOWFLEET_RENEW_SECONDS": str(RENEW_SECONDS), "FLOWFLEET_LEASE_SECONDS": "4"}
        self.pool_id = str(self.api.add_pool(self.world.pool)["id"])
        self.route = Route("prefect3", self.pool_id, "default")
        self.ledger = connect(valkey.url, self.world.fleet)
        self.workers: list[StandIn] = []
        self.starts: Counter[str] = Counter()
        self.started_at: dict[str, float] = {}
        self.messages: Counter[str] = Counter()

    def poller(self, name: str = "agent", *options: str, **how: Any) -> Any:
        return self.world.start_poller(name, *options, **how)

    def worker(self, name: str = "w", *, slots: int = 4, seconds: float | None = 0.0) -> StandIn:
        worker = StandIn(self, name, slots, seconds)
        self.workers.append(worker)
        worker.start()
        return worker

    def runs(self, number: int, due_in: float = 0.0) -> list[str]:
        return [self.api.add_run(self.world.pool, due_in=due_in) for _ in range(number)]

    def kinds(self, runs: list[str]) -> Counter[str]:
        return Counter(str(self.api.state(run)["type"]) for run in runs)

    def done(self, runs: list[str]) -> bool:
        return self.kinds(runs) == {"COMPLETED": len(runs)}

    def close(self) -> None:
        try:
            for worker in self.workers:
                worker.stop()
        finally:
            self.world.close()
            self.ledger.close()
            self.api.stop()
