"""Unused settings: a pool at Prefect 1, a label at Prefect 3."""

import logging

import pytest

from flowfleet.api.unused import tell_unused
from flowfleet.settings.classes import PollerSettings, WorkerSettings
from flowfleet.settings.layers import resolve


@pytest.mark.parametrize(
    ("cls", "flags", "environ", "backend", "told"),
    [
        (WorkerSettings, {"pool": ("p",)}, {}, "prefect1", ["--pool"]),
        (WorkerSettings, {}, {"FLOWFLEET_WORK_QUEUES": "q"}, "prefect1", ["--work-queue"]),
        (PollerSettings, {"pool": ("p",), "work-queue": ("q",)}, {}, "prefect1", ["--pool", "--work-queue"]),
        (WorkerSettings, {"label": ("l",), "hostname-label": False}, {}, "prefect3", ["--label", "--hostname-label"]),
        (PollerSettings, {"label": ("l",)}, {}, "prefect3", ["--label"]),
        (WorkerSettings, {"label": ("l",)}, {}, "prefect1", []),
        (WorkerSettings, {"pool": ("p",)}, {}, "prefect3", []),
    ],
)
def test_what_was_given_for_the_other_api_is_named(caplog, cls, flags, environ, backend, told):
    settings = resolve(cls, flags, environ, {})
    with caplog.at_level(logging.WARNING):
        tell_unused(settings, backend)
    assert [record.setting for record in caplog.records] == told
    assert all(record.use_instead and record.given_by for record in caplog.records)
