"""A run's environment, interpreter and command, and what its host is and can do."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest

import workers.host
from flowfleet.api import traits
from flowfleet.api.client import Job, RunState, StateType
from flowfleet.errors import SettingsError, StartFailed
from flowfleet.settings.classes import WorkerSettings
from workers.environment import EnvironmentLayers, absolute_paths, parse_pairs, worker_layer
from workers.host import Abilities, Host
from workers.interpreter import choose_interpreter, interpreter_of, prefect_version, resolve_command


def test_plain_mode_switches_everything_off():
    plain = Abilities.probe({"FLOWFLEET_PLAIN": "1"})
    assert plain == Abilities.plain()
    assert not any(dataclasses.astuple(plain))
    assert len(plain.missing()) == 3


def test_a_kernel_that_refuses_pidfd_costs_only_what_needs_it(monkeypatch):
    def refuse(*_args):
        raise PermissionError

    if not hasattr(os, "pidfd_open"):
        pytest.skip("this platform has no pidfd")
    monkeypatch.setattr(os, "pidfd_open", refuse)
    abilities = Abilities.probe({})
    assert (abilities.pidfd, abilities.pidfd_info) == (False, False)
    assert "The end of a run is seen within a second, not at once." in abilities.missing()


def test_the_host_is_the_same_at_each_look_and_can_be_injected():
    host = Host.probe({})
    assert host == Host.probe({})
    assert host.machine_id
    assert host.boot_id
    injected = Host.probe({"FLOWFLEET_MACHINE_ID": "m", "FLOWFLEET_BOOT_ID": "b"})
    assert (injected.machine_id, injected.boot_id, injected.name) == ("m", "b", host.name)


@pytest.mark.parametrize(
    ("pid_ns", "environ", "told"),
    [
        (4026531836, {}, True),
        (None, {}, True),
        (4026532001, {}, False),
        (4026532001, {"FLOWFLEET_MACHINE_ID": "m"}, True),
    ],
    ids=["a host", "a mac", "a container", "a container that was given an id"],
)
def test_a_container_does_not_say_which_machine_it_is_since_its_id_may_be_its_images(
    monkeypatch, pid_ns, environ, told
):
    monkeypatch.setattr(workers.host, "_pid_ns", lambda: pid_ns)
    assert bool(Host.probe(environ).fingerprint) is told


STATE = RunState(run_id="r", run_name="n", kind=StateType.PENDING, name="Submitted")


@pytest.fixture
def python(tmp_path):
    """Makes programs that answer as an interpreter with this prefect, each in a folder of its own."""

    def make(name: str, version: str | None) -> Path:
        path = tmp_path / name / "python"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{f'echo {version}' if version else 'exit 1'}\n")
        path.chmod(0o755)
        return path

    return make


def on_path(*pythons: Path) -> dict[str, str]:
    return {"PATH": os.pathsep.join(str(path.parent) for path in pythons)}


def test_later_layers_win_and_run_and_claim_are_set():
    layers = EnvironmentLayers(
        base={"A": "worker", "B": "worker", "C": "worker", "PYTHONPATH": "/old"},
        import_paths=("/one", "/two"),
        extra={"B": "env", "C": "env", "D": "env"},
    )
    job = Job(state=STATE, env={"C": "job", "D": "job", "E": "job"}, engine_env={"D": "forced"})
    env = layers.build(job, claim="c")
    assert env == {
        "A": "worker",
        "B": "env",
        "C": "job",
        "D": "forced",
        "E": "job",
        "PYTHONPATH": os.pathsep.join(["/one", "/two", "/old"]),
        "FLOWFLEET_RUN_ID": "r",
        "FLOWFLEET_CLAIM": "c",
    }


def test_what_a_run_carries_elsewhere_has_nothing_of_this_host():
    layers = EnvironmentLayers(
        base={"A": "worker", "B": "worker", "PYTHONPATH": "/old"}, import_paths=("/one",), extra={"B": "env"}
    )
    job = Job(
        state=STATE, env={"C": "job", "D": None}, engine_defaults={"C": "x", "E": "engine"}, engine_env={"F": "!"}
    )
    assert layers.of_run(job, claim="c") == {
        "B": "env", "C": "job", "E": "engine", "F": "!", "FLOWFLEET_RUN_ID": "r", "FLOWFLEET_CLAIM": "c",
    }  # fmt: skip
    assert layers.build(job, claim="c") == {**layers.of_host(), **layers.of_run(job, claim="c")}


def test_a_variable_of_the_worker_that_is_none_takes_those_below_away_and_none_above():
    layers = EnvironmentLayers(
        base={"HOST": "h", "PYTHONPATH": "/p", "OWN": "h"}, extra=dict.fromkeys(("HOST", "PYTHONPATH", "LOW", "OWN"))
    )
    job = Job(state=STATE, env={"OWN": "run"}, engine_defaults={"LOW": "default"})
    assert layers.build(job, claim="c") == {"OWN": "run", "FLOWFLEET_RUN_ID": "r", "FLOWFLEET_CLAIM": "c"}
    assert layers.of_host() == {}


def test_nothing_of_our_own_leaks_into_a_run():
    env = worker_layer({"FLOWFLEET_REDIS": "secret", "PATH": "/bin", "X": "1"}, python=None, own_prefix=None)
    assert env == {"PATH": "/bin", "X": "1"}


def test_python_brings_its_environment_and_takes_the_workers_off():
    environ = {
        "PATH": os.pathsep.join(["/own/bin", "/active/bin", "/usr/bin", "/x/bin"]),
        "VIRTUAL_ENV": "/active",
        "PYTHONHOME": "/somewhere",
    }
    env = worker_layer(environ, python=Path("/x/bin/python"), own_prefix=Path("/own"))
    assert env["PATH"] == os.pathsep.join(["/x/bin", "/usr/bin"])
    assert env["VIRTUAL_ENV"] == "/x"
    assert "PYTHONHOME" not in env


def test_pairs_are_read_and_a_broken_one_is_named_without_its_value():
    assert parse_pairs(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    with pytest.raises(SettingsError, match="--env SECRET is no pair"):
        parse_pairs(["SECRET"])


def choose(env: dict[str, str], backend: str = "prefect3", python: Path | None = None, fallback: Path | None = None):
    other = str(fallback) if fallback else None
    return choose_interpreter(env, python=python, traits=traits.of(backend), fallback=other)


@pytest.mark.parametrize(
    ("first", "backend", "fitting"),
    [
        (None, "prefect3", "3.4.1"),
        ("2.20.1", "prefect3", "3.4.0"),
        ("2.20.1", "prefect1", "0.15.13"),
        ("2.20.1", "prefect1", "1.4.1"),
    ],
)
def test_the_first_python_on_path_that_has_a_prefect_of_the_right_age_is_chosen(python, first, backend, fitting):
    chosen = python("b", fitting)
    found = choose(on_path(python("a", first), chosen, python("c", "3.9.9")), backend)
    assert (found.path, found.prefect) == (str(chosen), fitting)


def test_no_prefect_or_one_that_does_not_fit_is_one_sentence_and_the_fallback_is_the_last_one_asked(python):
    env, fallback = on_path(python("a", None)), python("own", "3.1.0")
    with pytest.raises(SettingsError, match="no Python on PATH has prefect"):
        choose(env)
    assert choose(env, fallback=fallback).path == str(fallback)

    with pytest.raises(SettingsError, match=r"has prefect 2\.20\.1, which does not fit"):
        choose({"PATH": "/bin"}, python=python("old", "2.20.1"))
    assert choose({"PATH": "/bin"}, "prefect1", python=python("fits", "1.4.1")).prefect == "1.4.1"


def test_a_host_that_has_only_the_newer_prefect_is_told_what_to_do_for_the_older_api(python):
    new = python("a", "3.4.1")
    with pytest.raises(SettingsError) as failure:
        choose(on_path(new), "prefect1", fallback=new)
    assert str(failure.value) == (
        f"{new} has prefect 3.4.1, which does not fit an API of Prefect 1: "
        "name the Python of an environment with prefect 1 by --python"
    )
    assert failure.value.exit_code == 2


def test_a_python_that_is_named_from_here_is_found_by_runs_that_start_elsewhere(python, tmp_path, monkeypatch):
    python("a", "3.4.1")
    monkeypatch.chdir(tmp_path)
    given = WorkerSettings(python=Path("a/python"), deploy="process")
    layers, named = interpreter_of(given, {"PATH": "/bin"}, traits.of("prefect3"))
    _, found = interpreter_of(WorkerSettings(deploy="process"), {"PATH": "a:/bin"}, traits.of("prefect3"))
    assert (named.path, found.path) == (f"{tmp_path}/a/python", f"{tmp_path}/a/python")
    assert layers.base["PATH"].split(os.pathsep)[0] == f"{tmp_path}/a"


@pytest.mark.parametrize("version", [None, ""])
def test_a_given_python_without_prefect_is_named(python, tmp_path, version):
    with pytest.raises(SettingsError, match="has no prefect"):
        choose({"PATH": "/bin"}, python=python("a", version))
    with pytest.raises(SettingsError, match="is no program that can be run"):
        choose({"PATH": "/bin"}, python=tmp_path / "nothing")


def test_import_paths_are_made_absolute_where_the_worker_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = ("/abs", "rel", "~", "~/flows", "a b")
    assert absolute_paths(paths, tmp_path) == (
        *("/abs", str(tmp_path / "rel"), "/home/me", "/home/me/flows", str(tmp_path / "a b")),
    )
    with pytest.raises(SettingsError, match="--import-path names a home"):
        absolute_paths(("~nobody-of-this-name/x",), tmp_path)


def test_prefect_is_asked_for_without_being_imported(tmp_path):
    """A module that says that it was imported would spoil the answer."""
    metadata = "Metadata-Version: 2.1\nName: prefect\nVersion: 3.7.7\n"
    files = {"prefect/__init__.py": "print('imported')", "prefect-3.7.7.dist-info/METADATA": metadata}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert prefect_version(sys.executable, {"PYTHONPATH": str(tmp_path)}) == "3.7.7"


@pytest.mark.parametrize("way", ["importlib_metadata", "pkg_resources"])
def test_an_interpreter_older_than_our_own_is_asked_as_it_understands_it(tmp_path, way):
    """Prefect 1 runs on Python 3.7, where the standard library cannot tell the version."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['importlib.metadata'] = None")
    (tmp_path / "importlib_metadata.py").write_text(
        "version = {'prefect': '1.2.3'}.get" if way == "importlib_metadata" else "raise ImportError"
    )
    (tmp_path / "pkg_resources.py").write_text(
        "class get_distribution:\n    version = '1.2.3'\n    def __init__(self, name): assert name == 'prefect'"
    )
    assert prefect_version(sys.executable, {"PYTHONPATH": str(tmp_path)}) == "1.2.3"


def test_a_command_is_looked_up_in_the_path_of_the_run(python):
    inside = python("a", "3.0")

    def resolved(*words):
        return resolve_command(words, on_path(inside), "/other/python")

    assert resolved("python", "-m", "x") == (str(inside), "-m", "x")
    assert resolved("python3", "-m", "x") == ("/other/python", "-m", "x")
    assert resolved("./run.sh", "a") == ("./run.sh", "a")
    with pytest.raises(StartFailed, match="no program 'uv' on the PATH of the run"):
        resolved("uv", "run")
    with pytest.raises(StartFailed, match="empty"):
        resolved()
