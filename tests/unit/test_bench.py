"""Bench: its proxy loses and alters nothing while it counts, and its bars are judged as written."""

import math
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from benchmarks import report
from benchmarks.parts import extremes, requests_of, spread
from benchmarks.proxy import Call, CountingProxy, route_of

RUN = "6a204bd8-0b65-43bd-a22b-6e4d7cd4fa37"


class Upstream(BaseHTTPRequestHandler):
    """Echoes bodies, answers in chunks, refuses politely, and changes protocol."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Upgrade") == "websocket":
            self.send_response(101)
            self.end_headers()
            self.connection.sendall(b"said: " + self.connection.recv(100))
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (b"one, ", b"two"):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_DELETE(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def proxy() -> Iterator[CountingProxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy = CountingProxy(server.server_address[1], ["fleet-executor", "fleet-engine"]).start()
    yield proxy
    proxy.stop()
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_bodies_pass_the_proxy_unchanged_on_one_kept_connection(proxy: CountingProxy):
    big = b"x" * 300_000
    with requests.Session() as session:
        session.trust_env = False
        url = proxy.api_url("fleet-executor")
        answers = [
            session.post(f"{url}/logs/", data=big, timeout=10),
            session.get(f"{url}/work_pools/mine", timeout=10),
            session.delete(f"{url}/flow_runs/{RUN}", timeout=10),
            session.post(f"{url}/logs/", data=b"", timeout=10),
        ]

    assert [answer.status_code for answer in answers] == [201, 200, 204, 201]
    assert [answer.content for answer in answers] == [big, b"one, two", b"", b""]
    assert {call.route: number for call, number in proxy.counts().items()} == {
        "POST /logs/": 2,
        "GET /work_pools/{name}": 1,
        "DELETE /flow_runs/{id}": 1,
    }


def test_a_websocket_is_counted_once_and_passed_both_ways(proxy: CountingProxy):
    port = int(proxy.api_url("fleet-engine").split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /api/events/in HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 101")
        client.sendall(b"hello")
        said = b""
        while b"hello" not in said:
            said += client.recv(100)
    assert said.endswith(b"said: hello")
    assert proxy.counts() == {Call("fleet-engine", False, "WEBSOCKET /events/in"): 1}


@pytest.mark.parametrize(
    ("method", "target", "route"),
    [
        ("POST", "/api/work_pools/mine/get_scheduled_flow_runs", "POST /work_pools/{name}/get_scheduled_flow_runs"),
        ("POST", "/api/work_pools/filter", "POST /work_pools/filter"),
        ("GET", f"/api/flow_run_states/?flow_run_id={RUN}", "GET /flow_run_states/"),
        ("PATCH", f"/api/flow_runs/{RUN}/labels", "PATCH /flow_runs/{id}/labels"),
    ],
)
def test_requests_are_grouped_by_what_they_ask_not_of_whom(method: str, target: str, route: str):
    assert route_of(method, target, websocket=False) == route


def test_children_are_told_from_their_executor_by_door_or_by_client():
    counts = Counter(
        {
            Call("fleet-executor", True, "POST /a"): 3,
            Call("fleet-executor", False, "POST /a"): 5,
            Call("fleet-engine", False, "POST /a"): 7,
            Call("stock-executor", False, "POST /a"): 11,
            Call("stock-engine", False, "POST /a"): 13,
        }
    )
    assert requests_of("fleet", counts) == ({"POST /a": 3}, 12)
    assert requests_of("stock", counts) == ({"POST /a": 11}, 13)


@pytest.mark.parametrize(
    ("rounds", "merged"),
    [
        ([{"n": 1, "routes": {"a": 2}}, {"n": 3, "routes": {}}, {"n": 2, "routes": {}}], {"n": 2, "routes": {"a": 0}}),
        ([{"runs": 40, "completed": done} for done in (40, 40, 12)], {"runs": 40, "completed": 12}),
    ],
    ids=["a route that a round did not use counts as nothing there", "lost runs are not hidden by other rounds"],
)
def test_of_several_rounds_the_middle_counts(rounds, merged):
    assert report.merge(rounds) == merged


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_unknown_in_one_round_is_unknown_wherever_it_stands_and_misses_both_bars(place: int):
    values = [0.1, 0.2, 0.3]
    values[place] = math.nan
    assert math.isnan(report.merge([{"n": value} for value in values])["n"])

    # a run scheduled ahead that never started
    found = report.bars({"ahead": {"fleet": extremes(values)}})
    assert [(bar.name, bar.ok) for bar in found] == [
        ("ahead: earliest start, s", False),
        ("ahead: latest start, s", False),
    ]
    assert extremes([0.2, -0.1, 0.3]) == {"earliest": -0.1, "latest": 0.3}


def every_part(**sides: float) -> report.Results:
    """Results of all parts in which every number of a side is the same."""

    def runs(n: float) -> dict[str, object]:
        spans = ("scheduled_to_pending", "pending_to_running", "scheduled_to_running")
        requests = {"own_requests_per_run": n, "child_requests_per_run": n}
        route = "POST /work_pools/{name}/queues/{name}/with/a/path/that/does/not/end"
        return {"runs": 40, "completed": 40, **requests, "routes": {route: n}, **{span: spread([n]) for span in spans}}

    def memory(side: str, n: float) -> dict[str, object]:
        parts = ("stock",) if side == "stock" else ("poller", "worker")
        beside = {"number": 4, "pss": n, "pss_per_run": n}
        return {"runs": 4, **{part: {"rss": n, "pss": n} for part in parts}, "shims": beside, "helpers": beside}

    def idle(n: float) -> dict[int, object]:
        return {workers: {"requests_per_minute": n, "routes": {"GET /a": n}} for workers in (1, 4)}

    late = [0.5] * 9 + [math.nan]
    return {
        "burst": {side: {**runs(n), "runs_per_minute": n, "cpu_seconds_per_run": n} for side, n in sides.items()},
        "single": {side: runs(n) for side, n in sides.items()},
        "ahead": {side: {"lateness": late, **extremes(late)} for side in sides},
        "idle": {side: idle(n) for side, n in sides.items()},
        "memory": {side: memory(side, n) for side, n in sides.items()},
    }


def test_every_table_has_ratios_to_stock_and_fits_a_terminal():
    results = every_part(stock=20.0, fleet=5.0)
    printed = [*report.lines(results), *report.bar_lines(report.bars(results))]
    rows = {line[2:36].strip(): line[37:].split() for line in printed}
    assert max(len(line) for line in printed) <= 80
    alike = ["20.00", "5.00", "0.25"]
    for name in (
        "runs per minute",
        "CPU-seconds per run",
        "Scheduled→Pending, p95, s",
        "Pending→Running, p95, s",
        "1 worker",
        "4 workers",
        "worker, RSS",
        "above each engine, PSS per run",
    ):
        assert rows[name] == alike, name
    # requests of a run are the executor's and its children's
    assert rows["API requests per run, all"] == ["40.00", "10.00", "0.25"]
    assert rows["poller, RSS"] == ["-", "5.00", "-"]
    assert rows["poller and worker, RSS"] == ["20.00", "10.00", "0.50"]
    assert rows["of them beside the engine"] == ["35.00", "5.00", "0.14"]
    assert "    20.00      5.00    0.25  GET /a" in printed
    assert sum("never" in line for line in printed) == 2

    alone = report.lines(every_part(fleet=5.0))
    assert any(line.split() == ["runs", "per", "minute", "-", "5.00", "-"] for line in alone)


def test_bars_are_missed_on_the_wrong_side_of_their_number_only():
    latency = {"scheduled_to_pending": spread([1]), "pending_to_running": spread([1])}
    stock = {"runs": 2, "completed": 2, "runs_per_minute": 10.0, "own_requests_per_run": 12.0, "routes": {}}
    fleet = {"runs": 2, "completed": 2, "runs_per_minute": 13.0, "own_requests_per_run": 7.01, "routes": {}}
    one = {"scheduled_to_running": spread([8.0]), "own_requests_per_run": 10.0, "runs": 7, "completed": 6, **latency}
    single = {"stock": {"scheduled_to_running": spread([10.0]), **latency}, "fleet": one}
    ahead = {"fleet": {"earliest": -0.61, "latest": 1.0}}
    found = report.bars({"burst": {"stock": stock, "fleet": fleet}, "single": single, "ahead": ahead})
    assert [(bar.name, bar.ok) for bar in found] == [
        ("burst: runs/min to stock", True),
        ("burst: runs completed", True),
        ("burst: own requests per run", False),
        ("single: Scheduled→Running to stock", True),
        ("single: runs completed", False),
        ("single: own requests per run", True),
        ("ahead: earliest start, s", False),
        ("ahead: latest start, s", True),
    ]
