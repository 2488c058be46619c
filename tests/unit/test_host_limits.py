"""Host limits: which slots fit, what is said where not all do, and where the kernel tells the limits."""

import logging
import resource

import pytest

from flowfleet.errors import SettingsError
from workers import host_limits
from workers.host_limits import HostLimits, descriptors_for


def fit(slots, *, descriptors=None, tasks=None):
    return HostLimits(descriptors=descriptors, tasks=tasks).fit(slots)


@pytest.mark.parametrize(("descriptors", "fits"), [(None, 24), (10**9, 24), (280, 24), (279, 23), (64, 2), (50, 1)])
def test_slots_are_cut_to_what_the_limit_of_open_files_allows_and_that_is_said_with_what_is_needed(
    caplog, descriptors, fits
):
    assert fit(24, descriptors=descriptors) == fits
    if fits == 24:
        assert caplog.records == []
        return
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (record.limit, record.needed, record.wanted, record.slots) == (descriptors, 280, 24, fits)
    assert descriptors_for(24) == 280


@pytest.mark.parametrize("descriptors", [49, 40, 3])
def test_a_limit_for_not_even_one_slot_is_refused_with_the_number_that_it_needs(descriptors):
    with pytest.raises(SettingsError, match=f"limited to {descriptors} here, and a worker with one slot needs 50"):
        fit(4, descriptors=descriptors)


def test_a_limit_of_processes_that_may_not_do_is_said_and_cuts_nothing(caplog):
    assert fit(4, tasks=64) == 4
    assert caplog.records == []
    assert fit(4, tasks=63) == 4
    (record,) = caplog.records
    assert (record.left, record.needed, record.slots) == (63, 64, 4)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A host whose control groups can be written, and whose own limits are far away."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def group(root, path, most, now):
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pids.max").write_text(f"{most}\n")
    (folder / "pids.current").write_text(f"{now}\n")


@pytest.mark.parametrize(
    ("lines", "groups", "left"),
    [
        ("0::/\n", [], None),
        ("0::/a/b\n", [("a/b", "max", 7), ("a", 100, 40)], 60),
        ("0::/a/b\n", [("a/b", 50, 7), ("a", 100, 40)], 43),
        ("9:name=systemd:/x\n8:pids:/a\n0::/\n", [("pids/a", 10, 30)], 0),
        ("0::/../../outside\n", [], None),
    ],
)
def test_what_control_groups_leave_is_the_least_of_all_above(root, lines, groups, left):
    (root / "proc/self/cgroup").write_text(lines)
    for each in groups:
        group(root, *each)
    assert HostLimits.probe(root) == HostLimits(descriptors=None, tasks=left)


def test_the_limits_of_this_process_are_read_as_they_are(monkeypatch, tmp_path):
    limits = {resource.RLIMIT_NOFILE: (10, 64), resource.RLIMIT_NPROC: (300, 400)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    for user, tasks in ((1000, 300), (0, None)):
        monkeypatch.setattr(host_limits.os, "geteuid", lambda user=user: user)
        assert HostLimits.probe(tmp_path) == HostLimits(descriptors=64, tasks=tasks)
