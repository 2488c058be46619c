"""The oldest Python that the shim must run in: where the tests have one."""

import os
from pathlib import Path

from tests.needs import need


def python39() -> str:
    """A real CPython 3.9; without it a loud skip on a laptop, and a failure where CI=true."""
    told = os.environ.get("FLOWFLEET_TEST_PYTHON39")
    found = Path(told) if told else Path(__file__).parents[1] / ".python39" / "python"
    need(found.exists(), f"a Python 3.9 at {found}: make it by `make python39`")
    return str(found)
