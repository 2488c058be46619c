"""docs/custom-deployer.md: its whole example is run as it stands there."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from tests.waiting import SCALE

PAGE = Path(__file__).parents[2] / "docs" / "custom-deployer.md"
FILES = dict(
    re.findall(r"<!-- document: file (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
)


def test_the_package_of_the_document_names_its_class_as_an_entry_point_that_loads(tmp_path, monkeypatch):
    (tmp_path / "batch_deployer.py").write_text(FILES["batch_deployer.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    project = tomllib.loads(FILES["pyproject.toml"])
    (point,) = project["project"]["entry-points"]["flowfleet.deployers"].items()
    assert EntryPoint(*point, group="flowfleet.deployers").load().kind == point[0] == "batch"
    assert project["tool"]["setuptools"]["py-modules"] == ["batch_deployer"]


def test_the_deployer_of_the_document_passes_the_checks_of_the_document(tmp_path):
    assert set(FILES) == {"batch_deployer.py", "test_batch_deployer.py", "pyproject.toml"}
    for name, source in FILES.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_batch_deployer.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300 * SCALE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
