"""PrefectServer: a real Prefect 3 server on loopback, with a home, a SQLite file and a log of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests import processes
from tests.valkey import free_port
from tests.waiting import until


class PrefectServer:
    """`PrefectServer(folder).start()` … `.stop()`; `settings` adds PREFECT_* variables (auth string, CSRF, …).

    It marks no run as Late: Prefect 3.9 does so for all of them at once, each in a transaction that reads before it
    writes, so on SQLite they lock each other out for minutes, with 503 for everybody and half a core for tracebacks.
    Tests that want a Late run make it one, and the server of `flowfleet up` marks them as any other.
    """

    def __init__(self, folder: Path, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.settings = dict(settings or {})
        self.log_file = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def ui_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What this server, or an engine or command that talks to it, runs with: nothing of the user's own Prefect."""
        env = processes.environment() | {
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_LOGGING_LEVEL": "INFO",  # the access log, by which tests count requests
            "PREFECT_LOGGING_LEVEL": "WARNING",
        }
        return env | self.settings

    def start(self) -> PrefectServer:
        """Start it and wait until it is healthy; fails with the log's end."""
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        env = self.environment()
        env["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{self.folder / 'home' / 'prefect.db'}"
        env.pop("PREFECT_API_URL")  # the server's own background parts use the app, not an address
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                argv, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until(self._healthy, 90, f"the Prefect server at {self.api_url}")
        except BaseException:
            self.stop()
            print(self.log_file.read_text(errors="replace")[-3000:])
            raise
        return self

    def _healthy(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            tail = self.log_file.read_text(errors="replace")[-2000:]
            raise AssertionError(f"the Prefect server ended with {self._process.returncode}:\n{tail}")
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)  # it asks for credentials, so it is up
        except OSError:
            return False

    def stop(self) -> None:
        """End the server and whatever it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
        process.wait(1)

    def pause(self) -> None:
        """Freeze it: connections open, nothing is answered."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)
