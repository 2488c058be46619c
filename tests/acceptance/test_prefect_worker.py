"""One flow under a stock `prefect worker` and under ours: what it finds around it, and what its children find."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.test_documents import MAP, rows_of
from tests.needs import need
from tests.rest import TERMINAL
from tests.waiting import until
from tests.world import BIN

PROJECT = Path(__file__).resolve().parents[1] / "flow_project"
HEADING = "What a flow finds around it"
#: both workers are started like this, so that it shows what of it reaches a run
START = ("sh", "-c", """trap "" HUP; umask 027; ulimit -Sn 777; exec 9</etc/passwd; exec nice -n 3 "$@" """, "start")
STEPS = "prefect.deployments.steps"
STOCK, OURS = "prefect worker", "flowfleet"
#: where the code of a run comes from, and what else is its own
CASES = {
    "cloned": lambda place, _: {
        "pull_steps": [
            {f"{STEPS}.git_clone": {"id": "clone", "repository": f"file://{place}", "branch": "main"}},
            {f"{STEPS}.set_working_directory": {"directory": "{{ clone.directory }}"}},
        ]
    },
    "copied": lambda place, _: {"pull_steps": None, "path": str(place)},
    "in a folder": lambda place, pool: {
        "pull_steps": [{f"{STEPS}.run_shell_script": {"script": f"cp -r {place}/. ."}}],
        "job_variables": {"working_dir": pool, "env": {"GREETING": "Dear {{ customer }}, {{ $HOME }}"}},
    },
}
#: what differs from run to run
OWN = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"0x[0-9a-f]+", "0x"),
    (r"(tracker_fd|pipe_handle)=\d+", r"\1=N"),
)


@pytest.fixture
def repository(tmp_path):
    """The flow's project as a Git repository."""
    folder = tmp_path / "repository"
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    git = ("git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "one")):
        subprocess.run([*git, *words], check=True)
    return folder


@pytest.fixture
def pools(fleet, tmp_path):
    """A stock worker and ours, started in the same way in the same folder, each with a pool of its own."""
    need((BIN / "prefect").exists(), "prefect: install the extra demo")
    own = dict.fromkeys(("SSL_CERT_FILE", "VIRTUAL_ENV"))
    fleet.env |= {**own, "PYTHONPATH": str(tmp_path / "given"), "GREETING": "from the worker"}
    start, stock = tmp_path / "start", f"{fleet.pool}-stock"
    for folder in (stock, fleet.pool):
        (start / folder).mkdir(parents=True)
    (start / "prefect.toml").write_text("[results]\npersist_by_default = true\n")
    fleet.start_poller()
    fleet.start_worker(before=START, cwd=start)
    options = ("--pool", stock, "--type", "process", "--name", "worker")
    env = {name: None for name in fleet.environment() if name.startswith("FLOWFLEET_")}
    fleet.part("stock", [*START, str(BIN / "prefect"), "worker", "start", *options], env=env, cwd=start)
    until(lambda: fleet.api.pool(stock), 60, "the pool of the stock worker", pause=0.3)
    return {STOCK: stock, OURS: fleet.pool}


def seen(fleet, run_id, name):
    """What a run and its children have seen, by who has seen what, with words for what is the run's own."""
    text = notes_of(fleet, run_id).read_text()
    folder = Path(json.loads(text)["the flow"]["folder"])
    root = folder.parent if folder.name.startswith("repository") else folder
    text = text.replace(str(root), "ROOT").replace(name, "NAME")
    for pattern, word in OWN:
        text = re.sub(pattern, word, text)
    return {(who, *key): value for who, facts in json.loads(text).items() for key, value in flat(facts)}


def all_ended(fleet, runs):
    """Whether all have; a run that a stock worker has not even started is made again."""
    for (_, executor), run in runs.items():
        if executor == STOCK and fleet.api.state(run[0])["type"] == "CRASHED" and not notes_of(fleet, run[0]).exists():
            # "database is locked" of SQLite, at a write that a stock worker does not give up
            run[0] = fleet.create_run(run[2])
    return all(fleet.api.state(run_id)["type"] in TERMINAL for run_id, *_ in runs.values())


def notes_of(fleet, run_id):
    return fleet.notes_folder / f"{run_id}.json"


def flat(facts):
    for name, value in facts.items():
        if name == "environ":
            # a switch of Prefect's settings is written in two ways
            yield from (((key,), {"True": "true", "False": "false"}.get(text, text)) for key, text in value.items())
        elif isinstance(value, dict):
            yield from (((name, key), inner) for key, inner in value.items())
        else:
            yield (name,), value


def test_a_flow_and_its_children_find_the_same_under_both_but_for_what_the_map_says(fleet, pools, repository):
    runs = {}
    for case, facts in CASES.items():
        for executor, pool in pools.items():
            name = f"{case}-{pool}"
            deployment = fleet.api.deploy(name, pool, "flow.py:go", str(repository), **facts(repository, pool))
            runs[case, executor] = [fleet.create_run(deployment), name, deployment]
    until(lambda: all_ended(fleet, runs), 180, "all runs to end", pause=0.5)
    for run_id, *_ in runs.values():
        fleet.wait_state(run_id, "Completed")

    differences, told = set(), []
    for case in CASES:
        theirs, ours = (seen(fleet, *runs[case, executor][:2]) for executor in (STOCK, OURS))
        assert ours["files", "here"] == theirs["files", "here"]
        assert ours["a script", "deep"] == theirs["a script", "deep"] == "ourpackage.deep"
        # libraries of the flow itself open files, such as certificates, in the same moment
        assert not [name for name in ours["the flow", "descriptors"] if name == "/etc/passwd" or ":" in name]
        for key in sorted({*theirs, *ours}):
            if ours.get(key) != theirs.get(key) and key[1] != "descriptors":
                differences.add(key[1])
                told.append(f"{case}: {': '.join(key)}\n    {STOCK}: {theirs.get(key)}\n    {OURS}: {ours.get(key)}")
    print("\n".join(told))
    documented = {name for row in rows_of(MAP, HEADING) for name in re.findall(r"`([^`]+)`", row[0])}
    # a host on which the worker may make no control group has no difference there
    assert differences | {"cgroup"} == documented
