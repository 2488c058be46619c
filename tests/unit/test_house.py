"""House: nothing works at import, and the wheel says truly what is in it."""

import ast
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

from flowfleet import errors
from tests.unit.test_imports import folder, is_example, modules, parsed, within
from tests.waiting import SCALE

WATCH = """
import importlib, json, sys
FORBIDDEN = {"socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.mkdir", "os.remove"}
seen = []
def hook(event, arguments):
    if event in FORBIDDEN:
        seen.append([event, str(arguments)[:200]])
# what our dependencies do at their own import is not ours to judge: they come first
import celery, kombu, redis, requests, click, rich.console, prometheus_client, psutil
import kombu.transport.redis, celery.worker, celery.bin.worker
sys.addaudithook(hook)
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps({"seen": seen, "prefect": "prefect" in sys.modules}))
"""


def test_importing_the_whole_product_does_no_work_and_brings_no_prefect():
    names = [name for name in modules() if not is_example(name) and not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, json.dumps(names)],
        capture_output=True,
        text=True,
        timeout=60 * SCALE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"seen": [], "prefect": False}


#: what runs in the interpreter of the flows, or in a shim that is forked there: the whole folder
SHIM = folder("workers.shim")


@pytest.mark.parametrize("name", sorted(path.name for path in SHIM.glob("*.py")))
def test_the_shim_needs_python_3_9_its_standard_library_and_its_own_folder_whatever_that_is_called(name):
    tree = ast.parse((SHIM / name).read_text(), feature_version=(3, 9))
    absolute, relative = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            relative.append((node.level, node.module, *(alias.name for alias in node.names)))
        elif isinstance(node, ast.ImportFrom):
            absolute.add(node.module.partition(".")[0])
    assert absolute <= sys.stdlib_module_names
    for level, module, *names in relative:
        assert (level, module) == (1, None), f"only `from . import …`, not {module}"
        assert all((SHIM / f"{each}.py").is_file() for each in names)


#: how long a file and a function may be, in lines
LONGEST_FILE = 350
LONGEST_FUNCTION = 60
#: the two APIs have the same parts, told apart by their packages
TWINS = {"flowfleet.api.prefect1", "flowfleet.api.prefect3"}
#: a Protocol with fewer methods is met by classes that do not mean it
TELLING = 3


@cache
def trees() -> dict[str, ast.Module]:
    """The parsed modules of the product by their names; what `up --demo` runs is the user's."""
    return {name: tree for name, tree in parsed().items() if not is_example(name)}


def classes() -> list[tuple[str, ast.ClassDef]]:
    """The public classes with their modules."""
    return [
        (name, node)
        for name, tree in trees().items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


def aliases() -> list[tuple[str, str]]:
    """Names like those of classes that are given to types, with their modules."""
    return [
        (name, target.id)
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and re.match(r"[A-Z][a-z]", target.id)
    ]


def test_a_public_class_name_has_one_meaning_in_the_whole_house():
    places: dict[str, list[str]] = {}
    for module, name in [*((module, node.name) for module, node in classes()), *aliases()]:
        places.setdefault(name, []).append(module)
    several = {name: found for name, found in places.items() if len(found) > 1}
    assert {
        name: found for name, found in several.items() if {module.rpartition(".")[0] for module in found} != TWINS
    } == {}


def test_files_and_functions_are_short():
    files = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    functions = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in files.items() if lines > LONGEST_FILE} == {}
    assert {name: lines for name, lines in functions.items() if lines > LONGEST_FUNCTION} == {}


