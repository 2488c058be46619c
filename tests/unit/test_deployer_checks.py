"""The checks for deployers of other packages: our own passes them, and one with a fault is told which."""

import pytest

from flowfleet.errors import StartFailed
from flowfleet.testing import DeployerFault, check_deployer
from workers.deployers.process import ProcessDeployer
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
