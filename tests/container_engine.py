"""Container engine: a private Docker engine with images of this machine's own programs, for tests.

    with DockerEngine.private() as engine:
        docker.DockerClient(base_url=engine.url)

The packages are Debian's (`install`). Its folder, socket, bridge and control groups are its own, and nothing of it is
left when it is closed; the machine's firewall and its forwarding stay as they are. Run as a program it is an engine
until its stdin ends: `python -m tests.container_engine` prints its address.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker
from docker.errors import DockerException

from tests.waiting import SCALE, until

PACKAGES = ("docker.io", "busybox-static")
#: the images that each engine here has
BUSYBOX, PYTHON = "busybox:test", "python:test"
#: the networks of their bridges, off the usual ranges; each engine takes one that is free
_NETWORKS = tuple(f"172.31.{number}" for number in range(200, 250))
_GROUP = "/flowfleet-test-engine"
_GROUPS = Path("/sys/fs/cgroup")
_APT_LOCK = Path("/var/tmp/flowfleet-tests-apt.lock")


def install(packages: Sequence[str] = PACKAGES) -> None:
    """Install these packages of Debian, as far as their programs are missing; root."""
    if not _missing(packages):
        return
    with _APT_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt-get gives up where another test process has it
        missing = _missing(packages)
        if missing:
            _install(missing)


def _missing(packages: Sequence[str]) -> list[str]:
    programs = {"docker.io": "dockerd", "busybox-static": "busybox"}
    return [name for name in packages if not shutil.which(programs.get(name, name), path=_PATH)]


def _install(missing: Sequence[str]) -> None:
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for argv in (
        ["apt-get", "-qq", "update"],
        ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing],
    ):
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} failed: {done.stderr[-2000:]}")


_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class DockerEngine:
    """One dockerd of our own, with its folder; started by `start`, to be killed, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.url = f"unix://{self.socket}"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._link = ""

    @classmethod
    @contextlib.contextmanager
    def private(cls) -> Iterator[DockerEngine]:
        """A started engine in a short temporary folder, with its images; gone at the end."""
        install()
        engine = cls(Path(tempfile.mkdtemp(prefix="ffde")))
        try:
            engine.start()
            engine.make_images()
            yield engine
        finally:
            engine.close()

    def client(self, *, seconds: float = 60.0) -> docker.DockerClient:
        """A plain client, to look behind the worker or to break something; patient, since machines may stall."""
        return docker.DockerClient(base_url=self.url, timeout=seconds * SCALE)

    # its life

    def start(self) -> None:
        """Start it and wait until it answers."""
        forwarding = Path("/proc/sys/net/ipv4/ip_forward")
        self._forwarding = forwarding.read_text()
        argv = [
            *("tini", "-s", "--", "dockerd", "-H", self.url, "-p", str(self.folder / "pid")),
            *("--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")),
            *("--storage-driver", "overlay2", "--bridge", self._bridge()),
            *("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
            *("--cgroup-parent", _GROUP, "--shutdown-timeout", "3"),
        ]
        (self.folder / "pid").unlink(missing_ok=True)
        # the containerd of a dockerd that was killed gets a TERM by its death; one that finds it meanwhile waits for it
        until(self._containerd_has_ended, 15, "the containerd of its earlier life to end")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PATH": _PATH},
            )
        until(self.answers, 60, f"the Docker engine in {self.folder}: {self._last_lines()}", pause=0.05)

    def _bridge(self) -> str:
        """A bridge of its own, since several engines would share, and one of them take away, the usual docker0."""
        if not self._link:
            name = f"ff{self.folder.name[-8:]}"
            subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True, capture_output=True)
            self._link = name
            taken = subprocess.run(["ip", "-4", "addr"], capture_output=True, text=True, check=True).stdout
            network = next(each for each in _NETWORKS if f"{each}." not in taken)
            for argv in (("addr", "add", f"{network}.1/24", "dev", name), ("link", "set", name, "up")):
                subprocess.run(["ip", *argv], check=True, capture_output=True)
        return self._link

    def _containerd_has_ended(self) -> bool:
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int((self.folder / "exec" / "containerd" / "containerd.pid").read_text())
            return (Path("/proc") / str(pid) / "comm").read_text().strip() != "containerd"
        return True

    def answers(self) -> bool:
        """Whether it answers now."""
        assert self.process is not None
        assert self.process.poll() is None, f"dockerd ended: {self._last_lines()}"
        with socket.socket(socket.AF_UNIX) as asked, contextlib.suppress(OSError):
            asked.settimeout(5 * SCALE)
            asked.connect(str(self.socket))
            asked.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b"200" in asked.recv(64)
        return False

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:]) if self.log.exists() else ""

    @property
    def pid(self) -> int:
        """The process of dockerd itself."""
        return int((self.folder / "pid").read_text())

    def kill(self) -> None:
        """`kill -9`, as an operator or the kernel does it; its containers are left to its next life."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait(30 * SCALE)

    def stop(self) -> None:
        """An orderly end: its containers end with it."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(30 * SCALE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)

    def freeze(self) -> None:
        """It answers nothing any more until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        os.kill(self.pid, signal.SIGCONT)

    def thaw_if_frozen(self) -> None:
        """It goes on, if it lives."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            self.thaw()

    def clear(self) -> None:
        """Remove every container."""
        with contextlib.closing(self.client()) as client:
            for container in client.containers.list(all=True, ignore_removed=True):
                with contextlib.suppress(DockerException):
                    container.remove(force=True, v=True)

    def close(self) -> None:
        """End it, and take away all that it has made."""
        if self.process is not None:
            self.thaw_if_frozen()
            if self.process.poll() is None:
                with contextlib.suppress(DockerException, OSError):
                    self.clear()
                self.stop()
        for mount in reversed(self._mounts()):
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
        if self._link:
            subprocess.run(["ip", "link", "delete", self._link], check=False, capture_output=True)
        if hasattr(self, "_forwarding"):
            with contextlib.suppress(OSError):
                Path("/proc/sys/net/ipv4/ip_forward").write_text(self._forwarding)
        _remove_groups()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        return [line.split()[1] for line in lines if line.split()[1].startswith(str(self.folder))]

    def trust(self, registry: str) -> None:
        """Let it talk to the registry at this loopback address, which has no TLS; Docker trusts loopback by itself."""

    # its images

    #: what stands before the names of images that were made here
    registry = ""

    def make_images(self) -> None:
        """Import the two images that tests use."""
        with contextlib.closing(self.client()) as client:
            for name, data in ((BUSYBOX, _busybox()), (PYTHON, _python())):
                self._import(client, name, data)

    def _import(self, client: docker.DockerClient, name: str, data: bytes) -> str:
        name = f"{self.registry}{name}"
        repository, _, tag = name.partition(":")
        told = client.api.import_image_from_data(data, repository=repository, tag=tag, changes=["ENV PATH=/bin"])
        made = json.loads(str(told).strip().splitlines()[-1])["status"]
        client.api.tag(made, repository, tag)  # Podman has called it latest
        return name

    def image_of(self, name: str, programs: Sequence[str], *, ballast: int = 0) -> str:
        """An image with busybox and these programs of the machine, their libraries, and so many bytes of noise."""
        image = _Image()
        image.data_file("ballast", os.urandom(ballast))
        for path in map(Path, programs):
            image.file(path)
            image.link(f"bin/{path.name}", str(path))
            for library in _libraries([path]):
                image.file(library)
        with contextlib.closing(self.client()) as client:
            return self._import(client, name, image.data())


