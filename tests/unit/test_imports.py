"""Direction of imports: read from the source, so that nothing can go round it."""

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGES = ("flowfleet", "poller", "workers")
#: user code that is shipped: what `up --demo` runs is no part of the product's own modules
EXAMPLES = ("flowfleet.up.flows",)
#: where rooms may meet that do not know each other
JOINERS = ("flowfleet.cli", "flowfleet.agents", "flowfleet.up", "flowfleet.testing")

#: rooms by floor: each may use its own floor and those before it (docs/design.md draws them)
WORKERS = (
    ("workers.shim", "workers.exit", "workers.stop", "workers.deployment"),
    (
        "workers.state",
        "workers.host",
        "workers.host_cgroups",
        "workers.host_limits",
        "workers.background",
        "workers.environment",
    ),
    ("workers.interpreter", "workers.metrics", "workers.containers", "workers.deployers", "workers.reporting"),
    ("workers.runs",),
    ("workers.lifecycle",),
    ("workers.page",),
    ("workers.service",),
    ("workers.cli",),
)
FLOWFLEET = (
    ("flowfleet.printable", "flowfleet.log_lines", "flowfleet.logs"),
    tuple(
        f"flowfleet.{name}"
        for name in ("certificate", "errors", "flow_run", "guard", "retry", "wakeup", "signals", "failpoints")
    ),
    ("flowfleet.ledger", "flowfleet.broker"),
    ("flowfleet.settings",),
    ("flowfleet.api",),
    ("flowfleet.page",),
    ("flowfleet.monitor",),
    ("flowfleet.commands",),
)
API = (
    (
        "flowfleet.api.transport",
        "flowfleet.api.client",
        "flowfleet.api.container_ask",
        "flowfleet.api.life",
        "flowfleet.api.backlog",
        "flowfleet.api.presence",
        "flowfleet.api.found",
        "flowfleet.api.traits",
        "flowfleet.api.unused",
        "flowfleet.api.settings_files",
    ),
    ("flowfleet.api.prefect1", "flowfleet.api.prefect3"),
    ("flowfleet.api.detect",),
    ("flowfleet.api.connect",),
    ("flowfleet.api.own_variables",),
)


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for package in PACKAGES:
        root = folder(package)
        for path in sorted(root.rglob("*.py")):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def parsed() -> dict[str, ast.Module]:
    """The modules of the product and of its examples by their names."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}


def imports(module: str, path: Path) -> Iterator[str]:
    """All that a module imports, at its top or inside functions, as absolute dotted names."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(parsed()[module]):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            if base not in PACKAGES:  # `from workers import page` means the page, and not the whole package
                yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def is_example(module: str) -> bool:
    return module.startswith(EXAMPLES)


def within(name: str, *rooms: str) -> bool:
    """Whether a module (or a name in it) lies in one of these rooms."""
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def joins(module: str) -> bool:
    return module in PACKAGES or within(module, *JOINERS)


@cache
def edges() -> tuple[tuple[str, str], ...]:
    return tuple(
        (module, target)
        for module, path in modules().items()
        if not is_example(module)
        for target in imports(module, path)
    )


