"""The checks for deployers of other packages: our own passes them, and one with a fault is told which."""

import pytest

from flowfleet.errors import StartFailed
from flowfleet.testing import DeployerFault, check_deployer
from workers.deployers.process import ProcessDeployer
from workers.deployment import Exit
from workers.host import Abilities, Host


def process_deployer(_context=None):
    return ProcessDeployer(host=Host.probe({}), abilities=Abilities.probe({}))


def test_the_deployer_of_processes_passes_them(tmp_path):
    assert "a worker that ends, and its run that goes on" in check_deployer(process_deployer, tmp_path)


class Faulty:
    """A deployer with one fault."""

    kind = "process"

    def __init__(self):
        self.below = process_deployer()

    def start(self, spec):
        return self.below.start(spec)

    def adopt(self, folder):
        return self.below.adopt(folder)

    def close(self):
        self.below.close()


class Forgets(Faulty):
    def adopt(self, folder):
        return None


class Deaf(Faulty):
    def start(self, spec):
        raise StartFailed("no")


@pytest.mark.parametrize(
    ("deployer", "words"),
    [(Forgets, "a run that lives is not found again by the next worker"), (Deaf, None)],
)
def test_a_fault_is_told_in_a_sentence(tmp_path, deployer, words):
    with pytest.raises((DeployerFault, StartFailed), match=words):
        check_deployer(lambda _context: deployer(), tmp_path)


class TellsTooEarly(Faulty):
    """Of each run that is to be killed it says at once that it has ended, and leaves it alone."""

    def __init__(self, started):
        super().__init__()
        self.started = started

    def start(self, spec):
        self.started.append(self.below.start(spec))
        return Untouched(self.started[-1])


class Untouched:
    def __init__(self, run):
        self.run, self.ended = run, None

    def __getattr__(self, name):
        return getattr(self.run, name)

    def poll(self):
        return self.ended or self.run.poll()

    def kill(self):
        self.ended = Exit(signal=9)


def test_a_run_that_goes_on_after_its_end_is_a_fault(tmp_path):
    started = []
    try:
        with pytest.raises(DeployerFault, match="a run goes on though it is told as ended"):
            check_deployer(lambda _context: TellsTooEarly(started), tmp_path)
    finally:
        for run in started:
            run.kill()