class PodmanEngine(DockerEngine):
    """One service of Podman, by Docker's API; no daemon is behind it, so that its containers live on without it."""

    registry = "localhost/"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._trusted: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def private(cls) -> Iterator[PodmanEngine]:
        """A started service in a short temporary folder, with its images; gone at the end."""
        install(("podman", "runc", "busybox-static"))
        engine = cls(Path(tempfile.mkdtemp(prefix="ffpm")))
        try:
            engine.start()
            engine.make_images()
            yield engine
        finally:
            engine.close()

    def start(self) -> None:
        """Start it and wait until it answers."""
        # what it asks for by default is more than a machine without CAP_SYS_RESOURCE has, and crun knows no hybrid
        # control groups
        conf = self.folder / "containers.conf"
        conf.write_text(
            '[containers]\ndefault_ulimits=["nofile=20000:20000","nproc=1000:1000"]\n'
            '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n'
        )
        argv = [
            "podman",
            "--root",
            str(self.folder / "root"),
            "--runroot",
            str(self.folder / "run"),
            "--storage-driver",
        ]
        argv += ["overlay", "system", "service", "--time=0", self.url]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,  # its conmon leaves a file `oom` where it was started
                env={
                    **os.environ,
                    "PATH": _PATH,
                    "CONTAINERS_CONF": str(conf),
                    "CONTAINERS_REGISTRIES_CONF": str(self._registries()),
                },
            )
        until(self.answers, 60, f"Podman in {self.folder}: {self._last_lines()}", pause=0.05)

    def _registries(self) -> Path:
        path = self.folder / "registries.conf"
        path.write_text("".join(f'[[registry]]\nlocation = "{one}"\ninsecure = true\n' for one in self._trusted))
        return path

    def trust(self, registry: str) -> None:
        if registry not in self._trusted:
            self._trusted.append(registry)
            self.stop()
            self.start()

    @property
    def pid(self) -> int:
        """The process of the service itself."""
        assert self.process is not None
        return self.process.pid


