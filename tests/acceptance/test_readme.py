"""README: its commands do what it says, in its order, in a folder of their own.

The page's console blocks are the test: one terminal runs `flowfleet up`, a second one all that follows. A comment
`<!-- readme: … -->` before a block says how a machine reads it; nothing is run that the page does not show. What
`<!-- install: … -->` marks is run by tests/integration/test_install.py.
"""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowfleet.local.data_folder import default_path
from flowfleet.monitor.run_output import state_home
from tests import processes
from tests.needs import need
from tests.rest import Rest
from tests.waiting import SCALE, until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
#: how long the second terminal may take in all, pauses of the page included
SESSION_SECONDS = 240
MARK = "FFTEST_README"
#: blocks that are not for the second terminal
ELSEWHERE = ("glance", "targets", "extras", "terminal up", "remove", "develop", "clone", "wheel", "host")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, what the comment before it says, its lines."""

    language: str
    reading: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        return [line.removeprefix("$ ").partition("  #")[0].strip() for line in self.lines if line.startswith("$ ")]


PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
#: all fenced blocks of the page
BLOCKS = [
    Block(match[2], match[1] or "", tuple(match[3].splitlines()))
    for match in re.finditer(r"(?:<!-- \w+: (.*?) -->\n)?```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
]


def only(reading: str) -> Block:
    """The one block with this comment."""
    (found,) = [block for block in BLOCKS if block.reading == reading]
    return found


def test_the_first_commands_of_the_readme_are_targets_of_the_makefile():
    need(shutil.which("make") is not None, "make")
    commands = only("targets").commands

    assert commands == ["make up", "make compose-up"]
    for command in [*commands, *only("develop").commands]:
        done = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_extras_that_the_readme_installs_exist():
    (command,) = [command for command in only("extras").commands if "pip install" in command]
    wanted = set(re.search(r"\.\[(.*?)\]", command)[1].split(","))

    assert wanted <= set(importlib.metadata.metadata("flowfleet").get_all("Provides-Extra"))


def test_the_readme_says_in_its_first_sentences_what_this_is_for_whom_what_it_needs_and_what_it_cannot_yet():
    first = PAGE.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(first) == 3
    for sentence, words in zip(
        first, (("several machines", "Kubernetes"), ("for teams",), ("needs a Redis", "alpha")), strict=True
    ):
        assert all(word in sentence for word in words), sentence
    assert only("glance").commands == ["poller start", "worker start --pool cpu --slots 4"]


def test_what_the_readme_removes_is_where_our_parts_keep_it():
    leave, keys, folders, environment = only("remove").commands
    home = {"HOME": "/home/me"}
    assert leave == "flowfleet leave"
    assert "'flowfleet:*'" in keys, "all keys of a fleet begin so (flowfleet/ledger/store.py)"
    assert folders.replace("~", home["HOME"]).split()[2:] == [str(default_path(home)), str(state_home(home))]
    assert environment == "sudo rm -rf /opt/flowfleet"


def test_make_clean_says_what_it_leaves(tmp_path):
    need(shutil.which("make") is not None, "make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    data, records = tmp_path / "home/.local/share/flowfleet", tmp_path / "home/.local/state/flowfleet"
    settings = tmp_path / "compose" / ".env"
    for folder in (tmp_path / "build", data, records, settings.parent):
        folder.mkdir(parents=True)
    settings.touch()
    env = processes.environment("XDG_") | {"HOME": str(tmp_path / "home")}
    said = processes.run("make", "clean", env=env, cwd=tmp_path, check=True).stdout
    assert not (tmp_path / "build").exists()
    for left in (data, records):
        assert left.exists()
        assert str(left) in said
    assert settings.exists()
    assert "compose/.env" in said
    assert "Redis" in said


class Reader:
    """Somebody who does what the page says: a first terminal with `up`, a second one for the rest."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex[:12]
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        self.env = processes.environment() | {
            "HOME": str(folder),
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_STATE_HOME": str(folder / "state"),
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "DO_NOT_TRACK": "1",
            # as on a machine that is no container: when the terminal closes, the longer run goes on to its end
            "FLOWFLEET_ON_STOP": "detach",
            MARK: self.mark,
        }
        self.first: subprocess.Popen[bytes] | None = None

    def start(self, name: str, argv: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                argv,
                env=self.env,
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def up(self) -> dict[str, Any]:
        """The first terminal; the answer is what `up` wrote about itself when all was ready."""
        (command,) = only("terminal up").commands
        self.first = self.start("up", command.split())
        state = self.folder / "data" / "flowfleet" / "up.json"

        def ready() -> bool:
            assert self.first is not None
            assert self.first.poll() is None, f"up ended:\n{self.said('up')[-3000:]}"
            return state.exists()

        until(ready, 240, "flowfleet up to be ready")
        return dict(json.loads(state.read_text()))

    def second_terminal(self, addresses: dict[str, str]) -> str:
        """Run every other console block in one shell; what it has said, when all went well."""
        script = ["set -eu"]
        for block in BLOCKS:
            if block.reading.startswith("file "):
                (self.work / block.reading.removeprefix("file ")).write_text("\n".join(block.lines) + "\n")
            if block.language != "console" or block.reading in ELSEWHERE:
                continue
            if block.reading == "own fleet":
                script.append("export FLOWFLEET_FLEET=own")  # a server and a Redis of the reader's: here those of `up`
            script += [f"echo '== {block.reading}'", *(adapted(command, addresses) for command in block.commands)]
        # the reader closes the terminal
        script += ["kill $(jobs -p) || true", "wait || true", "echo '== end'"]
        (self.folder / "session.sh").write_text("\n".join(script) + "\n")
        shell = self.start("second", ["bash", "-x", str(self.folder / "session.sh")])
        try:
            code = shell.wait(SESSION_SECONDS * SCALE)
        except subprocess.TimeoutExpired:
            shell.kill()
            code = shell.wait()
        said = self.said("second")
        assert code == 0, f"exit {code}\n{said[-6000:]}"
        return said

    def close(self) -> None:
        if self.first is not None and self.first.poll() is None:
            self.first.send_signal(signal.SIGINT)
            try:
                self.first.wait(60 * SCALE)
            except subprocess.TimeoutExpired:
                self.first.kill()
        processes.sweep(MARK, self.mark)


def adapted(command: str, addresses: dict[str, str]) -> str:
    """The page's command with the addresses of this `up`, and its pauses scaled to this machine."""
    for name, value in addresses.items():
        command = re.sub(rf"(?<=[ ]){name}=\S+", f"{name}={value}", command)
    if command == "flowfleet doctor":  # the page's own pause before it is for a machine that does not stall
        return f"for look in {{1..20}}; do {command} && break; sleep 2; done; {command}"
    # a run that is meant to outlast the pauses is scaled with them
    return re.sub(r"^(sleep |.* seconds=)(\d+)$", lambda found: f"{found[1]}{int(found[2]) * SCALE:.0f}", command)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_reader_who_types_what_the_readme_says_gets_what_it_promises(reader: Reader):
    begun = time.monotonic()
    state = reader.up()
    said = reader.second_terminal({"PREFECT_API_URL": state["api"], "FLOWFLEET_REDIS": state["redis"]})
    api = Rest(state["api"])

    # three runs of the reader's flow: one in the pool of `up`, two in the reader's own; each ran once, to its end
    flow = {"flows": {"name": {"any_": ["hello"]}}, "sort": "EXPECTED_START_TIME_ASC"}
    runs = until(
        lambda: (
            (found := api.call("POST", "/flow_runs/filter", flow))
            and all(run["state_type"] == "COMPLETED" for run in found)
            and found
        ),
        120,
        "the runs of hello.py to be completed",
    )
    pools = [run["work_pool_name"] for run in runs]
    assert pools == ["flowfleet", "mine", "mine"], f"after {time.monotonic() - begun:.0f} s"
    for run in runs:
        states = [state["type"] for state in api.call("GET", f"/flow_run_states/?flow_run_id={run['id']}")]
        assert states.count("RUNNING") == 1, states

    # the killed worker's run stood in the status before and after the kill, and with the worker that adopted it
    longer = runs[-1]["id"][:8]
    last = said.partition("== adopts")
    assert last[0].partition("kill -9")[2].count(longer) >= 1, said[-6000:]
    assert longer in last[2], said[-6000:]

    # an engine sends its last lines and events after its run's end, and would go on trying without the server
    until(
        lambda: not any("prefect.engine" in str(what) for what in processes.marked(MARK, reader.mark).values()),
        60,
        "the last engine to be gone",
    )

    # Ctrl-C ends `up` as a whole
    assert reader.first is not None
    reader.first.send_signal(signal.SIGINT)
    assert reader.first.wait(90 * SCALE) == 0, reader.said("up")[-3000:]
    until(lambda: processes.marked(MARK, reader.mark) == {}, 60, "the end of all that the reader has started")
