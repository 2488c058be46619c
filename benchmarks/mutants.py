"""Seeded mutants: puts each fault of tests/mutants.toml into a copy of the tree, and runs the tests that must catch it.

    python benchmarks/mutants.py [--tree TREE] [--list FILE] [--jobs N] [NAME…]

Each line says caught, NOT CAUGHT, or not applicable (the old text does not stand there exactly once). Before the
faults all named tests are run on a copy without any: they must pass. Exits with 1 unless they do and all are caught.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
ROOMS = ("flowfleet", "poller", "workers")
#: one mutant may take this long: a fault may let every wait of a test run out
SECONDS = 300.0
#: all named tests on the tree as it is
CLEAN_SECONDS = 1500.0


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One small fault in the product."""

    name: str
    #: what goes wrong for a user
    says: str
    #: where the text stands: file and function, for whoever has to find it after a change
    at: str
    old: str
    new: str
    #: the tests that must catch it: files, or node ids
    tests: tuple[str, ...]

    def places(self, tree: Path) -> list[Path]:
        """The files of the product in which the old text stands, each as often as it stands there."""
        return [path for path in sources(tree) for _ in range(path.read_text().count(self.old))]

    def apply(self, tree: Path) -> None:
        """Put the fault into this tree."""
        (path,) = self.places(tree)
        path.write_text(path.read_text().replace(self.old, self.new))


def read(path: Path = TREE / "tests/mutants.toml") -> list[Mutant]:
    """The mutants of a list."""
    return [Mutant(**{**row, "tests": tuple(row["tests"])}) for row in tomllib.loads(path.read_text())["mutant"]]


def sources(tree: Path) -> list[Path]:
    """The files of the product in which faults are sown."""
    return [path for room in ROOMS for path in sorted((tree / room).rglob("*")) if path.suffix in (".py", ".lua")]


class Trial:
    """A copy of the tree in which tests are run."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._python = tree / ".venv/bin/python" if (tree / ".venv/bin/python").exists() else Path(sys.executable)
        self.copy = folder / "tree"
        # with the bytecode of the tree, which is valid as long as a file is as old as it was
        shutil.copytree(
            tree, self.copy, ignore=shutil.ignore_patterns(".git", ".venv*", ".python39", ".*_cache", "build")
        )
        # for processes that tests start too: it comes before the site-packages, and so before the editable install
        self._env = {**os.environ, "PYTHONPATH": str(self.copy)}
        self._env.setdefault("FLOWFLEET_TEST_PREFECT1_PYTHON", str(tree / ".venv-prefect1/bin/python"))
        self._env.setdefault("FLOWFLEET_TEST_PYTHON39", str(tree / ".python39/python"))
        where = "import flowfleet, poller, workers; print(flowfleet.__file__, poller.__file__, workers.__file__)"
        seen = subprocess.check_output([self._python, "-c", where], cwd="/", env=self._env, text=True).split()
        assert all(Path(one).is_relative_to(self.copy) for one in seen), f"not the copy is imported, but {seen}"

    def run(self, tests: Iterable[str], seconds: float, *more: str) -> tuple[str, str]:
        """Run these tests; the verdict (passed, failed, broken, too long), and the first test that failed."""
        argv = [str(self._python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=200", *more, *tests]
        with subprocess.Popen(
            argv,
            cwd=self.copy,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # pytest stops what its tests have started
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=30)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return "too long", ""
        verdict = {0: "passed", 1: "failed"}.get(process.returncode, "broken")
        failed = [line for line in said.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
        words = said[-300:] if verdict == "broken" else "by a test's time limit" if verdict == "failed" else ""
        return verdict, failed[0].split(" - ")[0].partition("::")[2] if failed else words


def try_one(tree: Path, mutant: Mutant) -> tuple[str, str]:
    """The verdict on one mutant, and the test that has caught it."""
    count = len(mutant.places(tree))
    if count != 1:
        return "not applicable", f"its old text stands {count} times in the product, look at {mutant.at}"
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        trial = Trial(tree, Path(folder))
        mutant.apply(trial.copy)
        verdict, words = trial.run(mutant.tests, SECONDS, "-x")
    return {"failed": "caught", "passed": "NOT CAUGHT"}.get(verdict, verdict), words


def main(args: Sequence[str]) -> int:
    """Try the mutants that are named, else all; 0 when all are caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tree", type=Path, default=TREE)
    parser.add_argument("--list", type=Path, default=TREE / "tests/mutants.toml")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args(args)
    tree, known = given.tree.resolve(), {mutant.name: mutant for mutant in read(given.list)}
    mutants = [known[name] for name in given.names or known]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        verdict, words = Trial(tree, Path(folder)).run(tests, CLEAN_SECONDS, "-n", str(given.jobs))
    print(f"without a fault: {verdict} {words} ({time.monotonic() - begun:.0f} s)", flush=True)
    counts: dict[str, int] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        for mutant, (found, by) in zip(mutants, pool.map(lambda one: try_one(tree, one), mutants), strict=True):
            counts[found] = counts.get(found, 0) + 1
            print(f"{mutant.name:26} {found:15} {by}", flush=True)
    print(", ".join(f"{count} {found}" for found, count in counts.items()), f"in {time.monotonic() - begun:.0f} s")
    return 0 if verdict == "passed" and counts == {"caught": len(mutants)} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
