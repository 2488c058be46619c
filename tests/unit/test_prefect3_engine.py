"""The starter of the Prefect 3 engine: all that `-m prefect.engine` is, and what pull steps leave behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import python39
from tests.waiting import SCALE
from workers.interpreter import STARTERS

PREFECT = {
    "engine.py": """
import asyncio
from prefect import flows
if __name__ == "__main__":
    # a real one takes this out too before it loads the flow
    flows.control.append(flows.os.environ.pop("PREFECT__CONTROL_PORT", None))
    asyncio.run(flows.load())
""",
    "flows.py": """
import json, os, sys
from types import SimpleNamespace

control = []

def facts():
    main = sys.modules["__main__"]
    with open("/proc/self/cmdline", errors="surrogateescape") as line, open("/proc/self/comm") as name:
        shown = [line.read().rstrip("\\0").split("\\0"), name.read()]
    return {
        "argv": sys.argv, "orig_argv": getattr(sys, "orig_argv", None), "shown": shown, "path": sys.path,
        "flags": str(sys.flags), "main": [main.__name__, main.__file__, main.__spec__.name, main.__package__],
        "leftovers": sorted(name for name in vars(main) if not name.startswith("__")),
        "ours": sorted(name for name in sys.modules if "flowfleet" in name or "prefect3" in name),
        "cwd": os.getcwd(), "environ": dict(os.environ), "pid": os.getpid(),
        "control": control, "files": sorted(os.listdir(".")),
    }

async def load():
    steps = os.environ.get("STEPS")
    if steps and "PREFECT__FLOW_ENTRYPOINT" not in os.environ:
        print(json.dumps(facts()), flush=True)
        from prefect.deployments.steps.core import run_steps
        deployment = SimpleNamespace(entrypoint="code/flow.py:go", path=os.environ.get("PLACE"))
        output = await run_steps(steps, deployment=deployment)
        if output.get("directory"):
            os.chdir(output["directory"])
    print(json.dumps(facts()), flush=True)
    exec(os.environ.get("FLOW", ""), {"__name__": "flow", "facts": facts, "json": json})
""",
    "deployments/steps/core.py": """
async def run_steps(steps, deployment=None):
    output = {}
    exec(steps, {"output": output})
    return output
""",
    "logging/handlers.py": """
class APILogHandler:
    @classmethod
    async def aflush(cls):
        print('"flushed"')
""",
    "filesystems.py": """
import shutil
class LocalFileSystem:
    def __init__(self, basepath):
        self.basepath = basepath
    async def get_directory(self, from_path, local_path):
        shutil.copytree(from_path, local_path, dirs_exist_ok=True)
