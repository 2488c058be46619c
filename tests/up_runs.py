"""UpRun: one `flowfleet up` as a child, with a folder, a mark on all its processes, and its output in a file."""

import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from tests import processes
from tests.waiting import SCALE, until

MARK = "FFTEST_UP"


class UpRun:
    """`UpRun(folder, "--api", URL).start()`; `close` leaves nothing behind."""

    def __init__(self, folder, *options, **variables):
        self.folder = folder
        self.data = folder / "data"
        self.options = options
        self.mark = uuid.uuid4().hex
        self.scratch = folder / "tmp"
        self.scratch.mkdir(exist_ok=True)
        self.output = folder / "output"
        self.env = processes.environment() | {
            "HOME": str(folder),
            "TMPDIR": str(self.scratch),
            "XDG_STATE_HOME": str(folder / "xdg-state"),
            MARK: self.mark,
            **variables,
        }
        self.process = None

    def start(self):
        argv = [str(Path(sys.executable).with_name("flowfleet")), "up", "--data-dir", str(self.data), *self.options]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                argv, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        return self

    def run(self, seconds=60):
        """To its end: exit code and output."""
        self.start()
        return self.wait(seconds), self.text()

    def wait(self, seconds=60):
        return self.process.wait(seconds * SCALE)

    def text(self):
        return self.output.read_text()

    def ready(self, seconds=120):
        """What `up.json` says, once it is there."""

        def look():
            assert self.process.poll() is None, f"up ended with {self.process.returncode}:\n{self.text()}"
            path = self.data / "up.json"
            return json.loads(path.read_text()) if path.exists() else None

        return until(look, seconds, "up.json")

    def signal(self, number):
        self.process.send_signal(number)

    def left(self):
        """Processes of this `up` that still live."""
        return processes.marked(MARK, self.mark)

    def describe(self, lines=50):
        """What it printed, and the end of each part's log."""
        told = [f"exit code {self.process.poll()}" if self.process else "not started"]
        for log in (self.output, *sorted((self.data / "logs").glob("*.log"))):
            if log.exists():
                end = log.read_text(errors="replace").splitlines()[-lines:]
                told += [f"--- {log.name}", *(f"    {line}" for line in end)]
        return "\n".join(told)

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return processes.sweep(MARK, self.mark)
