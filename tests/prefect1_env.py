"""The environment of the real Prefect 1: where its interpreter is, and what its processes may see of this machine."""

import os
import re
from functools import cache
from pathlib import Path

from tests import processes
from tests.needs import need

#: a folder that holds files with flows
FLOWS = Path(__file__).parent / "prefect1_flows"


@cache
def flows_by_name() -> dict[str, Path]:
    """The file of each flow."""
    files = sorted(FLOWS.glob("*.py"))
    return {name: path for path in files for name in re.findall(r'Flow\("(\w+)"\)', path.read_text())}


def interpreter() -> Path:
    """Where it would be: `make` says it, else beside this tree."""
    told = os.environ.get("FLOWFLEET_TEST_PREFECT1_PYTHON")
    return Path(told) if told else Path(__file__).parents[1] / ".venv-prefect1" / "bin" / "python"


def python() -> Path:
    """The interpreter that has prefect 1.4.1; without it a loud skip on a laptop, and a failure where CI=true."""
    found = interpreter()
    need(
        found.is_file() and (found.parent / "prefect").is_file(),
        f"the real Prefect 1 in {found.parent.parent}: make it by `make prefect1` (needs Python 3.11)",
    )
    return found


def environment(home: Path, api_url: str, **extra: str) -> dict[str, str]:
    """What a client, agent or engine of the real Prefect 1 runs with: nothing of the user's own Prefect.

    The heartbeat is a thread of the engine, as a process of its own costs an import of prefect for each run.
    """
    return processes.environment("PYTHON") | {
        "HOME": str(home),
        "PREFECT__HOME_DIR": str(home / ".prefect"),
        "PREFECT__USER_CONFIG_PATH": str(home / "no-config.toml"),
        "PREFECT__BACKEND": "server",
        "PREFECT__CLOUD__API": api_url,
        "PREFECT__CLOUD__HEARTBEAT_MODE": "thread",
        "PYTHONWARNINGS": "ignore",
        **extra,
    }