def _remove_groups() -> None:
    for root in [*sorted(_GROUPS.glob(f"*{_GROUP}")), _GROUPS / _GROUP[1:]]:
        if not root.is_dir():
            continue
        for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            root.rmdir()


class _Image:
    """A tar file of an image's root."""

    def __init__(self) -> None:
        self._data = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._data, mode="w")  # noqa: SIM115 - closed by `data`
        self._names: set[str] = set()
        for folder in ("bin", "tmp", "etc", "dev", "proc", "sys", "root"):
            self.folder(folder)
        self.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        self.text("etc/group", "root:x:0:\nnogroup:x:65534:\n")
        self.file(Path(_busybox_path()), "bin/busybox")
        applets = subprocess.run([_busybox_path(), "--list"], capture_output=True, text=True, check=True).stdout
        for name in sorted(set(applets.split()) - {"busybox"}):
            self.link(f"bin/{name}", "busybox")

    def folder(self, name: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        self._add(info)

    def text(self, name: str, text: str) -> None:
        self.data_file(name, text.encode())

    def data_file(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._add(info, io.BytesIO(data))

    def link(self, name: str, target: str) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        self._add(info)

    def file(self, path: Path, name: str | None = None) -> None:
        """This file of the machine, at its own path unless told otherwise; a link as the file that it leads to."""
        real = path.resolve()
        info = self._tar.gettarinfo(str(real), name or str(path).lstrip("/"))
        info.uid = info.gid = 0
        with real.open("rb") as file:
            self._add(info, file)

    def _add(self, info: tarfile.TarInfo, file: object = None) -> None:
        if info.name not in self._names:
            self._names.add(info.name)
            self._tar.addfile(info, file)  # type: ignore[arg-type]

    def data(self) -> bytes:
        self._tar.close()
        return self._data.getvalue()


def _busybox_path() -> str:
    found = shutil.which("busybox", path=_PATH)
    assert found, "busybox-static is not installed"
    return found


def _busybox() -> bytes:
    return _Image().data()


def _python() -> bytes:
    """This machine's own Python at its own path, so that a virtual environment that is mounted there works as it is."""
    image = _Image()
    program = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    files = [program, *standard.joinpath("lib-dynload").glob("*.so")]
    for path in {*_libraries(files), *_known_libraries(), *files}:
        image.file(path)
    for path in sorted(standard.rglob("*")):
        parts = path.relative_to(standard).parts
        if path.is_file() and not {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib"} & set(
            parts
        ):
            image.file(path)
    for link in {Path(sys._base_executable), program.with_name("python3"), program.with_name("python")}:  # type: ignore[attr-defined]
        if link != program:
            image.link(str(link).lstrip("/"), str(program))
    for name in ("python", "python3"):
        image.link(f"bin/{name}", str(program))
    return image.data()


def _libraries(files: Sequence[Path]) -> set[Path]:
    """The shared libraries that these files load, and the loader, by the paths that are written in them."""
    found = set()
    for file in files:
        for line in subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False).stdout.splitlines():
            words = line.split()
            path = words[2] if "=>" in words and len(words) > 2 else words[0] if words else ""
            if path.startswith("/"):
                found.add(Path(path))
    return found


def _known_libraries() -> set[Path]:
    """What the compiled parts of packages load beside that, and what the C library itself loads."""
    ldconfig = shutil.which("ldconfig", path=_PATH)
    assert ldconfig
    told = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True).stdout
    paths = {line.split()[0]: Path(line.split()[-1]) for line in reversed(told.splitlines()) if "=>" in line}
    wanted = ("libgcc_s.so.1", "libstdc++.so.6", *(f"lib{name}.so" for name in ("rt", "dl", "m", "util", "pthread")))
    wanted += ("libresolv.so.2", "libnss_files.so.2", "libnss_dns.so.2")
    return {path for name, path in paths.items() if name.startswith(wanted)}


def main() -> None:
    """Be an engine until stdin ends."""
    with DockerEngine.private() as engine:
        print(engine.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    began = time.monotonic()
    main()
