"""Environments: which Python a run gets, and flow folders full of names that are also ours or our libraries'."""

import os
import site
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second environment with prefect in it (by the first one's packages) and a console script of its own."""
    folder = tmp_path_factory.mktemp("other") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "first.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    script = folder / "bin" / "only-here"
    script.write_text(f"#!{folder}/bin/python\nimport sys\nprint('only-here in', sys.prefix)\n")
    script.chmod(0o755)
    return folder


WHERE = """
    @flow
    def go():
        note("prefix:" + sys.prefix)
        note("venv:" + os.environ.get("VIRTUAL_ENV", "-"))
        note("path:" + os.environ["PATH"].split(os.pathsep)[0])
        with open("/proc/self/stat") as stat:
            note("nice:" + stat.read().rpartition(")")[2].split()[16])
"""


def test_two_environments_on_one_worker(fleet, other):
    fleet.start_poller()
    fleet.start_worker("worker", "--nice", "2", slots=2)
    first = fleet.create_run(fleet.deploy(WHERE))
    command = f"{other}/bin/python -m prefect.engine"
    second = fleet.create_run(fleet.deploy(WHERE, job_variables={"command": command, "nice": 5}))
    for run in (first, second):
        fleet.wait_state(run, "Completed", seconds=90)

    assert f"prefix:{sys.prefix}" in fleet.words(first)
    assert f"prefix:{other}" in fleet.words(second)
    assert f"nice:{os.nice(0) + 2}" in fleet.words(first)
    assert f"nice:{os.nice(0) + 5}" in fleet.words(second)


def test_a_flow_calls_the_console_script_of_the_environment_that_python_names(fleet, other):
    fleet.start_poller()
    fleet.start_worker("worker", "--python", f"{other}/bin/python")
    run, _ = fleet.run(
        WHERE
        + """
        import subprocess
        said = subprocess.run(["only-here"], capture_output=True, text=True, check=True).stdout.strip()
        note(said.replace(" ", "_"))
""",
        "Completed",
        seconds=90,
    )
    words = fleet.words(run)
    assert f"only-here_in_{other}" in words
    assert {f"prefix:{other}", f"venv:{other}", f"path:{other}/bin"} <= set(words)


def test_what_a_pull_step_installs_is_there_for_the_flow_and_what_was_imported_before_is_imported_anew(fleet, other):
    """A step installs a project in place, and a newer version of a package that Prefect has loaded by then."""
    (packages,) = other.glob("lib/python3*/site-packages")
    install = f"""
import pathlib
packages = pathlib.Path({str(packages)!r})
if (packages / "newer-2.dist-info").exists():
    raise SystemExit
(packages / "steps.pth").write_text({str(fleet.folder / "project")!r})
(packages / "newer-2.dist-info").mkdir()
(packages / "steps_loaded.py").write_text("VERSION = 2")
"""
    (fleet.folder / "project").mkdir()
    (fleet.folder / "project" / "installed_in_place.py").touch()
    (packages / "steps_loaded.py").write_text("VERSION = 1")
    (packages / "early.pth").write_text("import steps_loaded\n")
    (fleet.folder / "install.py").write_text(install)
    shell = "prefect.deployments.steps.run_shell_script"
    steps = [{shell: {"script": f"{other}/bin/python {fleet.folder}/install.py"}}]
    fleet.start_poller()
    fleet.start_worker("worker", "--python", f"{other}/bin/python", env={"PREFECT_LOGGING_LEVEL": "INFO"})
    deployment = fleet.deploy("""
        import installed_in_place, steps_loaded

        @flow
        def go():
            note(f"version:{steps_loaded.VERSION}")
            note("flow:" + os.environ.get("PREFECT__FLOW_ENTRYPOINT", "-"))
    """)
    facts = fleet.api.call("GET", f"/deployments/{deployment}")
    fleet.api.call("PATCH", f"/deployments/{deployment}", {"pull_steps": [*steps, *facts["pull_steps"]]})
    run = fleet.create_run(deployment)
    fleet.wait_state(run, "Completed", seconds=90)
    assert fleet.words(run) == ["version:2", "flow:flow.py:go"]
    assert any("All deployment steps completed" in line for line in fleet.api.logs(run))
    again = fleet.create_run(deployment)
    fleet.wait_state(again, "Completed", seconds=90)
    # nothing new was installed, so nothing was executed anew
    assert fleet.words(again)[1] == "flow:-"


def test_what_steps_install_once_more_for_the_hooks_of_a_crashed_run_starts_its_flow_no_second_time(fleet, other):
    (packages,) = other.glob("lib/python3*/site-packages")
    script = f"rm -rf {packages}/again-1.dist-info\nmkdir {packages}/again-1.dist-info"
    fleet.start_poller()
    fleet.start_worker("worker", "--python", f"{other}/bin/python")
    deployment = fleet.deploy("""
        def crashed(flow, flow_run, state):
            note("crash-hook")

        @flow(on_crashed=[crashed])
        def go():
            note("ran")
            time.sleep(600)
    """)
    facts = fleet.api.call("GET", f"/deployments/{deployment}")
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": script}}, *facts["pull_steps"]]
    fleet.api.call("PATCH", f"/deployments/{deployment}", {"pull_steps": steps})
    run = fleet.create_run(deployment)
    fleet.wait_note(run, "ran", seconds=120)
    fleet.kill_engine(run)
    fleet.wait_empty(120)
    assert fleet.words(run) == ["ran", "crash-hook"]
    assert fleet.api.history(run)[-2:] == ["Running", "Crashed"]


def test_a_python_without_prefect_is_refused_with_a_sentence(fleet, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    done = fleet.command("worker", "start", "--pool", fleet.pool, "--python", str(bare / "bin" / "python"), seconds=60)
    assert done.returncode == 2, done.stderr
    assert str(bare) in done.stderr
    assert "prefect" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_folder_full_of_our_names_commands_start_and_a_flow_folder_may_have_its_own(fleet, tmp_path):
    """Each module there breaks its importer; in the flow's folder each is the flow's."""
    hostile = tmp_path / "hostile"
    for name in ("workers/__init__.py", "poller.py", "rich.py", "flowfleet.py", "celery.py", "redis.py"):
        path = hostile / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise RuntimeError('the wrong {name} was imported')\n")
    for argv in (["flowfleet", "status", "--json"], ["worker", "--help"], ["poller", "--help"], ["worker", "list"]):
        done = fleet.command(*argv, cwd=hostile, seconds=60)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
    fleet.start_poller(cwd=hostile)
    fleet.start_worker(cwd=hostile)
    run, _ = fleet.run(
        """
        import poller, workers

        @flow
        def go():
            note("poller-is-" + getattr(poller, "WHOSE", "ours"))
            note("workers-is-" + getattr(workers, "WHOSE", "ours"))
        """,
        "Completed",
        seconds=90,
        files=dict.fromkeys(("workers/__init__.py", "poller.py", "rich.py"), "WHOSE = 'mine'\n"),
    )
    assert fleet.words(run) == ["poller-is-mine", "workers-is-mine"]
