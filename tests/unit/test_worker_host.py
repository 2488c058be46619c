"""Abilities and host: probed, switched off as a whole, and told by their sentences."""

import dataclasses
import os

import pytest

from workers.host import Abilities, Host


def test_plain_mode_switches_everything_off():
    plain = Abilities.probe({"FLOWFLEET_PLAIN": "1"})
    assert plain == Abilities.plain()
    assert not any(dataclasses.astuple(plain))
    assert len(plain.missing()) == 3


def test_a_kernel_that_refuses_pidfd_costs_only_what_needs_it(monkeypatch):
    def refuse(*_args):
        raise PermissionError

    if not hasattr(os, "pidfd_open"):
        pytest.skip("this platform has no pidfd")
    monkeypatch.setattr(os, "pidfd_open", refuse)
    abilities = Abilities.probe({})
    assert (abilities.pidfd, abilities.pidfd_info) == (False, False)
    assert "The end of a run is seen within a second, not at once." in abilities.missing()


def test_the_host_is_the_same_at_each_look_and_can_be_injected():
    host = Host.probe({})
    assert host == Host.probe({})
    assert host.machine_id
    assert host.boot_id
    injected = Host.probe({"FLOWFLEET_MACHINE_ID": "m", "FLOWFLEET_BOOT_ID": "b"})
    assert (injected.machine_id, injected.boot_id, injected.name) == ("m", "b", host.name)