def uses(tree: ast.Module, library: str, *functions: str) -> bool:
    """Whether a module uses one of these functions of a library module, by whatever name it imports either."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == library
    }
    return any(
        (isinstance(node, ast.Attribute) and node.attr in functions and ast.unparse(node.value) in names)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == library
            and any(alias.name in functions for alias in node.names)
        )
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize(
    ("file", "library", "functions"),
    [
        ("flowfleet.signals", "signal", ("signal", "set_wakeup_fd")),
        ("flowfleet.wakeup", "os", ("pipe", "pipe2", "eventfd")),
        ("workers.deployers.fork_client", "socket", ("socketpair",)),  # its channels to other processes
    ],
)
def test_what_is_done_in_one_file_is_done_nowhere_else_outside_the_shim(file, library, functions):
    users = {name for name, tree in trees().items() if uses(tree, library, *functions)}
    assert {name for name in users if not within(name, "workers.shim")} == {file}


@pytest.mark.parametrize("text", ["import os as x\nx.pipe()", "from os import pipe as x", "import os\ny = os.pipe"])
def test_a_function_is_found_by_whatever_name_it_is_imported(text):
    assert uses(ast.parse(text), "os", "pipe")
    assert not uses(ast.parse(text), "os", "read")


def drawn() -> set[Path]:
    """The files and folders that the picture of the house in docs/design.md shows, from the packages on."""
    text = (Path(__file__).parents[2] / "docs" / "design.md").read_text()
    picture = text.partition("## The house")[2].partition("\n## ")[0]
    found, way = set(), []
    for line in re.findall(r"^ {4}( *)(\S+)  +\S.*$", picture, flags=re.MULTILINE):
        depth = len(line[0]) // 4
        way[depth:] = [line[1].rstrip("/")]
        found.add(Path(*way) if line[1].endswith("/") else Path(*way).with_suffix(".py"))
    return found


def test_the_house_is_drawn_as_it_is_room_by_room():
    root = folder("flowfleet").parent
    rooms = {Path("flowfleet"), Path("poller"), Path("workers")}
    for room in ("flowfleet", "workers"):
        rooms |= {path.relative_to(root) for path in (root / room).iterdir() if path.name[0] not in "_."}
    rooms |= {
        path.relative_to(root) for path in (root / "flowfleet" / "api").iterdir() if (path / "__init__.py").exists()
    }
    assert drawn() == rooms


def public(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {each.name: each for each in node.body if isinstance(each, ast.FunctionDef) and each.name[0] != "_"}


def has(node: ast.ClassDef) -> set[str]:
    """The names of its methods and attributes, those that the constructor sets among them."""
    names = set(public(node))
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            names.add(each.attr)
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            names.add(each.target.id)
    return names


def is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


def described() -> dict[tuple[str, str], set[str]]:
    """Which methods of a class a Protocol describes: those of each that it fulfils."""
    protocols = [set(public(node)) for _, node in classes() if is_protocol(node) and len(public(node)) >= TELLING]
    return {
        (module, node.name): set().union(*(names for names in protocols if names <= has(node)))
        for module, node in classes()
        if not is_protocol(node)
    }


def test_the_protocols_and_those_that_fulfil_them_are_found():
    found = {name for (_, name), methods in described().items() if methods}
    assert {"Prefect1", "Prefect3", "SubprocessRun", "ExternalRun", "ProcessDeployer", "PidfdHandle"} <= found


def test_a_public_method_is_described_once_by_its_protocol_or_else_by_itself():
    by_protocol = described()
    silent, twice = [], []
    for module, node in classes():
        of_protocol = by_protocol.get((module, node.name), set())
        for name, method in public(node).items():
            if ast.get_docstring(method) is None and name not in of_protocol:
                silent.append(f"{module}.{node.name}.{name}")
            if ast.get_docstring(method) is not None and name in of_protocol:
                twice.append(f"{module}.{node.name}.{name}")
    assert silent == []
    assert twice == []


#: where it may be asked which Prefect it is: elsewhere a trait says what differs (flowfleet/api/traits.py)
KNOWERS = ("flowfleet.api", "flowfleet.settings", "flowfleet.flow_run")
BACKENDS = {"prefect1", "prefect3"}
LOOK_UPS = {"get", "pop", "setdefault"}


def asks_which_prefect(tree: ast.AST) -> list[int]:
    """The lines that compare a backend, look something up by it, or have its name in a `match` or as a key."""

    def is_backend(part: ast.AST) -> bool:
        return any(
            (isinstance(node, ast.Name) and node.id == "backend")
            or (isinstance(node, ast.Attribute) and node.attr == "backend")
            or (isinstance(node, ast.Constant) and node.value in BACKENDS)
            for node in ast.walk(part)
        )

    def asking(node: ast.AST) -> list[ast.AST]:
        parts = [getattr(node, field, None) for field in ("left", "subject", "pattern", "slice")]
        parts += [*getattr(node, "comparators", ()), *getattr(node, "keys", ())]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOOK_UPS:
            parts += node.args[:1]
        return [part for part in parts if part is not None]

    return [part.lineno for node in ast.walk(tree) for part in asking(node) if is_backend(part)]


def test_nobody_outside_the_api_asks_which_prefect_it_is():
    asked = {name: asks_which_prefect(tree) for name, tree in trees().items() if not within(name, *KNOWERS)}
    assert {name: lines for name, lines in asked.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "row.offer.backend == other",
        "found = 0.0 if self._api.backend != 'prefect1' else 1.0",
        "backend in ('a', 'b')",
        "name in ('prefect1', 'auto')",
        "match api.backend:\n    case _: pass",
        "match which:\n    case 'prefect3': pass",
        "MAJORS = {'prefect3': ('3',)}",
        "MAJORS[backend]",
        "MAJORS.get(backend)",
    ],
)
def test_a_question_which_prefect_it_is_is_seen(code):
    assert asks_which_prefect(ast.parse(code))


@pytest.mark.parametrize(
    "code", ["traits.of(route.backend).by_labels", "Offer(backend=api.backend)", "{'backend': backend}", "f(backend)"]
)
def test_a_backend_that_is_passed_on_asks_nothing(code):
    assert asks_which_prefect(ast.parse(code)) == []


def names_of(node: ast.AST) -> set[str]:
    """The names that a piece of code uses or makes, words of its texts among them (fields, options, states)."""
    names = {getattr(node, field, None) for field in ("id", "attr", "name", "arg", "module")}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        names |= set(re.findall(r"\w+", node.value)) if len(node.value) < 80 else set()
    return {part for name in names if isinstance(name, str) for part in name.split(".")}


def mentioned() -> list[tuple[str, str]]:
    """What docstrings and comments of the product set in backticks as a name of ours, and the files that they name."""
    found = []
    for module, path in modules().items():
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
                found += [
                    (module, name)
                    for name in re.findall(
                        r"`([a-z_]+(?:\.[a-z_]\w*)+|[a-z]+(?:_[a-z]+)+|[A-Z][a-z]\w+)`", token.string
                    )
                ]
                found += [(module, name) for name in re.findall(r"\b(\w+\.py)\b", token.string)]
    return found


#: Prefect's own
FOREIGN = {"set_state"}


def test_what_docstrings_and_comments_name_is_there():
    names = FOREIGN | {part for tree in trees().values() for node in ast.walk(tree) for part in names_of(node)}
    files = {path.name for path in modules().values()}
    dead = [
        (module, name)
        for module, name in mentioned()
        if not (name in files if name.endswith(".py") else set(name.split(".")) <= names)
    ]
    assert dead == []


@pytest.mark.parametrize("module", ["poller.cli", "workers.cli", "flowfleet.cli"])
def test_a_command_on_windows_is_one_sentence_that_names_the_remedy(module):
    code = f"import sys; sys.modules['fcntl'] = None; from {module} import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60 * SCALE, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: flowfleet needs Linux or macOS, so on Windows run it inside WSL.\n"


def test_the_drawn_tree_of_errors_is_the_real_one():
    drawn, path = {}, []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"([ │├└─]*)(\w+)  +\S", line):
            depth = len(found[1]) // 4
            drawn[found[2]] = path[depth - 1] if depth else "Exception"
            path[depth:] = [found[2]]
    real = {
        name: each.__bases__[0].__name__
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, Exception)
    }
    assert drawn == real


def test_the_distribution_has_the_three_commands():
    scripts = {
        script.name: script.value
        for script in importlib.metadata.entry_points(group="console_scripts")
        if script.dist is not None and script.dist.name == "flowfleet"
    }
    assert scripts == {
        "poller": "poller.cli:main",
        "worker": "workers.cli:main",
        "flowfleet": "flowfleet.cli:main",
    }
