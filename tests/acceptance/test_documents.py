"""Documents: what they say of Prefect's worker and agents and of our own options is complete and true."""

import inspect
import os
import re
from pathlib import Path

import pytest

import flowfleet
import poller
import workers
from flowfleet import Agent, DockerAgent, LocalAgent
from flowfleet.settings.classes import PollerSettings, UpSettings, WorkerSettings
from flowfleet.settings.option import options_of
from tests import prefect1_env, processes
from tests.needs import need
from tests.world import BIN

ROOT = Path(__file__).resolve().parents[2]
MAP = (ROOT / "docs" / "from-prefect-worker.md").read_text(encoding="utf-8")
AGENTS = (ROOT / "docs" / "from-prefect-agent.md").read_text(encoding="utf-8")
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"])
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def help_of(*command: str) -> str:
    """Of one of the programs beside our Python, or of any by its path."""
    return processes.run(BIN / command[0], *command[1:], "--help", env=os.environ, check=True).stdout


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


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def rooms() -> dict[str, Path]:
    """Where our packages are: beside the tests, or installed."""
    return {package.__name__: Path(package.__path__[0]) for package in (flowfleet, poller, workers)}


def placed(path: Path) -> Path:
    room, *rest = path.resolve().relative_to(ROOT.resolve()).parts
    return rooms()[room].joinpath(*rest) if room in rooms() else path


def test_each_page_and_place_that_a_document_links_to_is_there():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, place = target.partition("#")
            there = placed(page.parent / name) if name else page
            assert there.exists(), f"{page.name}: {target}"
            assert not place or place in anchors(there), f"{page.name}: {target}"


def test_each_variable_of_ours_that_a_document_names_exists():
    known = {"FLOWFLEET_RUN_ID", "FLOWFLEET_CLAIM", "FLOWFLEET_TEST_SEED"}
    for settings in (PollerSettings, WorkerSettings, UpSettings):
        for option in options_of(settings).values():
            known |= {option.variable, option.file_variable}
    known |= set(re.findall(r"\$\{(FLOWFLEET_[A-Z_]+)", (ROOT / "compose" / "compose.yaml").read_text()))

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
            if program not in helps:
                helps[program] = help_of(*program.split())
            known = helps[program]
            for flag in FLAG.findall(rest):
                checked += 1
                assert re.search(rf"{flag}\b", known), f"{page.name}: {program} {flag}"

    assert checked > 10


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, as cells."""
    text = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows[2:] if row[0] not in ("method", "---")]


@pytest.mark.parametrize("words", [("local", "start"), ("local", "install"), ("docker", "start")])
def test_the_map_of_agents_names_each_flag_of_the_stock_agent(words):
    help_text = help_of(str(prefect1_env.python()), "-m", "prefect", "agent", *words)  # of Prefect 1's own command
    flags = set(FLAG.findall(help_text)) - {"--help"}
    assert len(flags) > 5
    assert {flag for flag in flags if f"`{flag}`" not in AGENTS} == set()


def test_each_flag_that_the_map_of_agents_gives_for_ours_exists():
    helps = help_of("poller", "start") + help_of("worker", "start")
    given = {flag for row in rows_of(AGENTS, "Flags") for flag in FLAG.findall(row[1])}
    assert len(given) > 10
    assert {flag for flag in given if not re.search(rf"{flag}\b", helps)} == set()


def test_what_the_map_of_agents_looks_for_in_the_logs_is_what_we_log():
    ours = "".join(path.read_text() for room in rooms().values() for path in room.rglob("*.py"))
    rows = rows_of(AGENTS, "What to look for in the logs")
    told = {told for row in rows for told in re.findall(r"`([^`]+)`", row[0] if row[1] == "the same" else row[1])}
    assert len(told) > 10
    # an outage's message begins with the neighbour's name
    told = {re.sub("^(Redis|the Prefect API) ", "", each) for each in told}
    assert {each for each in told if each not in ours} == set()


def test_the_map_of_agents_names_each_method_and_argument_of_our_classes():
    for cls in (Agent, LocalAgent, DockerAgent):
        methods = {name for name, value in vars(cls).items() if not name.startswith("_") and inspect.isroutine(value)}
        methods -= {"given", "worker_settings", "become"}  # for our own parts
        missing = {name for name in methods if f"`{name}(" not in AGENTS and f".{name}(" not in AGENTS}
        assert missing == set(), cls.__name__
        arguments = set(inspect.signature(cls).parameters) - {"options", "more"}
        assert {name for name in arguments if f"`{name}`" not in AGENTS} == set(), cls.__name__


def test_each_method_that_the_map_of_agents_names_exists():
    named = {name for row in rows_of(AGENTS, "Classes") for name in re.findall(r"`(\w+)\(", row[0])}
    assert len(named) > 10
    assert {name for name in named if not any(hasattr(cls, name) for cls in (LocalAgent, DockerAgent))} == set()
