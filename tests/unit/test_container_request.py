"""What a run gets of what it asks of its container: settings, volumes, networks, limits; and what it may not have."""

from pathlib import Path

import pytest

from flowfleet.api.container_ask import ContainerAsk
from flowfleet.errors import UnsupportedRun
from workers.containers.allowed import Permissions
from workers.containers.engine import EngineFacts
from workers.containers.image_names import ImageName, is_allowed
from workers.containers.request import ContainerOptions, Identity, container_name, create_request
from workers.containers.volumes import Volume, check, parse
from workers.deployment import RunLimits

DOCKER = EngineFacts(product="docker", version="20.10.24", api="1.41", cgroups=1, rootless=False, has_init=True)
PODMAN = EngineFacts(product="podman", version="4.3.1", api="1.41", cgroups=2, rootless=True, has_init=False)
RUN = "11111111-1111-4111-8111-111111111111"


def made(
    folder=Path("/w"), *, facts=DOCKER, limits=None, privileged=False, mounts=(), local=True, identity=None, **how
):
    options = {name: how.pop(name) for name in ("volumes", "networks", "user", "host_network") if name in how}
    if "worker_volumes" in how:
        options["volumes"] = how.pop("worker_volumes")
    if "run_volumes" in how:
        how["volumes"] = how.pop("run_volumes")
    if "run_networks" in how:
        how["networks"] = how.pop("run_networks")
    ask = ContainerAsk(
        **{
            "image": "i:1",
            "command": ("c",),
            "env": {},
            "api_variables": ("API",),
            "name": "n",
            "options_name": "host_config",
            **how,
        }
    )
    return create_request(
        ask,
        identity or Identity(fleet="f", host="h", worker="w@h", run_id=RUN, claim="c"),
        limits or RunLimits(stop_grace=1, log_limit=0),
        ContainerOptions(
            permissions=Permissions(privileged=privileged, mounts=mounts, folder=folder, local=local), **options
        ),
        facts,
    )


# -- what is always ours


def test_a_container_is_never_started_again_and_never_takes_its_exit_away_with_it():
    request = made(options={"auto_remove": True, "restart_policy": {"Name": "always"}, "name": "x", "mem_limit": "1g"})
    assert request.host["auto_remove"] is False
    assert request.host["restart_policy"] == {"Name": "no"}
    assert request.host["mem_limit"] == 1 << 30
    assert request.name == "n"
    assert len(request.remarks) == 3
    assert "its host_config has auto_remove, which is always its worker's: its exit would be lost" in request.remarks


def test_our_labels_win_over_those_of_a_run():
    request = made(labels={"io.flowfleet.fleet": "another", "mine": "1"}, options={"labels": {"too": "2"}})
    labels = request.create["labels"]
    assert (labels["io.flowfleet.fleet"], labels["mine"], labels["too"]) == ("f", "1", "2")
    assert (labels["io.flowfleet.run"], labels["io.flowfleet.claim"]) == (RUN, "c")


@pytest.mark.parametrize(
    ("wanted", "name"),
    [("angry bird/1", "angry-bird-1"), ("__x", "x"), ("--", RUN), ("é" * 3, RUN), ("a" * 300, "a" * 250)],
)
def test_a_name_is_made_as_the_reference_makes_it(wanted, name):
    assert container_name(wanted, RUN) == name


def test_its_engine_keeps_two_bounded_files_of_its_output():
    config = made(limits=RunLimits(stop_grace=1, log_limit=50 << 20)).host["log_config"]
    assert (config["Type"], config["Config"]) == ("json-file", {"max-size": str(25 << 20), "max-file": "2"})


# -- what could take the host over


@pytest.mark.parametrize(
    "options",
    [
        {"privileged": True},
        {"cap_add": ["SYS_ADMIN"]},
        {"devices": ["/dev/sda:/dev/sda"]},
        {"device_cgroup_rules": ["b 8:* rwm"]},
        {"security_opt": ["seccomp=unconfined"]},
        {"pid_mode": "host"},
        {"ipc_mode": "host"},
        {"uts_mode": "host"},
        {"userns_mode": "host"},
        {"cgroupns": "host"},
        {"network_mode": "container:abc"},
        {"pid_mode": "container:abc"},
        {"ipc_mode": "container:abc"},
        {"network_mode": "ns:/proc/1/ns/net"},
        {"cgroup_parent": "/"},
        {"runtime": "runc"},
        {"sysctls": {"net.core.somaxconn": 1}},
        {"volumes_from": ["other"]},
        {"volume_driver": "local"},
        {"oom_kill_disable": True},
        {"init_path": "/x"},
        {"mounts": [{"type": "volume", "target": "/x", "VolumeOptions": {"DriverConfig": {"Options": {"o": "bind"}}}}]},
    ],
    ids=lambda options: "=".join(map(str, next(iter(options.items()))))[:40],
)
def test_what_could_take_its_host_over_is_refused_unless_the_operator_allows_it(options):
    with pytest.raises(UnsupportedRun, match=r"by which it could take its host over.*--allow-privileged"):
        made(options=options)
    made(options=options, privileged=True)


