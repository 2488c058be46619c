"""flowfleet's own deployer of containers passes the checks that it asks of others."""

from dataclasses import replace

from flowfleet.api.container_ask import ContainerAsk
from flowfleet.testing import check_deployer
from tests.container_engine import BUSYBOX


def test_the_deployer_of_containers_passes_the_checks(deploying, tmp_path):
    def change(spec):
        ask = ContainerAsk(image=BUSYBOX, command=spec.argv, env={}, name="checked", network_mode="host")
        return replace(spec, container=ask)

    done = check_deployer(lambda _context: deploying.deployer(), tmp_path / "check", change=change)
    assert len(done) == 9
