"""Install: the commands by which the documents install flowfleet, from a clone and from a wheel, do it."""

import re
import shutil
from pathlib import Path

import pytest

from tests import processes
from tests.needs import need

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "several-machines.md"]
#: what a clone has of the product, for a copy that holds no environment and no build of ours
CLONE = ("pyproject.toml", "README.md", "LICENSE", "flowfleet", "poller", "workers")


def commands_of(page: Path) -> dict[str, list[str]]:
    """The commands of the page's blocks, by what the comment before each says."""
    blocks = re.findall(r"<!-- install: (\w+) -->\n```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return {name: [line.removeprefix("$ ") for line in text.splitlines()] for name, text in blocks}


class Installer:
    """Somebody who types the commands on a machine whose `/opt` and `/usr/local/bin` are in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.program = folder / "flowfleet"

    def type(self, commands: list[str], cwd: Path) -> None:
        for command in commands:
            here = command.removeprefix("sudo ").replace("/opt/flowfleet", str(self.program))
            here = here.replace("/usr/local/bin", str(self.bin))
            done = processes.run("bash", "-c", here, env=processes.environment(), cwd=cwd, seconds=300)
            assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"

    def check(self) -> None:
        """The three commands are there, and do not find their modules in a clone."""
        for name in ("flowfleet", "poller", "worker"):
            env = processes.environment() | {"PATH": f"{self.bin}:/usr/bin:/bin"}
            done = processes.run(name, "--help", env=env, cwd=self.folder, check=True)
            assert "Usage" in done.stdout
        done = processes.run(
            self.bin / "worker", "install", "--for", "systemd", env=processes.environment(), check=True
        )
        assert f"ExecStart={self.program}/bin/worker start" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_of_the_documents_install_from_a_clone_and_from_a_wheel(tmp_path):
    readme, page = map(commands_of, PAGES)
    assert readme == page
    assert list(readme) == ["clone", "wheel", "host"]
    need((ROOT / "flowfleet" / "__init__.py").exists(), "a clone: the test of the wheel has none")
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in CLONE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clone)
    here, there = Installer(tmp_path / "here"), Installer(tmp_path / "there")

    here.type(readme["clone"], clone)
    here.check()

    make, copy = readme["wheel"]
    # any Python that has pip will do
    here.type([make.replace("python3", f"{here.program}/bin/python3")], clone)
    assert copy == "scp dist/flowfleet-*.whl HOST:"
    home = tmp_path / "home-of-host"
    home.mkdir()
    for wheel in (clone / "dist").glob("flowfleet-*.whl"):
        shutil.copy(wheel, home)
    there.type(readme["host"], home)
    there.check()