""",
}


class Paper:
    """A prefect of paper, and one folder to start in."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        self.start, self.given = folder / "start", folder / "given"
        for name, text in PREFECT.items():
            path = self.given / "prefect" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            (path.parent / "__init__.py").touch()
        (self.given / "prefect" / "deployments" / "__init__.py").touch()
        (self.start / "clone" / "code").mkdir(parents=True)

    def run(self, *argv: str, **env: str) -> list:
        """What is said, thing by thing, by the starter or by these arguments of Python."""
        argv = argv or (str(STARTERS / "prefect3_engine.py"),)
        base = {"PATH": os.environ["PATH"], "PYTHONPATH": str(self.given), "PYTHONUSERBASE": str(self.folder / "user")}
        done = subprocess.run(
            [self.python, *argv],
            cwd=self.start,
            env=base | env,
            capture_output=True,
            text=True,
            timeout=60 * SCALE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.errors = done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def last(self, steps: str = "", **env: str) -> dict:
        """The facts of the flow after these steps."""
        return self.run(STEPS=steps, **env)[-1]


@pytest.fixture(params=["own", "3.9"])
def paper(request, tmp_path):
    return Paper(tmp_path, python39() if request.param == "3.9" else sys.executable)


def pythonpath(facts):
    return facts["environ"]["PYTHONPATH"].split(os.pathsep)


@pytest.mark.parametrize("variables", [{}, {"PYTHONSAFEPATH": "1"}, {"PYTHONUNBUFFERED": "1", "PYTHONOPTIMIZE": "1"}])
def test_it_is_what_the_interpreter_makes_of_the_module_but_for_pythonpath(paper, variables):
    """With PYTHONSAFEPATH no folder is on the path by itself, and a stock worker puts it there by PYTHONPATH too."""
    (own,), (ours,) = paper.run("-m", "prefect.engine", **variables), paper.run(**variables)
    assert pythonpath(ours) == [str(paper.start), *pythonpath(own)]
    for facts in (own, ours):
        del facts["pid"], facts["environ"]["PYTHONPATH"]
    assert ours == own
    assert ours["ours"] == []


@pytest.mark.parametrize("module", ["_ctypes", "site"])
def test_a_python_that_lacks_what_others_have_runs_flows_too(paper, module):
    """One built without libffi, and the `site` of an old virtualenv."""
    (paper.given / f"{module}.py").write_text("raise ImportError('not built')" if module == "_ctypes" else "")
    (facts,) = paper.run()
    assert pythonpath(facts) == [str(paper.start), str(paper.given)]


def test_an_interpreter_below_a_folder_whose_name_is_no_text_runs_flows_too(tmp_path):
    python = tmp_path / os.fsdecode(b"caf\xe9") / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (facts,) = Paper(tmp_path, str(python)).run()
    assert facts["orig_argv"] == facts["shown"][0] == [str(python), "-m", "prefect.engine"]


def test_the_folder_of_the_steps_is_first_on_both_paths_and_the_one_before_is_on_none(paper):
    clone, added = str(paper.start / "clone"), str(paper.folder / "added")
    steps = f"import sys, os; sys.path.insert(0, {added!r}); sys.path.append('lib'); output['directory'] = 'clone'"
    before, after = paper.run(STEPS=steps)
    assert pythonpath(after) == [clone, added, f"{clone}/lib", str(paper.given)]
    assert after["path"][:4] == pythonpath(after)
    assert str(paper.start) not in after["path"]
    assert after["path"][4:] == [entry for entry in before["path"] if entry not in (str(paper.start), str(paper.given))]
    assert (after["cwd"], after["pid"]) == (clone, before["pid"])


def test_steps_see_the_pythonpath_that_the_run_was_given_and_may_change_it(paper):
    steps = """
import os
output["directory"] = os.getcwd()
os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"] + ":/more:" + os.path.dirname(os.__file__)
"""
    # the standard library would be searched before its own place
    assert pythonpath(paper.last(steps)) == [str(paper.start), str(paper.given), "/more"]


def test_a_step_may_choose_the_folder_by_stepping_into_it(paper):
    clone = str(paper.start / "clone")
    facts = paper.last(f"import os; os.chdir({clone!r})")
    assert (facts["cwd"], pythonpath(facts)[0], facts["path"][0]) == (clone, clone, clone)


def test_a_folder_below_the_home_is_entered_as_by_a_stock_worker(paper):
    clone = str(paper.start / "clone")
    facts = paper.last("output['directory'] = '~/clone'", HOME=str(paper.start))
    assert (facts["cwd"], pythonpath(facts)[0]) == (clone, clone)


def test_where_the_steps_bring_no_code_it_is_fetched_from_the_deployments_own_path(paper):
    (paper.folder / "place" / "code").mkdir(parents=True)
    (paper.folder / "place" / "code" / "flow.py").touch()
    place = str(paper.folder / "place")
    assert "code" in paper.last("pass", PLACE=place)["files"]
    assert "code" not in paper.last("output['directory'] = 'clone'", PLACE=place)["path"]
    (paper.start / "clone" / "code" / "flow.py").write_text("mine")
    paper.last("output['directory'] = 'clone'", PLACE=place)
    assert (paper.start / "clone" / "code" / "flow.py").read_text() == "mine"


def test_a_flow_that_runs_steps_of_its_own_changes_nothing_of_its_process(paper):
    flow = """
from prefect.deployments.steps.core import run_steps
import asyncio
steps = run_steps("output['directory'] = '/'")
try:
    steps.send(None)
except StopIteration as done:
    assert done.value == {"directory": "/"}
print(json.dumps(facts()))
"""
    for steps in ("", "output['directory'] = 'clone'"):
        *_, before, after = paper.run(STEPS=steps, FLOW=flow)
        assert (before["path"], pythonpath(before)) == (after["path"], pythonpath(after))


def test_a_prefect_without_that_function_is_the_plain_engine_and_one_log_line(paper):
    (paper.given / "prefect" / "deployments" / "steps" / "core.py").write_text("")
    flows = paper.given / "prefect" / "flows.py"
    text = flows.read_text().replace("import run_steps\n", "import __name__ as name\n")
    flows.write_text(text.replace("await run_steps(steps, deployment=deployment)", "{}"))
    facts = paper.last("any")
    assert facts["cwd"] == str(paper.start)
    assert paper.errors.splitlines() == ["this prefect has no run_steps: what a flow starts does not find its code"]


@pytest.mark.parametrize("change", ["a-1.0.dist-info", "a.pth", None])
def test_after_steps_that_installed_a_package_the_engine_is_executed_anew_with_all_that_it_needs(paper, change):
    site = subprocess.run(
        [paper.python, "-c", "import site; print(site.getusersitepackages())"],
        env={"PYTHONUSERBASE": str(paper.folder / "user")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    Path(site).mkdir(parents=True)
    (Path(site) / "there-0.9.dist-info").mkdir()
    made = f"open({str(Path(site) / change)!r}, 'w').write('')" if change else f"open({site!r} + '/x.py', 'w')"
    said = paper.run(STEPS=f"{made}; output['directory'] = 'clone'", PREFECT__CONTROL_PORT="1")
    clone = str(paper.start / "clone")
    before, after = said[0], said[-1]
    assert (after["pid"], after["cwd"], pythonpath(after)) == (before["pid"], clone, [clone, str(paper.given)])
    assert after["path"][0] == clone
    if change is None:
        assert len(said) == 2
        assert "PREFECT__FLOW_ENTRYPOINT" not in after["environ"]
    else:
        assert said[1:-1] == ["flushed"]
        assert after["environ"]["PREFECT__FLOW_ENTRYPOINT"] == "code/flow.py:go"
        assert after["control"] == ["1"]
        assert after["shown"][0] == [paper.python, "-m", "prefect.engine"]
