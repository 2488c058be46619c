"""Session: whom it trusts, retry, credentials, CSRF, deadlines, clocks, and what errors may show."""

import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowfleet.api.transport import server_clock
from flowfleet.api.transport.address import Address
from flowfleet.api.transport.responses import ResponseRefused
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiMaintenance, ApiRejected, ApiUnavailable, KeyRefused, SettingsError
from tests.lawless_api import LawlessApi
from tests.needs import need
from tests.scripted_graphql import ScriptedGraphQL, page
from tests.waiting import until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, with its key in the same file."""
    need(shutil.which("openssl") is not None, "a self-signed certificate: install openssl")
    folder = tmp_path_factory.mktemp("tls")
    both, key = folder / "both.pem", folder / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(both)], check=True, capture_output=True)
    with both.open("a") as file:
        file.write(key.read_text())
    return both


@pytest.fixture
def secure_api(certificate: Path) -> Iterator[tuple[LawlessApi, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    api = LawlessApi()
    api._server.socket = context.wrap_socket(api._server.socket, server_side=True)
    with api:
        yield api, api.api_url.replace("http://", "https://")


def test_an_unknown_certificate_is_refused_with_the_remedy(secure_api):
    _, url = secure_api
    with pytest.raises(ApiRejected, match=r"certificate .* is not trusted.*--ca-file.*PREFECT_API_SSL_CERT_FILE"):
        Session(Address(url=url), pause=lambda _: None).get("/health")


def test_a_ca_file_makes_it_trusted_even_beside_another_bundle(secure_api, certificate, monkeypatch, tmp_path):
    api, url = secure_api
    other = tmp_path / "bundle.pem"
    other.write_bytes(Path(ssl.get_default_verify_paths().cafile or "/dev/null").read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    assert Session(Address(url=url, ca_file=certificate), pause=lambda _: None).get("/health") is True
    assert api.counted("GET /health") == 1


def test_an_insecure_address_is_not_checked_and_that_is_said(secure_api, caplog):
    _, url = secure_api
    session = Session(Address(url=url, insecure=True), pause=lambda _: None)
    assert session.get("/health") is True
    assert [record.message for record in caplog.records] == ["the certificate of the Prefect API is not checked"]


@pytest.fixture
def api() -> Iterator[LawlessApi]:
    with LawlessApi() as served:
        yield served


def session(api: LawlessApi, pauses: list[float] | None = None, **options) -> Session:
    address = options.pop("address", Address(url=api.api_url))
    noted = [] if pauses is None else pauses
    return Session(address, **{"pause": noted.append, "dice": lambda: 0.5, **options})


@contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """The address of a server that gives every request the same bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/api"
        finally:
            server.shutdown()


@pytest.mark.parametrize("status", [408, 429, 502, 503])
def test_answers_that_mean_later_are_asked_again(api, status):
    api.fail("GET /health", times=2, status=status)
    pauses = []
    assert session(api, pauses).get("/health") is True
    assert len(pauses) == 2
    assert pauses[1] > pauses[0], "the wait grows"


def test_the_next_try_is_said(api, caplog):
    api.fail("GET /health")
    with caplog.at_level(logging.DEBUG, "flowfleet.api.transport.session"):
        session(api).get("/health")
    (record,) = caplog.records
    assert record.request == "GET /health"
    assert record.next_in_seconds > 0


def test_waits_are_spread_by_chance(api):
    pauses: list[float] = []
    for chance in (0.0, 0.5, 0.99):
        api.fail("GET /health")
        session(api, pauses, dice=lambda chance=chance: chance).get("/health")
    assert len(set(pauses)) == len(pauses) == 3


def test_retry_after_is_honoured_in_seconds_and_as_a_date(api):
    pauses: list[float] = []
    api.fail("GET /health", status=429, Retry_After="7")
    session(api, pauses).get("/health")
    assert pauses == [7.0]
    began = time.monotonic()
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    api.fail("GET /health", status=503, Retry_After=at)
    session(api, pauses).get("/health")
    assert 18.9 - (time.monotonic() - began) < pauses[1] <= 20  # the date has whole seconds


def test_a_retry_after_beyond_the_window_is_left_to_the_caller(api):
    api.fail("GET /health", status=429, Retry_After="3600")
    pauses = []
    with pytest.raises(ApiUnavailable, match="429 Too Many Requests") as caught:
        session(api, pauses).get("/health")
    assert pauses == []
    assert caught.value.retry_after_seconds == 3600


