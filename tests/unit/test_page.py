"""Page: what is served, to whom, and the sentences about addresses that cannot be."""

import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import requests

from flowfleet.errors import LedgerUnavailable, SettingsError
from flowfleet.monitor.run_output import NoOutput, read_remote
from flowfleet.page.server import PageAnswer, parse_address, serve
from workers import page as worker_page
from workers.state.run_folders import RunFolder


def _away(request):
    raise LedgerUnavailable("Redis does not answer.")


def _broken(request):
    raise RuntimeError("bug")


HANDLERS = {
    "/api/health": lambda request: PageAnswer.json({"ok": True}),
    "/api/poke": lambda request: PageAnswer(body=request.method.encode()),
    "/api/runs/": lambda request: PageAnswer(body=iter([request.path.encode(), request.query.get("q", "").encode()])),
    "/api/away": _away,
    "/api/broken": _broken,
}


@pytest.fixture
def page():
    """Serves on a free port and closes at the end."""
    pages = []

    def start(host="127.0.0.1", token=None):
        pages.append(serve(f"http://{host}:0", lambda: HANDLERS, token if callable(token) else lambda: token))
        return pages[-1].address.replace("0.0.0.0", "127.0.0.1")

    yield start
    for one in pages:
        one.close()


def get(address, path, token=None):
    header = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(f"{address}{path}", headers=header, timeout=60)


def test_paths_prefixes_and_methods_reach_their_handlers(page):
    address = page()
    assert get(address, "/api/health").json() == {"ok": True}
    assert requests.post(f"{address}/api/poke", data="x", timeout=60).text == "POST"
    assert get(address, "/api/runs/a%20b/log?q=1").text == "/api/runs/a b/log1"
    assert requests.head(f"{address}/api/poke", timeout=60).text == ""
    nothing = get(address, "/nothing")
    assert (nothing.status_code, nothing.json()["error"]) == (
        404,
        "There is nothing at /nothing: / lists what there is.",
    )


def test_the_root_lists_what_there_is_at_this_part_and_nothing_else(page, worker_address):
    listed = get(page(), "/")
    assert (listed.status_code, listed.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert [line.split()[0] for line in listed.text.splitlines()] == [
        *("/api/health", "/api/poke", "/api/runs/RUN/log", "/api/away", "/api/broken"),
    ]
    of_worker = get(worker_address, "/").text
    assert "/api/runs/RUN/log  what the run with this id has printed" in of_worker
    assert ("/api/poke" in of_worker, "/metrics" in of_worker) == (False, True)


def test_a_failing_handler_is_an_answer_and_the_page_lives_on(page):
    address = page()
    away = get(address, "/api/away")
    assert (away.status_code, away.json()["error"]) == (503, "Redis does not answer.")
    assert get(address, "/api/broken").status_code == 500
    assert get(address, "/api/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "given", "status"),
    [
        ("/api/health", None, 200),
        ("/api/poke", None, 401),
        ("/nothing", None, 401),
        ("/", None, 401),
        ("/", "page-token", 200),
        ("/api/poke", "other", 401),
        ("/api/poke", "page-token", 200),
    ],
)
def test_off_loopback_all_but_health_asks_for_the_token(page, path, given, status):
    assert get(page("0.0.0.0", "page-token"), path, given).status_code == status


def test_off_loopback_without_a_token_only_health_is_served(page):
    address = page("0.0.0.0")
    assert get(address, "/api/health").status_code == 200
    poke = get(address, "/api/poke")
    assert poke.status_code == 403
    assert "FLOWFLEET_PAGE_TOKEN" in poke.json()["error"]


def test_a_token_that_is_replaced_while_the_page_is_served_holds_at_once(page):
    tokens = ["old-token"]
    address = page("0.0.0.0", lambda: tokens[-1])
    codes = []
    for tokens[-1] in ("old-token", "new-token"):
        codes += [get(address, "/api/poke", given).status_code for given in ("old-token", "new-token")]
    assert codes == [200, 401, 401, 200]


def test_many_ask_at_once(page):
    address = page()
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: get(address, "/api/health"), range(20)))
    assert [answer.status_code for answer in answers] == [200] * 20


def test_a_closed_page_has_given_its_port_back():
    def given_back():
        page = serve("127.0.0.1:0", lambda: HANDLERS, lambda: None)
        port = parse_address(page.address)[1]
        page.close()
        try:
            serve(f"127.0.0.1:{port}", lambda: HANDLERS, lambda: None).close()
        except SettingsError:
            return False
        return True

    # one of three: whatever else runs on this machine may have been given that very port meanwhile
    assert any(given_back() for _ in range(3))


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} is in use") as caught:
            serve(f"http://127.0.0.1:{port}", lambda: HANDLERS, lambda: None)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("http://127.0.0.1", "no port"),
        ("127.0.0.1", "no port"),
        ("https://127.0.0.1:80", "only http"),
        ("http://127.0.0.1:banana", "banana"),
        ("http://127.0.0.1:99999", "99999"),
    ],
)
def test_an_address_that_is_none_is_one_sentence_with_the_remedy(address, word):
    with pytest.raises(SettingsError, match="http://HOST:PORT") as caught:
        parse_address(address)
    assert word in str(caught.value)


def test_an_address_without_a_host_is_all_of_them_as_at_prefect_1s_agents():
    assert parse_address("http://:8080") == ("0.0.0.0", 8080)


def test_ipv6_loopback_is_served():
    try:
        page = serve("http://[::1]:0", lambda: HANDLERS, lambda: None)
    except SettingsError:
        pytest.skip("this machine has no IPv6")
    try:
        assert requests.get(f"{page.address}/api/health", timeout=60).status_code == 200
    finally:
        page.close()


RUN = "0a1b2c3d-1111-4111-8111-111111111111"


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / f"{RUN}.claim"
    folder.mkdir()
    return folder


@pytest.fixture
def worker_address(run_folder):
    """A worker that has the output of one run."""
    vitals = SimpleNamespace(folders_of=lambda run_id: [RunFolder(run_folder)] if run_id == RUN else [])
    page = serve("127.0.0.1:0", lambda: worker_page.handlers(vitals), None)
    yield page.address
    page.close()


def test_a_worker_serves_all_of_a_runs_output(run_folder, worker_address):
    (run_folder / "log").write_bytes(b"a line\n" * 400_000)  # 2.8 MB
    pieces = read_remote(worker_address, RUN, follow=False, token=None)
    assert b"".join(pieces) == b"a line\n" * 400_000
    with pytest.raises(NoOutput, match="404"):
        next(read_remote(worker_address, RUN.replace("0a", "0b"), follow=False, token=None))


def test_a_runs_output_is_followed_on_another_host_until_the_run_has_ended(run_folder, worker_address):
    log = run_folder / "log"
    log.write_bytes(b"first\n")
    pieces = read_remote(worker_address, RUN, follow=True, token=None)
    assert next(pieces) == b"first\n"
    with log.open("ab") as file:
        file.write(b"second\n")
    assert next(pieces) == b"second\n"
    with log.open("ab") as file:
        file.write(b"third\n")
    (run_folder / "exit.json").write_text('{"v": 1}')
    assert b"".join(pieces) == b"third\n"