@dataclass(frozen=True)
class Row:
    """One direction: what it says, what it forbids, and an import that it would catch."""

    says: str
    forbids: Callable[[str, str], bool]
    example: tuple[str, str]

    def broken_by(self, found: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        return [(module, target) for module, target in found if self.forbids(module, target)]


def floors(*table: tuple[str, ...]) -> Iterator[Row]:
    for number, rooms in enumerate(table[:-1]):
        later = tuple(room for floor in table[number + 1 :] for room in floor)
        yield Row(
            f"{' and '.join(rooms)} know nothing of the floors behind",
            lambda module, target, rooms=rooms, later=later: within(module, *rooms) and within(target, *later),
            (f"{rooms[-1]}.some", f"{table[number + 1][0]}.other"),
        )


def never(room: str, *others: str) -> Row:
    return Row(
        f"{room} never imports {' or '.join(others)}",
        lambda module, target: within(module, room) and within(target, *others),
        (f"{room}.some", others[-1]),
    )


def only(room: str, *allowed: str) -> Row:
    return Row(
        f"{room} uses of our own only {', '.join(allowed)} and itself",
        lambda module, target: (
            within(module, room) and within(target, *PACKAGES) and not within(target, room, *allowed)
        ),
        (f"{room}.some", "flowfleet.flow_run"),
    )


def alone(library: str, *users: str) -> Row:
    return Row(
        f"{library} is imported by {' and '.join(users) or 'nobody'} alone",
        lambda module, target: within(target, library) and not within(module, *users),
        ("workers.service", f"{library}.app"),
    )


DIRECTIONS = (
    *floors(*WORKERS),
    *floors(*FLOWFLEET),
    *floors(*API),
    never("poller", "workers"),
    never("workers", "poller"),
    never("flowfleet.ledger", "flowfleet.api"),
    never("flowfleet.api", "flowfleet.ledger"),
    never("flowfleet.api.prefect1", "flowfleet.api.prefect3"),
    never("flowfleet.api.prefect3", "flowfleet.api.prefect1"),
    never("flowfleet.up", "flowfleet.agents"),
    never("flowfleet.agents", "flowfleet.up"),
    never("workers.runs", "workers.deployers"),
    never("workers.reporting", "workers.deployers"),
    only("workers.shim"),
    only("flowfleet.local", "flowfleet.errors", "flowfleet.logs", "flowfleet.retry"),
    alone("celery", "flowfleet.broker", "workers.lifecycle.consumer"),
    alone("kombu", "flowfleet.broker", "workers.lifecycle.consumer"),
    alone("prefect"),
    Row(
        "only the joiners of flowfleet know the two halves",
        lambda module, target: (
            within(module, "flowfleet") and within(target, "poller", "workers") and not joins(module)
        ),
        ("flowfleet.ledger.claims", "workers.service"),
    ),
)


def test_the_reader_of_imports_sees_every_package():
    assert {module.partition(".")[0] for module, _ in edges()} == set(PACKAGES)
    assert len(modules()) > 100


@pytest.mark.parametrize("row", DIRECTIONS, ids=lambda row: row.says)
def test_imports_go_in_one_direction(row):
    assert row.broken_by(edges()) == []


@pytest.mark.parametrize("row", DIRECTIONS, ids=lambda row: row.says)
def test_an_import_in_the_other_direction_is_seen(row):
    assert row.broken_by((*edges(), row.example)) == [row.example]


@pytest.mark.parametrize(("package", "table"), [("workers", WORKERS), ("flowfleet", FLOWFLEET), ("flowfleet.api", API)])
def test_each_room_stands_on_a_floor(package, table):
    depth = package.count(".") + 2
    rooms = {".".join(module.split(".")[:depth]) for module in modules() if within(module, package)} - {package}
    placed = {room for floor in table for room in floor}
    free = {*JOINERS, "flowfleet.local"} if package == "flowfleet" else set()
    assert placed | free == rooms


def test_no_module_needs_itself_by_way_of_others():
    known = modules()
    needs = {module: set() for module in known}
    for module, target in edges():
        if not joins(module):  # `flowfleet/__init__.py` offers the agents, and imports them when they are asked for
            needs[module] |= {target} & known.keys() - {module, module.rpartition(".")[0]}
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way, module))
        if module not in done:
            for target in sorted(needs[module]):
                walk(target, (*way, module))
            done.add(module)

    for module in sorted(needs):
        walk(module, ())


def taken_names() -> set[str]:
    """Module names that belong to the standard library or to what we depend on."""
    names = set(sys.stdlib_module_names)
    tops = importlib.metadata.packages_distributions()
    wanted = {
        re.split(r"[\s\[<>=!;(]", requirement, maxsplit=1)[0].lower()
        for requirement in importlib.metadata.requires("flowfleet") or []
    }
    names |= wanted
    for top, distributions in tops.items():
        if {distribution.lower() for distribution in distributions} & wanted:
            names.add(top)
    return names


def test_no_module_is_named_like_a_dependency_or_a_standard_module():
    taken = taken_names()
    assert {"celery", "redis", "select", "queue"} <= taken
    assert [module for module in modules() if module.rpartition(".")[2] in taken] == []


def test_the_first_line_of_each_module_says_what_it_is():
    assert [module for module, tree in parsed().items() if not ast.get_docstring(tree)] == []
