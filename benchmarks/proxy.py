"""Proxy: a loopback reverse proxy that counts requests, with one door (port) for each kind of client."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NAMED = re.compile(r"^(/work_pools|/variables/name|/flows/name|/deployments/name)/(?!filter|\{)[^/]+")
_HEAD_LIMIT = 1 << 20


@dataclass(frozen=True, order=True)
class Call:
    """One kind of request: by which door it came, whether a client of ours made it, and what it asked."""

    door: str
    ours: bool
    route: str


def route_of(method: str, target: str, *, websocket: bool) -> str:
    """`POST /flow_runs/{id}/set_state`: names and ids are left out, so that requests can be grouped."""
    path = target.partition("?")[0].removeprefix("/api")
    path = _NAMED.sub(lambda found: f"{found[1]}/{{name}}", _UUID.sub("{id}", path))
    return f"{'WEBSOCKET' if websocket else method} {path}"


class CountingProxy:
    """Listens on one port per door, hands everything to the server, and counts it; runs in a thread of its own."""

    def __init__(self, upstream_port: int, doors: Sequence[str]) -> None:
        self._upstream_port = upstream_port
        self._doors = tuple(doors)
        self._ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._counts: Counter[Call] = Counter()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def start(self) -> CountingProxy:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the proxy did not start within 10 s")
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def api_url(self, door: str) -> str:
        return f"http://127.0.0.1:{self._ports[door]}/api"

    def counts(self) -> Counter[Call]:
        """All requests so far; take one away from a later one to get what came between."""
        with self._lock:
            return Counter(self._counts)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        for server in self._servers:
            server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _listen(self) -> None:
        for door in self._doors:
            server = await asyncio.start_server(self._handler(door), "127.0.0.1", 0, limit=_HEAD_LIMIT)
            self._ports[door] = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    def _handler(self, door: str):
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await self._exchange(door, reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError, ValueError):
                pass  # either side went away in the middle: the other learns it by the close below
            finally:
                writer.close()

        return handle

    async def _exchange(self, door: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection is over."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        first, headers = _parse(head)
        method, target, _ = first.split(" ", 2)
        websocket = headers.get("upgrade", "").lower() == "websocket"
        call = Call(
            door,
            headers.get("user-agent", "").startswith("flowfleet"),
            route_of(method, target, websocket=websocket),
        )
        with self._lock:
            self._counts[call] += 1
        # a new connection for each request: the server closes idle ones, and clients must not meet that through us
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port, limit=_HEAD_LIMIT)
        try:
            up_writer.write(head)
            await _copy_body(reader, up_writer, headers, request=True)
            answer = await up_reader.readuntil(b"\r\n\r\n")
            status_line, answer_headers = _parse(answer)
            status = int(status_line.split(" ", 2)[1])
            writer.write(answer)
            if status == 101:
                await _pipe_both(reader, writer, up_reader, up_writer)
                return False
            if method == "HEAD" or status in (204, 304):
                await writer.drain()
                return True
            framed = await _copy_body(up_reader, writer, answer_headers, request=False)
            return framed and answer_headers.get("connection", "").lower() != "close"
        finally:
            up_writer.close()


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _copy_body(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, headers: dict[str, str], *, request: bool
) -> bool:
    """Pass a body on; False when only the end of the connection ended it."""
    framed = True
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while True:
            line = await source.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            sink.write(line + await source.readexactly(size + 2))
            if size == 0:
                break
    elif "content-length" in headers:
        sink.write(await source.readexactly(int(headers["content-length"])))
    elif not request:
        framed = False
        while piece := await source.read(65536):
            sink.write(piece)
    await sink.drain()
    return framed


async def _pipe_both(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
) -> None:
    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while piece := await source.read(65536):
            sink.write(piece)
            await sink.drain()

    ways = [asyncio.ensure_future(pipe(reader, up_writer)), asyncio.ensure_future(pipe(up_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
