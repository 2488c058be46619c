"""House: nothing works at import, and the wheel says truly what is in it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowfleet import errors
from tests.unit.test_imports import is_example, modules

WATCH = """
import importlib, json, sys
FORBIDDEN = {"socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.mkdir", "os.remove"}
seen = []
def hook(event, arguments):
    if event in FORBIDDEN:
        seen.append([event, str(arguments)[:200]])
# what our dependencies do at their own import is not ours to judge: they come first
import celery, kombu, redis, requests, click, rich.console, prometheus_client, psutil
import kombu.transport.redis, celery.worker, celery.bin.worker
sys.addaudithook(hook)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps({"seen": seen, "prefect": "prefect" in sys.modules}))
"""


def test_importing_the_whole_product_does_no_work_and_brings_no_prefect():
    names = [name for name in modules() if not is_example(name) and not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, json.dumps(names)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr

    assert json.loads(done.stdout.splitlines()[-1]) == {"seen": [], "prefect": False}


#: what runs in the interpreter of the flows, or in a shim that is forked there: the whole folder
SHIM = Path(importlib.util.find_spec("workers.shim").origin).parent


@pytest.mark.parametrize("name", sorted(path.name for path in SHIM.glob("*.py")))
def test_the_shim_needs_python_3_9_its_standard_library_and_its_own_folder_whatever_that_is_called(name):
    tree = ast.parse((SHIM / name).read_text(), feature_version=(3, 9))
    absolute, relative = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            relative.append((node.level, node.module, *(alias.name for alias in node.names)))
        elif isinstance(node, ast.ImportFrom):
            absolute.add(node.module.partition(".")[0])

    assert absolute <= sys.stdlib_module_names
    for level, module, *names in relative:
        assert (level, module) == (1, None), f"only `from . import …`, not {module}"
        assert all((SHIM / f"{each}.py").is_file() for each in names)


@pytest.mark.parametrize("module", ["poller.cli", "workers.cli", "flowfleet.cli"])
def test_a_command_on_windows_is_one_sentence_that_names_the_remedy(module):
    code = f"import sys; sys.modules['fcntl'] = None; from {module} import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: flowfleet needs Linux or macOS, so on Windows run it inside WSL.\n"


def test_the_drawn_tree_of_errors_is_the_real_one():
    drawn, path = {}, []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([ │├└─]*)(\w+)  +\S", line):
            depth = len(found[1]) // 4
            drawn[found[2]] = path[depth - 1] if depth else "Exception"
            path[depth:] = [found[2]]
    real = {
        name: each.__bases__[0].__name__
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, Exception)
    }

    assert drawn == real


def test_the_distribution_has_the_three_commands():
    scripts = {
        script.name: script.value
        for script in importlib.metadata.entry_points(group="console_scripts")
        if script.dist is not None and script.dist.name == "flowfleet"
    }
    assert scripts == {
        "poller": "poller.cli:main",
        "worker": "workers.cli:main",
        "flowfleet": "flowfleet.cli:main",
    }
