"""Direction of imports: read from the source, so that nothing can go round it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("flowfleet", "poller", "workers")
#: user code that is shipped: what `up --demo` runs is no part of the product's own modules
EXAMPLES = ("flowfleet.up.flows", "flowfleet.up.examples")
#: rooms of flowfleet by floor; one may use its own floor and those below
FLOORS = {"errors": 0, "flow_run": 1, "api": 2, "ledger": 2, "broker": 2, "monitor": 3, "control": 3}


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for package in PACKAGES:
        root = folder(package)
        for path in sorted(root.rglob("*.py")):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path) -> Iterator[str]:
    """All that a module imports, at its top or inside functions, as absolute dotted names."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def is_example(module: str) -> bool:
    return module.startswith(EXAMPLES)


def is_joiner(module: str) -> bool:
    """The few places where the halves may meet."""
    return module.endswith(".cli") or module.startswith(("flowfleet.agents", "flowfleet.up"))


def edges() -> list[tuple[str, str]]:
    return [
        (module, target)
        for module, path in modules().items()
        if not is_example(module)
        for target in imports(module, path)
    ]


def test_the_reader_of_imports_sees_every_package():
    assert {module.partition(".")[0] for module, _ in edges()} == set(PACKAGES)
    assert len(modules()) > 30


def test_poller_and_workers_never_import_each_other():
    wrong = [
        (module, target)
        for module, target in edges()
        if {module.partition(".")[0], target.partition(".")[0]} == {"poller", "workers"}
    ]
    assert wrong == []


def test_only_the_joiners_of_flowfleet_know_the_two_halves():
    wrong = [
        (module, target)
        for module, target in edges()
        if module.startswith("flowfleet")
        and target.partition(".")[0] in ("poller", "workers")
        and not is_joiner(module)
    ]
    assert wrong == []


def test_rooms_of_flowfleet_use_only_their_own_floor_and_those_below():
    wrong = []
    for module, target in edges():
        if not (module.startswith("flowfleet.") and target.startswith("flowfleet.")):
            continue
        here, there = module.split(".")[1], target.split(".")[1]
        if here in FLOORS and there in FLOORS and FLOORS[there] > FLOORS[here]:
            wrong.append((module, target))
    assert wrong == []


def test_api_and_ledger_do_not_know_each_other():
    wrong = [
        (module, target)
        for module, target in edges()
        if (module.startswith("flowfleet.api") and target.startswith("flowfleet.ledger"))
        or (module.startswith("flowfleet.ledger") and target.startswith("flowfleet.api"))
    ]
    assert wrong == []


def test_the_product_never_imports_prefect():
    assert [(module, target) for module, target in edges() if target.partition(".")[0] == "prefect"] == []


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


@pytest.mark.parametrize("package", PACKAGES)
def test_the_first_line_of_each_module_says_what_it_is(package):
    silent = []
    for module, path in modules().items():
        if module.partition(".")[0] == package and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            silent.append(module)
    assert silent == []
