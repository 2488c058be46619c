"""Redis sentinels: a primary, a replica, and three sentinels over them, all of Debian's Redis, on loopback."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.container_engine import install
from tests.valkey import Valkey, free_port
from tests.waiting import SCALE, until

NAME = "the-primary"
PROGRAM = "redis-server"
#: a primary that is silent for so long is given up
DOWN_SECONDS = 1.0


class RedisSentinels:
    """`servers` has two; `address` is that of the fleet."""

    def __init__(self, folder: Path, down_seconds: float = DOWN_SECONDS) -> None:
        self.folder, self.down_seconds = folder, down_seconds
        self.servers = [self._server(name) for name in ("a", "b")]
        self.ports = [free_port() for _ in range(3)]
        self.sentinels: list[subprocess.Popen[bytes]] = []

    def _server(self, name: str) -> Valkey:
        folder = self.folder / name
        folder.mkdir()
        return Valkey(folder, tcp=True, aof=True, program=PROGRAM)

    @classmethod
    @contextlib.contextmanager
    def private(cls, **how: float) -> Iterator[RedisSentinels]:
        """All five, in a short temporary folder, gone at the end."""
        install(("redis-server",))
        made = cls(Path(tempfile.mkdtemp(prefix="ffse")), **how)
        try:
            made.start()
            yield made
        finally:
            made.close()

    @property
    def address(self) -> str:
        """The primary by all three sentinels."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{hosts}/{NAME}/0"

    def start(self) -> None:
        """Start them, and wait until they know each other and the replica has its copy."""
        for server in self.servers:
            server.start()
        first, second = self.servers
        with second.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", first.port)  # type: ignore[no-untyped-call]
        until(lambda: self._replicas(first) == 1, 20, "the replica")
        for number, port in enumerate(self.ports):
            conf = self.folder / f"sentinel-{number}.conf"
            conf.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {self.folder}\nlogfile {self.folder}/sentinel-{number}.log\n"
                f"sentinel monitor {NAME} 127.0.0.1 {first.port} 2\n"
                f"sentinel down-after-milliseconds {NAME} {int(self.down_seconds * SCALE * 1000)}\n"
                f"sentinel failover-timeout {NAME} {int(4000 * SCALE)}\n"
            )
            argv = [PROGRAM, str(conf), "--sentinel"]
            self.sentinels.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        until(self._know_each_other, 30, "the sentinels to know each other")

    def _replicas(self, server: Valkey) -> int:
        with server.client() as client:
            info = client.info("replication")
            return int(info["connected_slaves"]) if info.get("slave0", {}).get("state") == "online" else 0

    def _know_each_other(self) -> bool:
        for port in self.ports:
            try:
                with redis.Redis(port=port, decode_responses=True, socket_timeout=5.0) as client:
                    found = client.sentinel_masters()[NAME]
            except (redis.ConnectionError, redis.TimeoutError, KeyError):
                return False
            if found["num-other-sentinels"] != 2 or found["num-slaves"] != 1:
                return False
        return True

    def primary(self) -> Valkey:
        """The server that the first sentinel names now."""
        with redis.Redis(port=self.ports[0], decode_responses=True, socket_timeout=60.0) as client:
            port = int(client.sentinel_masters()[NAME]["port"])
        return next(server for server in self.servers if server.port == port)

    def wait_other_than(self, server: Valkey) -> Valkey:
        """Wait until another server is the primary, and takes writes."""
        until(lambda: self.primary() is not server, 60, "a failover")
        found = self.primary()

        def writes() -> bool:
            with found.client() as client:
                return str(client.info("replication")["role"]) == "master"

        until(writes, 20, "the new primary to take writes")
        return found

    def wait_copied(self) -> None:
        """Wait until the primary has its replica again."""
        until(lambda: self._replicas(self.primary()) == 1, 60, "the earlier primary to be a replica")

    def close(self) -> None:
        """End all of them, and take their folder away."""
        for sentinel in self.sentinels:
            sentinel.kill()
            sentinel.wait()
        for server in self.servers:
            server.close()
        shutil.rmtree(self.folder, ignore_errors=True)
