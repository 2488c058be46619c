"""Where a run can have a control group of its own: version 1 and 2, containers, systemd, and nowhere."""

import os
from pathlib import Path

import pytest

from workers import host_cgroups

V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A host made of files; a group can be made in each of its folders."""
    monkeypatch.setattr(host_cgroups, "_usable", lambda parent, _files: parent.is_dir())
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def say(root: Path, own: str, mounts: str) -> None:
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text("23 1 254:0 / / rw - ext4 /dev/vda rw\n" + mounts)


def group(root: Path, path: str, *, top: bool = False, on: str = "cpu memory", inside: str = "") -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.subtree_control").write_text(on)
    (folder / "cgroup.procs").write_text(inside)
    if not top:
        (folder / "cgroup.type").write_text("domain\n")
    return folder


def test_version_1_has_it_in_the_workers_own_group_of_the_controller_memory(root):
    say(root, "9:cpu:/a\n4:memory:/system.slice/worker\n0::/\n", V1.format(root="/"))
    own = root / "sys/fs/cgroup/memory/system.slice/worker"
    own.mkdir(parents=True)
    assert host_cgroups.find_parent(root) == own


@pytest.mark.parametrize(("mounted", "path"), [("/docker/abc", "/docker/abc"), ("/", "/docker/of-the-host")])
def test_in_a_container_of_version_1_what_is_mounted_is_the_own_group(root, mounted, path):
    say(root, f"4:memory:{path}\n", V1.format(root=mounted))
    (root / "sys/fs/cgroup/memory").mkdir(parents=True)
    assert host_cgroups.find_parent(root) == root / "sys/fs/cgroup/memory"


def test_version_2_has_it_beside_the_subgroup_of_a_group_that_systemd_has_given_away(root, monkeypatch):
    say(root, "0::/system.slice/w.service/worker\n", V2.format(root="/"))
    group(root, "sys/fs/cgroup/system.slice/w.service/worker")
    parent = group(root, "sys/fs/cgroup/system.slice/w.service", on="")
    assert host_cgroups.find_parent(root) is None, "the service's group is the host's"

    def marks(path: Path, name: str) -> bytes:
        if Path(path) == parent and name == "trusted.delegate":
            return b"1"
        raise OSError

    monkeypatch.setattr(os, "getxattr", marks, raising=False)
    assert host_cgroups.find_parent(root) == parent
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"


def test_the_top_group_of_a_container_is_used_where_nobody_else_is_in_it(root):
    say(root, "0::/\n", V2.format(root="/"))
    top = group(root, "sys/fs/cgroup", inside=f"{os.getppid()}\n{os.getpid()}\n")
    assert host_cgroups.find_parent(root) == top
    assert (top / "flowfleet/cgroup.procs").read_text() in {str(os.getpid()), str(os.getppid())}

    group(root, "sys/fs/cgroup", inside=f"{os.getpid()}\n999999\n")
    assert host_cgroups.find_parent(root) is None


def test_the_top_group_of_the_host_is_left_alone(root):
    say(root, "0::/\n", V2.format(root="/"))
    group(root, "sys/fs/cgroup", top=True, inside=f"{os.getpid()}\n")
    assert host_cgroups.find_parent(root) is None


def test_without_proc_or_without_a_mount_there_is_none(root):
    assert host_cgroups.find_parent(root) is None
    say(root, "4:memory:/\n0::/\n", "")
    assert host_cgroups.find_parent(root) is None


def test_a_folder_that_is_no_place_for_groups_is_none(tmp_path):
    assert not host_cgroups._usable(tmp_path, ("memory.events",))
    assert not host_cgroups._usable(tmp_path / "nowhere", ("memory.events",))


def test_a_hooks_group_is_another_than_its_runs():
    run = Path("/state/runs/RUN.CLAIM")
    assert host_cgroups.group_of(Path("/g"), run) == Path("/g/flowfleet-RUN.CLAIM")
    assert host_cgroups.group_of(Path("/g"), run / "hooks") == Path("/g/flowfleet-RUN.CLAIM.hooks")