def test_tries_are_limited(api):
    api.fail("GET /health", times=-1)
    with pytest.raises(ApiUnavailable, match="503 Service Unavailable"):
        session(api).get("/health")
    assert api.counted("GET /health") == 5


def test_a_refused_connection_is_asked_again_and_then_told():
    pauses: list[float] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = Session(Address(url=f"http://127.0.0.1:{unused.getsockname()[1]}/api"), pause=pauses.append)
        with pytest.raises(ApiUnavailable, match="Connection refused"):
            gone.get("/health")
    assert len(pauses) == 4


def test_a_broken_line_is_asked_again(api):
    api.fail("GET /health", "drop_after")
    assert session(api).get("/health") is True
    assert api.counted("GET /health") == 2


@pytest.mark.parametrize(("drops", "pauses"), [(1, 0), (2, 1), (3, 2)])
def test_a_connection_that_was_used_and_has_ended_is_replaced_once_without_a_pause(api, drops, pauses, caplog):
    waited = []
    client = session(api, waited, clock=lambda: 100.0)  # it stands: a connection that is too old is not used at all
    client.get("/health")
    api.fail("GET /health", "drop_after", times=drops)
    with caplog.at_level(logging.DEBUG, "flowfleet.api.transport.session"):
        assert client.get("/health") is True
    assert len(waited) == len(caplog.records) == pauses
    assert api.counted("GET /health") == 2 + drops


def test_nothing_is_sent_once_more_after_its_time(api):
    now = iter((10.0, 30.0))
    client = session(api, boot_clock=lambda: next(now))
    client.get("/health")
    api.fail("GET /health", "drop_after")
    with pytest.raises(ApiUnavailable, match="read too long ago"):
        client.get("/health", fresh_until=20.0)
    assert api.counted("GET /health") == 2


@contextmanager
def counting_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """The address of a server that keeps connections open, and those that were made to it."""
    made = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            made.append(self.request)
            super().setup()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/api", made
        finally:
            server.shutdown()


def test_a_connection_is_kept_for_three_seconds_and_never_used_after_that():
    now = [100.0]
    with counting_server() as (url, made):
        client = Session(Address(url=url), clock=lambda: now[0])
        for pause, connections in ((0.0, 1), (2.9, 1), (2.9, 1), (3.0, 2), (10.0, 3), (0.0, 3)):
            now[0] += pause
            client.get("/health")
            assert len(made) == connections


def test_silence_is_not_asked_again(api):
    api.fail("GET /health", "mute")
    pauses = []
    with pytest.raises(ApiUnavailable, match=r"no answer within 0\.2 s"):
        session(api, pauses, read_seconds=0.2).get("/health")
    assert pauses == []
    until(lambda: api.counted("GET /health"), 20, "the server to read what it was asked")
    assert api.counted("GET /health") == 1


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_a_kind_of_later(api, status):
    api.fail("GET /health", status=status)
    with pytest.raises(KeyRefused, match="refuses our credentials") as caught:
        session(api).get("/health")
    assert isinstance(caught.value, ApiUnavailable)


def test_a_definite_no_carries_its_status_and_is_not_asked_again(api):
    with pytest.raises(ResponseRefused, match="404 Not Found") as caught:
        session(api).get("/work_pools/nowhere")
    assert caught.value.status == 404
    assert api.counted() == 1


def test_500_is_no_answer_about_anything(api):
    api.fail("GET /health", status=500)
    with pytest.raises(ApiUnavailable, match="500"):
        session(api).get("/health")


