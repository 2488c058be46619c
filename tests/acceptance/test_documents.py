"""Documents: what they say of Prefect's worker and of our own options is complete and true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowfleet.settings import PollerSettings, UpSettings, WorkerSettings, options_of
from tests.needs import need

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MAP = (ROOT / "docs" / "from-prefect-worker.md").read_text(encoding="utf-8")
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"])
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def help_of(*command: str) -> str:
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:], "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_the_map_names_each_flag_of_the_stock_worker():
    need((BIN / "prefect").exists(), "prefect: install the extra demo")
    flags = set(FLAG.findall(help_of("prefect", "worker", "start"))) - {"--help"}
    # typer and cyclopts make a negative of each switch; it is named with the positive, or is the default
    flags -= {flag for flag in flags if flag.startswith(("--no-", "--empty-"))}

    assert {flag for flag in flags if flag not in MAP} == set()


def test_the_map_names_each_setting_of_the_stock_worker():
    settings = pytest.importorskip("prefect.settings.models.worker")
    names = {f"PREFECT_WORKER_{name.upper()}" for name in settings.WorkerSettings.model_fields if name != "webserver"}
    names |= {f"PREFECT_WORKER_WEBSERVER_{name.upper()}" for name in settings.WorkerWebserverSettings.model_fields}

    assert {name for name in names if name not in MAP} == set()


def test_the_map_names_each_job_variable_of_a_process_pool():
    stock = pytest.importorskip("prefect.workers.process")
    variables = stock.ProcessWorker.get_default_base_job_template()["variables"]["properties"]

    assert {name for name in variables if f"`{name}`" not in MAP} == set()


def test_each_variable_of_ours_that_a_document_names_exists():
    known = {"FLOWFLEET_RUN_ID", "FLOWFLEET_CLAIM"}
    for settings in (PollerSettings, WorkerSettings, UpSettings):
        for _, option in options_of(settings):
            known |= {option.variable, option.file_variable}

    for page in PAGES:
        named = set(re.findall(r"FLOWFLEET_[A-Z]+(?:_[A-Z]+)*", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


def test_each_flag_of_our_commands_that_a_document_shows_exists():
    shown = re.compile(r"\b(prefect )?((?:poller|worker) start|flowfleet (?:up|status|doctor|config))((?: [^`\n]+)?)")
    helps: dict[str, str] = {}
    checked = 0
    for page in PAGES:
        for stock, program, rest in shown.findall(page.read_text(encoding="utf-8")):
            if stock:
                continue
            known = helps.setdefault(program, help_of(*program.split()))
            for flag in FLAG.findall(rest):
                checked += 1
                assert re.search(rf"{flag}\b", known), f"{page.name}: {program} {flag}"

    assert checked > 10
