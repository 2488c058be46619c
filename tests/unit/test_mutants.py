"""The list of seeded mutants fits the product: what a change moves or rewrites is mended there too."""

from collections import Counter
from pathlib import Path

import flowfleet
from benchmarks import mutants as seeded

TREE = Path(__file__).parents[2]
#: the tree too, or where the wheel is installed
PRODUCT = Path(flowfleet.__file__).parents[1]


def test_each_old_text_stands_exactly_once_and_the_tests_that_must_catch_it_are_there():
    mutants = seeded.read()
    text = "\0".join(path.read_text() for path in seeded.sources(PRODUCT))
    wrong = [f"{one.name}: its old text stands {n} times" for one in mutants if (n := text.count(one.old)) != 1]
    wrong += [f"{one.name}: changes nothing" for one in mutants if one.old == one.new]
    wrong += [f"{one.name}: there is no {test}" for one in mutants for test in one.tests if not _there(test)]
    wrong += [f"{name} stands twice" for name, n in Counter(one.name for one in mutants).items() if n > 1]
    assert not wrong, f"mend tests/mutants.toml (`at` says where to look): {wrong}"
    assert len(mutants) >= 60


def _there(test: str) -> bool:
    file, _, name = test.partition("::")
    return (TREE / file).exists() and (not name or f"def {name}(" in (TREE / file).read_text())
