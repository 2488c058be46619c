"""docs/custom-deployer.md: its whole example is run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "custom-deployer.md"


def test_the_deployer_of_the_document_passes_the_checks_of_the_document(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- document: file (\S+) -->\n```python\n(.*?)```", text, re.DOTALL))
    assert set(files) == {"batch_deployer.py", "test_batch_deployer.py"}
    for name, source in files.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_batch_deployer.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
