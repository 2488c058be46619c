"""Connecting to a real Prefect 3 server: CSRF, an auth string, a profile, addresses that are none."""

import dataclasses
import uuid
from collections.abc import Iterator

import pytest

from flowfleet.api.client import Mark, StateType
from flowfleet.api.connect import connect
from flowfleet.api.prefect3.client import Prefect3
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.responses import ResponseRefused
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiRejected, ApiUnavailable, KeyRefused
from flowfleet.flow_run import Offer
from flowfleet.settings.common import CommonSettings
from tests.prefect_server import PrefectServer

POOL = Offer(backend="prefect3", pools=("guarded",))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server that wants an auth string and CSRF tokens."""
    settings = {"PREFECT_SERVER_API_AUTH_STRING": "admin:hunter2", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}
    server = PrefectServer(tmp_path_factory.mktemp("guarded"), settings=settings)
    server.start()
    yield server
    server.stop()


def test_with_the_auth_string_of_a_profile_all_doors_open(guarded, tmp_path):
    """As Prefect's own command finds it: nothing but the active profile is set."""
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text(
        f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{guarded.api_url}"\n'
        'PREFECT_API_AUTH_STRING = "admin:hunter2"\n'
    )
    client = connect(CommonSettings(), {}, folder=tmp_path, home=tmp_path)
    assert client.probe().version
    offer = client.presence.resolve(POOL, create=True)
    assert client.backlog.due([offer], within_seconds=1, limit=5) == []
    client.presence.online("guarded", "fleet", 60)
    nobody = "00000000-0000-4000-8000-000000000001"
    assert client.ends.report(nobody, StateType.CRASHED, "x", Mark(fleet="f")).gone


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_it_the_key_is_refused_and_not_shown(guarded, tmp_path, key):
    client = connect(CommonSettings(api=guarded.api_url, key=key), {}, folder=tmp_path, home=tmp_path)
    with pytest.raises(KeyRefused, match="PREFECT_API_AUTH_STRING") as caught:
        client.probe()
    assert "wrong" not in str(caught.value)


def test_user_and_password_in_the_address_do(guarded, tmp_path):
    url = guarded.api_url.replace("http://", "http://admin:hunter2@")
    client = connect(CommonSettings(api=url), {}, folder=tmp_path, home=tmp_path)
    assert client.probe().backend == "prefect3"
    stopped = dataclasses.replace(CommonSettings(), api="http://admin:hunter2@127.0.0.1:9/api")
    with pytest.raises(ApiUnavailable) as caught:
        connect(stopped, {}, folder=tmp_path, home=tmp_path, pause=lambda _: None).probe()
    assert "hunter2" not in str(caught.value)


def test_the_servers_web_page_is_no_api(prefect_server, tmp_path):
    with pytest.raises(ApiRejected, match=f"is no Prefect API: .*, but Prefect 3 is at {prefect_server.api_url}$"):
        connect(CommonSettings(api=prefect_server.ui_url), {}, folder=tmp_path, home=tmp_path)
    client = connect(CommonSettings(api=prefect_server.ui_url, backend="prefect3"), {}, folder=tmp_path, home=tmp_path)
    with pytest.raises(ApiRejected, match=r"is not a Prefect.* API.*usually ends in /api"):
        client.probe()


@pytest.mark.parametrize(
    "path", ["/flow_runs/{id}", "/deployments/{id}", "/flows/{id}", "/variables/name/nothing", "/work_pools/nothing"]
)
def test_what_prefect_itself_does_not_find_is_believed_to_be_gone(prefect_server, path):
    session = Session(Address(url=prefect_server.api_url))
    Prefect3(session).probe()
    with pytest.raises(ResponseRefused) as caught:
        session.get(path.format(id=uuid.uuid4()))
    assert caught.value.status == 404
