"""Container registry: a private registry of images on a loopback port, with or without a password."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.container_engine import install
from tests.valkey import free_port
from tests.waiting import SCALE, until

USER, PASSWORD = "ann", "pw-of-ann"
#: of that password, at the least cost
_HTPASSWD = "ann:$2y$05$jSa9FyCJwYLumZPcDbz.4OiWLZFRE.TkrIxsKg8QsbVdTuZKnrZOS\n"


class Registry:
    """One registry; `address` is HOST:PORT."""

    def __init__(self, folder: Path, *, password: bool) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        auth = ""
        if password:
            (folder / "htpasswd").write_text(_HTPASSWD)
            auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
        (folder / "config.yml").write_text(
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
            f"http: {{addr: {self.address}}}\n{auth}"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def private(cls, *, password: bool = False) -> Iterator[Registry]:
        """A started registry in a folder of its own, gone at the end."""
        install(("docker-registry",))
        registry = cls(Path(tempfile.mkdtemp(prefix="ffreg")), password=password)
        try:
            registry.start()
            yield registry
        finally:
            registry.close()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(self.folder / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"},
            )
        until(self._answers, 20, f"the registry in {self.folder}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/v2/", timeout=5 * SCALE):
                return True
        except urllib.error.HTTPError:
            return True  # it asks for a password
        except OSError:
            return False

    def freeze(self) -> None:
        """It answers nothing until `thaw`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Nobody listens there any more."""
        if self.process is not None and self.process.poll() is None:
            self.thaw()
            self.process.kill()
            self.process.wait(10 * SCALE)

    def close(self) -> None:
        """End it, and take its data away."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
