"""The monkey for half a minute, with a fixed seed; `make chaos` has it as long as one likes."""

import pytest

from tests.chaos import monkey
from tests.chaos.arena import NUMBERS
from tests.chaos.zygote import Zygote


@pytest.mark.stress
@pytest.mark.timeout(400)
def test_a_monkey_amid_short_runs_loses_doubles_and_misreports_none(tmp_path):
    zygote = Zygote(NUMBERS)
    try:
        played, found = monkey.play(7, 30.0, tmp_path, zygote)
        print(played.report())
        assert found == []
        assert played.mischief.met.total() >= 2
    finally:
        zygote.close()
