"""Hooks: the times that must fit, and the program that runs them in the flow's interpreter."""

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import workers
from flowfleet.api import traits
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings
from workers.runs.hooks import check_times

FILE = Path(workers.__file__).parent / "shim" / "prefect3_hooks.py"
RUN = SimpleNamespace(state=SimpleNamespace(name="Cancelling"))
LOGGER = logging.getLogger("hooks")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("prefect3_hooks", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_grace_that_leaves_hooks_no_time_is_refused_where_there_are_hooks():
    settings = WorkerSettings(redis="redis://h", fleet="f", host="h")
    check_times(settings, traits.of("prefect3"))
    long = replace(settings, stop_grace=240.0)
    check_times(long, traits.of("prefect1"))
    with pytest.raises(SettingsError, match=r"--stop-grace 240 is too long: .* give less than 240"):
        check_times(long, traits.of("prefect3"))


def test_hooks_of_both_kinds_are_called_by_name_and_one_that_fails_is_told(program, caplog):
    called = []

    def plain(flow, flow_run, state):
        called.append(("plain", flow, flow_run, state.name))

    async def waits(*, state, flow_run, flow):
        called.append(("waits", flow, flow_run, state.name))

    class Fails:
        def __call__(self, flow, flow_run, state):
            raise KeyError(state.name)

    caplog.set_level(logging.INFO)
    assert [program.call(hook, "flow", RUN, LOGGER) for hook in (plain, waits, Fails())] == [True, True, False]
    assert called == [(name, "flow", RUN, "Cancelling") for name in ("plain", "waits")]
    assert "An error was encountered while running hook 'Fails'" in caplog.messages
