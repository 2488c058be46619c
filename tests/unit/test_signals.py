"""Signals: taken with a handler, left ignored where that is wished, and given back."""

import signal

import pytest

from flowfleet.signals import restored, take


@pytest.mark.parametrize("respect", [True, False])
def test_a_signal_that_is_ignored_stays_so_where_that_is_wished(respect):
    came = []
    with restored(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        take(signal.SIGUSR1, handler=came.append, respect_ignored=respect)
        signal.raise_signal(signal.SIGUSR1)
    assert came == [signal.SIGUSR1] * (not respect)


def test_signals_do_again_after_a_block_what_they_did_before():
    first, second = [], []
    with restored(signal.SIGUSR1, signal.SIGUSR2):
        take(signal.SIGUSR1, signal.SIGUSR2, handler=first.append, respect_ignored=True)
        with restored(signal.SIGUSR1):
            take(signal.SIGUSR1, handler=second.append, respect_ignored=True)
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
    assert (first, second) == ([signal.SIGUSR1, signal.SIGUSR2], [signal.SIGUSR1])
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
