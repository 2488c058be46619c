"""Images from real registries: pulled once, by policies in order, with passwords, and told by the registry's words."""

import itertools
import json
import re
import threading

import pytest

from flowfleet.errors import NotReady, StartFailed
from tests.container_engine import BUSYBOX
from tests.container_registry import PASSWORD, USER, Registry
from tests.tcp_bridge import TcpBridge
from tests.waiting import until
from workers.containers import images
from workers.containers.images import NEVER


@pytest.fixture(scope="module")
def registry():
    with Registry.private() as made:
        yield made


@pytest.fixture(scope="module")
def guarded_registry():
    with Registry.private(password=True) as made:
        yield made


def pushed(deploying, client, registry, name, *, auth=None, image=None):
    """An image that is in the registry, and not on this host."""
    deploying.engine.trust(registry.address)
    text = f"{registry.address}/{name}"
    repository, _, tag = text.rpartition(":")
    client.api.tag(image or deploying.busybox, repository, tag)
    for event in client.api.push(repository, tag, stream=True, decode=True, auth_config=auth):
        assert "error" not in event, event
    client.api.remove_image(text)
    return text


def is_here(client, text):
    return any(text in (image.tags or ()) for image in client.images.list())


def bring(deployer, text, *, policy=None, credentials=None, wanted=lambda: True):
    deployer.images.bring(text, policy=policy, credentials=credentials, wanted=wanted)


def test_an_image_that_is_not_here_is_pulled(deploying, client, registry):
    text = pushed(deploying, client, registry, "once:1")
    bring(deploying.deployer(), text)
    assert is_here(client, text)
    end, log = deploying.run("echo", "from there", image=text)
    assert (end.code, log) == (0, "from there\n")


def test_several_runs_that_want_one_image_pull_it_once(deploying, client, registry, caplog):
    caplog.set_level("INFO")
    text = pushed(deploying, client, registry, "shared:1")
    deployer = deploying.deployer()
    threads = [threading.Thread(target=bring, args=(deployer, text)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_here(client, text)
    assert sum(record.getMessage() == "image is pulled" for record in caplog.records) == 1


def test_a_registry_that_is_dead_stops_no_run_whose_image_is_here(deploying, client, registry):
    text = pushed(deploying, client, registry, "kept:1")
    deployer = deploying.deployer()
    bring(deployer, text)
    registry.stop()
    try:
        bring(deployer, text)
        with pytest.raises(StartFailed, match="connection refused"):
            bring(deployer, text, policy="always")
        # an old image is never taken in place of a new one, unless somebody says so
        listed = deploying.deployer(images={"policies": ("always", "if-not-present")})
        bring(listed, text)
    finally:
        registry.start()


def test_never_means_never(deploying, client, registry):
    text = pushed(deploying, client, registry, "never:1")
    deployer = deploying.deployer(images={"policies": (NEVER,)})
    with pytest.raises(StartFailed, match="it is not on this host, and its pull policy is never"):
        bring(deployer, text, policy="always")


def test_what_is_in_no_registry_is_told_in_its_words(deploying, registry):
    with pytest.raises(StartFailed, match="manifest unknown"):
        bring(deploying.deployer(), f"{registry.address}/nosuch:1")


def test_an_image_is_checked_before_anybody_is_asked(deploying, registry):
    deployer = deploying.deployer(images={"allowed": ("ghcr.io/us/*",), "policies": (NEVER,)})
    with pytest.raises(StartFailed, match="is not allowed on this worker, whose --allow-image has"):
        bring(deployer, BUSYBOX)


def test_a_password_is_that_of_the_runs_block_or_of_the_docker_configuration(
    deploying, client, guarded_registry, tmp_path, monkeypatch
):
    auth = {"username": USER, "password": PASSWORD}
    text = pushed(deploying, client, guarded_registry, "secret:1", auth=auth)
    deployer = deploying.deployer()
    with pytest.raises(StartFailed, match=r"no basic auth credentials|authentication required"):
        bring(deployer, text)
    with pytest.raises(StartFailed, match="unauthorized") as failed:
        bring(deployer, text, credentials={**auth, "password": "pw-that-is-wrong"})
    assert "pw-that-is-wrong" not in str(failed.value)
    bring(deployer, text, credentials=auth)

    client.api.remove_image(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    known = {"auths": {guarded_registry.address: {"auth": "YW5uOnB3LW9mLWFubg=="}}}
    (tmp_path / "config.json").write_text(json.dumps(known))
    bring(deploying.deployer(), text)
    assert is_here(client, text)


def test_a_credential_helper_is_asked(deploying, client, guarded_registry, tmp_path, monkeypatch):
    text = pushed(deploying, client, guarded_registry, "helped:1", auth={"username": USER, "password": PASSWORD})
    helper = tmp_path / "docker-credential-ours"
    helper.write_text(f'#!/bin/sh\nread server\necho \'{{"Username": "{USER}", "Secret": "{PASSWORD}"}}\'\n')
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {guarded_registry.address: "ours"}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    bring(deploying.deployer(), text)
    assert is_here(client, text)


def test_a_pull_that_takes_too_long_goes_on_without_its_run(deploying, client, registry):
    text = pushed(deploying, client, registry, "slow:1")
    deployer = deploying.deployer(images={"wait_seconds": 1.0})
    registry.freeze()
    try:
        with pytest.raises(NotReady, match="is still being pulled after 1 s"):
            bring(deployer, text)
    finally:
        registry.thaw()
    until(lambda: is_here(client, text), 30, "the pull to go on")


def test_a_run_that_is_not_wanted_any_more_waits_for_no_pull(deploying, client, registry):
    text = pushed(deploying, client, registry, "unwanted:1")
    registry.freeze()
    try:
        with pytest.raises(NotReady, match="not wanted"):
            bring(deploying.deployer(), text, wanted=lambda: False)
    finally:
        registry.thaw()
    until(lambda: is_here(client, text), 30, "the pull to go on")


def test_a_slow_pull_is_told_in_a_few_lines(deploying, client, registry, caplog, monkeypatch):
    assert images.SAY_SECONDS == 5
    monkeypatch.setattr(images, "SAY_SECONDS", 1.0)
    caplog.set_level("INFO")
    kept = deploying.engine.image_of("heavy:1", (), ballast=12 << 20)
    slow = TcpBridge(("127.0.0.1", registry.port))
    try:
        text = pushed(deploying, client, registry, "heavy:1", image=kept)
        # by its id: else Podman would keep another name of it, and so its layer
        client.api.remove_image(client.api.inspect_image(kept)["Id"], force=True)
        deploying.engine.trust(f"127.0.0.1:{slow.port}")
        slow.late_answers = 0.02  # for each 64 KiB, so that it takes four seconds
        bring(deploying.deployer(), text.replace(registry.address, f"127.0.0.1:{slow.port}"))
    finally:
        slow.close()
    said = [record for record in caplog.records if record.getMessage() == "image is still being pulled"]
    assert len(said) >= 2
    assert all(later.created - earlier.created >= 0.9 for earlier, later in itertools.pairwise(said))
    assert re.fullmatch(r"\d of [12] layers, [1-9]\d* of 1[34] MiB", said[-1].progress)
