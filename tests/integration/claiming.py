"""Claiming: what tests of both clients need, to be early, late or at once."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from flowfleet.api.client import ApiClient, Mark, Verdict
from flowfleet.flow_run import FlowRun


def ago(seconds: float) -> datetime:
    """So long ago, or ahead of now."""
    return datetime.now(UTC) - timedelta(seconds=seconds)


def race(another_client: Callable[[], ApiClient], run: FlowRun) -> dict[str, Verdict]:
    """Two claim one run at once: what each call is told."""
    start = threading.Barrier(2)

    def claim(call: str) -> Verdict:
        client = another_client()
        start.wait()
        return client.claims.claim([run], call, Mark(fleet="test"))[run.run_id].verdict

    calls = [str(uuid.uuid4()), str(uuid.uuid4())]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(calls, pool.map(claim, calls), strict=True))
