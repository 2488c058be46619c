"""Kills for memory with full numbers: none of 32 true ones is missed, and none of 100 other kills is told as one.

The small version of this, which CI runs, is tests/unit/test_oom.py.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.bench_of_runs import FULL, BenchOfRuns
from tests.needs import control_groups
from tests.oom import LimitedRuns
from workers.deployment import Exit

TRUE = 32
OF_EACH = 25
LANES = 3
SEED = 20261129


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[LimitedRuns]:
    groups = control_groups()
    bench = BenchOfRuns(tmp_path, FULL)
    yield LimitedRuns(bench, groups)
    bench.close()


def told(kinds: list[str], end_of: Callable[[str], Exit]) -> Counter[tuple[str, str]]:
    """How often each kind of end was told as whose, a few of them at once."""
    with ThreadPoolExecutor(LANES) as pool:
        ends = list(pool.map(end_of, kinds))
    found = Counter((kind, end.ended_by.value) for kind, end in zip(kinds, ends, strict=True))
    print(f"\nseed {SEED}, ends told: {dict(sorted(found.items()))}")
    return found


@pytest.mark.stress
def test_none_of_many_true_kills_for_memory_is_missed(limited):
    assert told(["oom"] * TRUE, lambda _: limited.starve()) == {("oom", "oom"): TRUE}
    assert not [spec for spec in limited.bench.start_specs if limited.group(spec).exists()]


@pytest.mark.stress
def test_none_of_a_hundred_other_kills_is_told_as_one_for_memory(limited):
    bench = limited.bench

    def end_of(kind: str) -> Exit:
        if kind == "child, then killed":
            return limited.kill(limited.starve_child("time.sleep(60)")[0], after=2.0)
        if kind == "child, then 137":
            return bench.end_of(limited.starve_child("os._exit(137)")[0], 30)
        started = bench.start_ready(bench.sh("echo ready; sleep 60"))
        if kind == "beside another":
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(limited.starve)
                end = limited.kill(started)
                assert other.result().oom
            return end
        return limited.kill(started)

    kinds = ["child, then killed", "child, then 137", "beside another", "killed"] * OF_EACH
    random.Random(SEED).shuffle(kinds)
    assert told(kinds, end_of) == {
        ("child, then killed", "unknown"): OF_EACH,
        ("child, then 137", "itself"): OF_EACH,
        ("beside another", "unknown"): OF_EACH,
        ("killed", "unknown"): OF_EACH,
    }
