"""What a run gets of what it asks of its container: settings, volumes, networks, limits; and what it may not have."""

import socket
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
    folder=Path("/w"),
    *,
    facts=DOCKER,
    limits=None,
    privileged=False,
    mounts=(),
    local=True,
    sockets=(),
    identity=None,
    **how,
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
            permissions=Permissions(privileged=privileged, mounts=mounts, folder=folder, local=local, sockets=sockets),
            **options,
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
    assert (
        "it has auto_remove in its host_config, which is always its worker's: its exit would be lost" in request.remarks
    )


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
        {"mounts": [{"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {"Options": {"o": "bind"}}}}]},
        {"links": {"db": "x"}},
        {"cpu_rt_runtime": 1000},
        {"network": "container:abc"},
        {"device_requests": [{"Driver": "cdi", "DeviceIDs": ["vendor/x=1"]}]},
        {"device_requests": [{"Driver": "", "Capabilities": [["gpu", "display", "all"]]}]},
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
    with pytest.raises(UnsupportedRun, match=r"which its worker does not allow: .*start the worker with --allow-mount"):
        made(options=options, privileged=True)
    made(options=options, mounts=("/etc", "/"))


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


def test_the_engines_socket_is_refused_whatever_is_allowed(tmp_path):
    other = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(other))
        for source in ("/nosuch/docker.sock", other, tmp_path):
            with pytest.raises(UnsupportedRun, match="is or holds the engine's socket"):
                made(run_volumes=(f"{source}:/x",), mounts=("/",), sockets=(str(other),), privileged=True)
        (tmp_path / "below").mkdir()
        made(run_volumes=(f"{tmp_path}/below:/x",), mounts=("/",), sockets=(str(other),))


@pytest.mark.parametrize(
    "mount",
    [
        {"Type": "bind", "type": None, "Source": "/", "source": None, "Target": "/x"},
        {"Type": "bind", "\u017fource": "/", "Source": "/allowed", "Target": "/x"},
        {"Target": "/x", "VolumeOption\u017f": {"DriverConfig": {"Options": {"o": "bind", "device": "/"}}}},
        {"Target": "/x", "volumeoptions": {}},
        {"Target": "/x", "VolumeOptions": {"driverconfig": {"Options": {"o": "bind"}}}},
        {"Type": "npipe", "Target": "/x"},
        {"Type": "bind", "Source": "/allowed", "Target": "x"},
        {"Type": "volume", "Source": "../x", "Target": "/x"},
    ],
    ids=str,
)
def test_a_mount_is_made_anew_and_whoever_spells_a_part_of_it_in_another_way_is_refused(mount):
    with pytest.raises(UnsupportedRun, match="it has a"):
        made(options={"mounts": [mount]}, mounts=("/allowed",), privileged=True)


def test_a_mount_of_a_folder_shows_the_host_nothing_and_its_volume_is_looked_at_by_name():
    shared = {"Type": "bind", "Source": "/allowed", "Target": "/x", "BindOptions": {"Propagation": "rshared"}}
    with pytest.raises(UnsupportedRun, match="the options of its mount at /x"):
        made(options={"mounts": [shared]}, mounts=("/allowed",))
    request = made(options={"mounts": [{"Source": "data", "Target": "/x"}]})
    assert (request.host["mounts"], request.volumes) == (
        [{"Source": "data", "Target": "/x", "Type": "volume"}],
        {"data": False},
    )


@pytest.mark.parametrize(
    "request_of_devices",
    [
        {"Driver": "", "driver": "cdi", "Capabilities": [["gpu"]], "DeviceIDs": ["vendor/x=1"]},
        {"Capabilities": [["gpu"]], "capabilities": [["all"]]},
        {"Capabilities": [["gpu"]], "\u017fecret": 1},
    ],
    ids=str,
)
def test_a_request_for_gpus_has_no_part_in_two_spellings(request_of_devices):
    with pytest.raises(UnsupportedRun, match="it has a device request"):
        made(options={"device_requests": [request_of_devices]}, privileged=True)


def test_a_request_for_gpus_may_be_spelled_as_the_engine_or_the_sdk_does():
    for asked in (
        {"Count": -1, "Capabilities": [["gpu"]], "Driver": "nvidia"},
        {"count": -1, "capabilities": [["gpu"]], "driver": "nvidia"},
    ):
        assert made(options={"device_requests": [asked]}).host["device_requests"] == [
            {"Count": -1, "Capabilities": [["gpu"]], "Driver": "nvidia"}
        ]


def test_a_file_of_the_host_goes_in_by_its_workers_word_alone(tmp_path):
    authority = tmp_path / "ca.pem"
    authority.touch()
    request = made(files=(str(authority),), env={"PREFECT_API_SSL_CERT_FILE": "/etc/shadow"})
    assert request.host["binds"] == [f"{authority}:{authority}:ro"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mounts": 5}, "a list of tables"),
        ({"mounts": [5]}, "a table of names"),
        ({"volumes": 5}, "must be a list"),
        ({"volumes": ["/a\0:/b"]}, "without a zero byte"),
        ({"binds": ["/a\ud800:/b"]}, "no path can have"),
        ({"binds": [["/:/x"]]}, "a text"),
        ({"nano_cpus": "abc"}, "a whole number"),
        ({"nano_cpus": [1]}, "a whole number"),
        ({"nano_cpus": float("inf")}, "a whole number"),
        ({"nano_cpus": 0.5}, "a whole number"),
        ({"nano_cpus": -1}, "below 0"),
        ({"mem_limit": "9" * 400 + "t"}, "a size"),
        ({"mem_limit": 0.5}, "a size"),
        ({"mem_reservation": [1]}, "a size"),
        ({"shm_size": "x"}, "a size"),
        ({"labels": 5}, "a table of names|a list of texts"),
        ({"environment": 5}, "a list of texts"),
        ({"environment": {"A": ["secret"]}}, "environment={…} in its host_config, which must be a text"),
        ({"extra_hosts": 5}, "a list of texts"),
        ({"network": ["x"]}, "a text"),
        ({"network_mode": {"a": 1}}, "a text"),
        ({"port_bindings": [80]}, "a table"),
        ({"port_bindings": {"80": 8.5}}, "a table"),
        ({"tty": "yes"}, "true or false"),
        ({"stop_signal": "KILL; rm"}, "a signal"),
        ({"networking_config": {}}, "does not know"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_setting_of_another_form_is_told_with_its_name(options, words):
    with pytest.raises(UnsupportedRun, match=words) as told:
        made(options=options, privileged=True)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "given",
    [{"env": {"A=secret": "b"}}, {"env": {"A": "secret\0"}}, {"options": {"environment": {"A=B": "secret"}}}],
    ids=["=", "0", "option"],
)
def test_a_variable_that_no_process_can_have_is_told_and_not_cut_in_two(given):
    with pytest.raises(UnsupportedRun, match=r"its variable A=… has a = in it|its variable A has a character") as told:
        made(**given, privileged=True)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("address", ["http://[::1/api", "http://127.0.0.1:99999/api", "nothing"])
def test_an_address_that_is_none_is_left_as_it_is(address):
    assert made(env={"API": address}, run_networks=("a",)).create["environment"]["API"] == address


def test_a_setting_that_nobody_knows_is_refused():
    with pytest.raises(UnsupportedRun, match="it has 'no_such' in its host_config, which this worker does not know"):
        made(options={"no_such": 1}, privileged=True)


def test_the_operators_own_volumes_need_no_permission():
    request = made(worker_volumes=(parse("/etc:/x:ro", folder=Path("/")),), run_volumes=("data:/y",))
    assert request.host["binds"] == ["/etc:/x:ro", "data:/y:rw"]
    assert request.volumes == {"data": False}
    assert made(run_volumes=("data:/y",), mounts=("data",)).volumes == {"data": True}


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


def test_a_run_has_the_hosts_network_unless_its_worker_has_another_one():
    assert made(network_mode="host").host["network_mode"] == "host"
    for how in ({"networks": ("jail",)}, {"host_network": False}):
        for asked in ({"network_mode": "host"}, {"run_networks": ("host",)}, {"options": {"network": "host"}}):
            with pytest.raises(UnsupportedRun, match="--network or --no-host-network"):
                made(**how, **asked)
        made(**how, network_mode="host", privileged=True)


@pytest.mark.parametrize("name", ["container:db", "ns:/proc/1/ns/net", "slirp4netns:allow_host_loopback=true", "a/b"])
def test_no_network_leads_into_another_container(name):
    for asked in ({"network_mode": name}, {"run_networks": (name,)}, {"options": {"network_mode": name}}):
        with pytest.raises(UnsupportedRun, match="by which it could take its host over"):
            made(**asked)
    assert made(network_mode=name, privileged=True).host["network_mode"] == name


def test_ports_are_left_out_where_the_hosts_network_was_chosen_for_a_run():
    request = made(env={"API": "http://127.0.0.1:4200/api"}, options={"port_bindings": {"80/tcp": 8080}})
    assert "port_bindings" not in request.host
    assert any("port_bindings" in remark for remark in request.remarks)
    assert made(options={"port_bindings": {"80/tcp": ["127.0.0.1", 8080]}}).host["port_bindings"] == {
        "80/tcp": ("127.0.0.1", 8080)
    }


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


@pytest.mark.parametrize(
    ("options", "nano"),
    [
        ({}, 1_500_000_000),
        ({"nano_cpus": 500_000_000}, 500_000_000),
        ({"nano_cpus": 0}, 1_500_000_000),
        ({"cpu_quota": -1}, 1_500_000_000),
        ({"cpu_quota": 50_000}, 500_000_000),
        ({"cpu_quota": 50_000, "cpu_period": 200_000}, 250_000_000),
    ],
)
def test_of_two_limits_of_processors_the_lower_counts(options, nano):
    host = made(limits=RunLimits(stop_grace=1, log_limit=0, cpus=1.5), options=options).host
    assert (host["nano_cpus"], host.get("cpu_quota"), host.get("cpu_period")) == (nano, None, None)


@pytest.mark.parametrize("given", [0, "0", -1, "-1"])
def test_a_limit_of_nothing_lifts_no_limit_of_the_worker(given):
    limits = RunLimits(stop_grace=1, log_limit=0, memory=1 << 20)
    host = made(limits=limits, options={"mem_limit": given, "memswap_limit": given}).host
    assert (host["mem_limit"], host["memswap_limit"]) == (1 << 20, 1 << 20)


def test_a_limit_that_is_none_is_told():
    with pytest.raises(UnsupportedRun, match="it has mem_limit='much' in its host_config, which must be a size"):
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