@pytest.mark.parametrize(
    "options",
    [
        {"binds": ["/:/host"]},
        {"volumes": {"/etc": {"bind": "/x", "mode": "ro"}}},
        {"volumes": ["/etc:/x"]},
        {"mounts": [{"Type": "bind", "Source": "/etc", "Target": "/x"}]},
    ],
    ids=str,
)
def test_a_folder_of_the_host_is_refused_unless_it_lies_in_one_that_is_allowed(options):
    with pytest.raises(UnsupportedRun, match=r"which its worker does not allow: start the worker with --allow-mount"):
        made(options=options, privileged=True)
    made(options=options, mounts=("/",))


def test_a_link_leads_nowhere_that_is_not_allowed(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to("/etc")
    with pytest.raises(UnsupportedRun, match=r"\(which leads to /etc\)"):
        made(run_volumes=(f"{allowed}/link:/x",), mounts=(str(allowed),))
    with pytest.raises(UnsupportedRun, match="does not allow"):
        made(run_volumes=(f"{allowed}/../other:/x",), mounts=(str(allowed),))
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    request = made(run_volumes=(f"{tmp_path}/alias:/x",), mounts=(f"{tmp_path}/alias",))
    assert request.host["binds"] == [f"{tmp_path}/real:/x:rw"]


def test_the_engines_socket_is_refused_whatever_is_allowed():
    with pytest.raises(UnsupportedRun, match="the engine's socket"):
        made(run_volumes=("/nosuch/docker.sock:/x",), mounts=("/",), privileged=True)


def test_a_setting_that_nobody_knows_is_refused():
    with pytest.raises(UnsupportedRun, match="its host_config has 'no_such', which this worker does not know"):
        made(options={"no_such": 1}, privileged=True)


def test_the_operators_own_volumes_need_no_permission():
    request = made(worker_volumes=(parse("/etc:/x:ro", folder=Path("/")),), run_volumes=("data:/y",))
    assert request.host["binds"] == ["/etc:/x:ro", "data:/y:rw"]
    assert request.volumes == ["data"]


# -- volumes


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/x", Volume(source=None, target="/x")),
        ("/a:/b", Volume(source="/a", target="/b")),
        ("/a/../c:/b/:ro", Volume(source="/c", target="/b", mode="ro")),
        ("./a:/b", Volume(source="/w/a", target="/b")),
        ("~/a:/b", Volume(source="/home/me/a", target="/b")),
        ("data:/b:rw", Volume(source="data", target="/b")),
    ],
)
def test_a_volume_is_read_as_the_reference_reads_it(text, volume):
    assert parse(text, folder=Path("/w"), home=lambda path: path.replace("~", "/home/me")) == volume


@pytest.mark.parametrize("text", ["", "a:b:c:d", "/a:b", "/a:/b:xx", "da ta:/b", "data:/b:ro", "/a:", "~nobody/x:/b"])
def test_a_volume_that_is_none_is_told_with_its_text(text):
    with pytest.raises(UnsupportedRun, match="the volume"):
        parse(text, folder=Path("/w"), home=lambda path: path)


def test_where_folders_of_the_engine_are_not_seen_they_are_compared_as_they_are_written():
    volume = parse("/a/b:/x", folder=Path("/"))
    assert check(volume, ("/a",), local=False) == volume
    with pytest.raises(UnsupportedRun):
        check(volume, ("/b",), local=False)


# -- networks


def test_an_api_on_the_loopback_interface_is_reached_over_the_hosts_network():
    request = made(env={"API": "http://127.0.0.1:4200/api"})
    assert request.host["network_mode"] == "host"
    assert request.create["environment"]["API"] == "http://127.0.0.1:4200/api"


@pytest.mark.parametrize(
    ("facts", "name", "extra"),
    [
        (DOCKER, "host.docker.internal", {"host.docker.internal": "host-gateway"}),
        (PODMAN, "host.containers.internal", None),
    ],
)
def test_with_a_network_it_is_reached_over_the_gateway_of_the_host(facts, name, extra):
    for how in ({"run_networks": ("mine",)}, {"host_network": False}, {"network_mode": "bridge"}):
        request = made(env={"API": "http://u:p@localhost:4200/api"}, facts=facts, **how)
        assert request.create["environment"]["API"] == f"http://u:p@{name}:4200/api"
        assert request.host.get("extra_hosts") == extra