def test_credentials_and_headers_go_with_each_request_and_no_netrc_replaces_them(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    with LawlessApi(authorization="Bearer secret") as api:
        right = Address(url=api.api_url, authorization="Bearer secret", headers={"X-Team": "a"})
        assert session(api, address=right).get("/health") is True
        with pytest.raises(KeyRefused):
            session(api).get("/health")
        monkeypatch.setenv("NETRC", str(netrc))
        assert session(api, address=right).get("/health") is True


def test_csrf_tokens_are_fetched_where_the_server_wants_them():
    with LawlessApi(csrf=True) as api:
        client = session(api)
        assert client.post("/flow_runs/count", {}) == 0
        assert client.post("/flow_runs/count", {}) == 0
        assert api.counted("csrf-token") == 1, "one token serves all"


def test_where_csrf_is_off_it_costs_nothing_and_a_403_is_a_refusal(api):
    session(api).post("/flow_runs/count", {})
    assert api.counted() == 1
    api.fail("POST /flow_runs/count", status=403)
    with pytest.raises(KeyRefused):
        session(api).post("/flow_runs/count", {})


def test_secrets_show_in_no_error_and_no_repr(api):
    address = Address(url="http://user:hunter2@127.0.0.1:1/api", authorization="Bearer hunter2")
    assert "hunter2" not in repr(Address(url=api.api_url, authorization="Bearer hunter2", headers={"a": "hunter2"}))
    with pytest.raises(ApiUnavailable) as caught:
        Session(address, pause=[].append).get("/health")
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_a_web_page_is_no_api():
    with ScriptedGraphQL(page()) as door:
        with pytest.raises(ApiRejected, match=r"is not a Prefect API: .* text/html instead of JSON"):
            Session(Address(url=f"{door.url}/api"), pause=[].append).get("/admin/version")
        with pytest.raises(ApiRejected, match="usually ends in /api"):
            Session(Address(url=door.url), pause=[].append).get("/admin/version")


@pytest.mark.parametrize("ahead", [-3600, 0, 7])
def test_the_date_header_tells_a_skewed_clock(ahead, monkeypatch):
    now = datetime(2026, 1, 1, 12, 0, 0, 900_000, tzinfo=UTC)
    monkeypatch.setattr(server_clock, "time", SimpleNamespace(time=now.timestamp))
    at = format_datetime(now + timedelta(seconds=ahead), usegmt=True).encode()
    with raw_server(b"HTTP/1.0 200 OK\r\nDate: %s\r\nContent-Length: 4\r\n\r\ntrue" % at) as url:
        client = Session(Address(url=url), pause=[].append)
        client.get("/health")
    assert client.skew_seconds == pytest.approx(ahead, abs=0.5)
    assert bool(client.skew_seconds) == bool(ahead), "less than the header can tell is no skew"


def test_threads_share_one_session_object(api):
    client = session(api)

    def ask(_number: int) -> list[bool]:
        return [client.get("/health") for _ in range(20)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [[True] * 20] * 8


def keyed(api: LawlessApi, find_again) -> Session:
    """A session with the old key, while the API has a new one."""
    api.authorization = "Bearer new-key"
    return session(api, address=Address(url=api.api_url, authorization="Bearer old-key"), find_again=find_again)


def test_a_refused_key_is_looked_for_again_and_its_successor_is_used_at_once(api):
    asked = keyed(api, lambda: Address(url=api.api_url, authorization="Bearer new-key"))
    assert asked.get("/health") is True
    assert api.counted("/health") == 2
    assert not asked.key_refused


def test_a_refused_key_that_is_still_the_same_is_not_tried_twice(api):
    asked = keyed(api, lambda: Address(url=api.api_url, authorization="Bearer old-key"))
    with pytest.raises(KeyRefused):
        asked.get("/health")
    assert api.counted("/health") == 1
    assert asked.key_refused


def test_a_key_file_that_is_just_being_replaced_ends_nothing(api, caplog):
    def find_again() -> Address:
        raise SettingsError("FLOWFLEET_KEY_FILE names /key, which is empty.")

    asked = keyed(api, find_again)
    with pytest.raises(KeyRefused):
        asked.get("/health")
    assert asked.renew() is False
    assert "credentials could not be read again" in caplog.text


@pytest.mark.parametrize(("status", "announced"), [(503, True), (429, True), (200, False)])
def test_a_maintenance_is_told_at_once_with_the_pause_that_the_api_asks_for(api, status, announced):
    api.fail("GET /health", "json" if status == 200 else "status", status=status, body=True, **MAINTENANCE)
    session = Session(Address(url=api.api_url), pause=lambda _: pytest.fail("whoever asks waits, and not the session"))
    if not announced:
        assert session.get("/health") is True
        return
    with pytest.raises(ApiMaintenance, match="is in maintenance") as raised:
        session.get("/health")
    assert raised.value.retry_after_seconds == 40
    assert session.get("/health") is True


MAINTENANCE = {"Prefect_Maintenance": "true", "Retry_After": "40"}