def test_of_several_networks_the_first_is_that_of_its_creation():
    request = made(networks=("a",), run_networks=("b", "a", "c"))
    assert (request.network, request.connect, request.host["network_mode"]) == ("a", ["b", "c"], "a")
    request = made(networks=("host",), run_networks=())
    assert (request.network, request.connect, request.host["network_mode"]) == (None, (), "host")


def test_an_api_elsewhere_is_left_as_it_is():
    request = made(env={"API": "http://prefect.example:4200/api"})
    assert request.create["environment"]["API"] == "http://prefect.example:4200/api"
    assert "network_mode" not in request.host


# -- limits


@pytest.mark.parametrize(
    ("worker", "run", "memory", "swap"),
    [
        (None, {}, None, None),
        (1 << 30, {}, 1 << 30, 1 << 30),
        (None, {"mem_limit": "512m"}, 512 << 20, 512 << 20),
        (None, {"mem_limit": "512m", "memswap_limit": "1g"}, 512 << 20, 1 << 30),
        (1 << 30, {"mem_limit": "2g", "memswap_limit": "4g"}, 1 << 30, 1 << 30),
        (1 << 30, {"mem_limit": "512m", "memswap_limit": -1}, 512 << 20, 512 << 20),
    ],
)
def test_of_two_limits_of_memory_the_lower_counts_and_swap_is_no_way_round(worker, run, memory, swap):
    host = made(limits=RunLimits(stop_grace=1, log_limit=0, memory=worker), options=run).host
    assert (host.get("mem_limit"), host.get("memswap_limit")) == (memory, swap)


def test_of_two_limits_of_processors_the_lower_counts():
    limits = RunLimits(stop_grace=1, log_limit=0, cpus=1.5)
    assert made(limits=limits).host["nano_cpus"] == 1_500_000_000
    assert made(limits=limits, options={"nano_cpus": 500_000_000}).host["nano_cpus"] == 500_000_000


def test_a_limit_that_is_none_is_told():
    with pytest.raises(UnsupportedRun, match="the limit mem_limit cannot be 'much'"):
        made(options={"mem_limit": "much"})


# -- images


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest", "moves"),
    [
        ("busybox", "docker.io", "busybox", None, None, True),
        ("busybox:latest", "docker.io", "busybox", "latest", None, True),
        ("a/b:1", "docker.io", "a/b", "1", None, False),
        ("localhost/a", "localhost", "a", None, None, True),
        ("r.example:5000/a/b:v", "r.example:5000", "a/b", "v", None, False),
        ("ghcr.io/a@sha256:12", "ghcr.io", "a", None, "sha256:12", False),
    ],
)
def test_the_parts_of_an_images_name(text, registry, repository, tag, digest, moves):
    name = ImageName.parse(text)
    assert (name.registry, name.repository, name.tag, name.digest) == (registry, repository, tag, digest)
    assert name.moves is moves
    assert name.to_pull == (text if tag or digest else f"{text}:latest")


@pytest.mark.parametrize("text", ["", "-x", "a b", "a\n", "a;b", "x" * 600, "a?b", "../a"])
def test_a_name_that_no_image_can_have_is_told(text):
    with pytest.raises(UnsupportedRun, match="the image name"):
        ImageName.parse(text)


@pytest.mark.parametrize(
    ("image", "pattern", "allowed"),
    [
        ("busybox", "busybox", True),
        ("busybox:1", "busybox", True),
        ("docker.io/library/busybox:1", "busybox", True),
        ("busybox", "docker.io/library/*", True),
        ("evil/busybox", "busybox", False),
        ("ghcr.io/us/a:1", "ghcr.io/us/*", True),
        ("ghcr.io/them/a:1", "ghcr.io/us/*", False),
        ("ghcr.io/a:1", "ghcr.io", True),
        ("ghcr.io.evil.example/a:1", "ghcr.io", False),
        ("a:1", "docker.io", True),
        ("r.example:5000/a", "r.example:5000", True),
        ("ghcr.io/us/a:2", "ghcr.io/us/a:1", False),
        ("ghcr.io/us/a@sha256:12", "ghcr.io/us/a", True),
        ("ghcr.io/us/a", "ghcr.io/us/a:latest", True),
    ],
)
def test_a_pattern_means_an_image_however_that_is_written(image, pattern, allowed):
    assert is_allowed(ImageName.parse(image), (pattern,)) is allowed
    assert is_allowed(ImageName.parse(image), ())
