"""Edges of the house: parts are handed in, no part sets the attributes of another, and a broad except says why."""

import ast
import re
from collections.abc import Iterator

from tests.unit.test_house import trees
from tests.unit.test_imports import modules, within

#: what takes attributes by its own rules, by module: Celery's and kombu's hooks, a timer's `daemon`, the `auth` of a
#: requests session, and what each thread has for itself (threading.local)
LIBRARY = {
    "flowfleet.api.transport.connection": {"self._http"},
    "flowfleet.api.transport.session": {"self._local"},
    "workers.deployers.subprocess_run": {"timer"},
    "workers.lifecycle.consumer": {"qos", "channel", "consumer", "celery_state"},
}
SETTING = {"setattr", "delattr"}
BROAD = {"Exception", "BaseException"}
#: what a broad except may guard
GUARDED = re.compile(r"#.*\b(loop|process|forked child|user's code)\b")
#: how many there may be
MOST_BROAD = 17
DICTS = re.compile(r"\b(dict|Mapping)\[str, Any\]")

SAMPLE = """
@dataclass
class Record:
    name: str

class Part:
    def __init__(self, other): self.other = other
    def begin(self):
        "Begin."
        self.begun = True
    def count(self): self.number += 1
    def tell(self, sent):
        self.told = sent
        self.told_at = now()
    def reach(self, other, record: Record):
        other.begun = self.other.begun = True
        other.number += 1
        del other.begun
        setattr(other, "begun", True)
        object.__setattr__(other, "begun", True)
        object.__setattr__(self, "begun", True)
        for other.number in range(3): pass
        record.name = "record"
        made = Record("made")
        made.name = "set"
    def shared(self) -> dict[str, Any]: return {}
    def make(self, record, **given):
        Part(**self.shared())
        Part(**shared)
        Part(**given)
        Record(**json.loads(record))
        Record(**self.shared())
        record.note(**self.shared())
"""


def is_record(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(each) for each in node.decorator_list)


def classes(*trees: ast.Module) -> list[ast.ClassDef]:
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def records(*trees: ast.Module) -> set[str]:
    """The dataclasses of these modules."""
    return {node.name for node in classes(*trees) if is_record(node)}


def known_records(function: ast.FunctionDef, of: set[str]) -> set[str]:
    """The names in a function that are records for certain: by annotation, or because it makes them."""
    names = {each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg) and _text(each.annotation) in of}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _text(node.value.func) in of:
            names |= {_text(target) for target in node.targets}
    return names


def _text(node: ast.AST | None) -> str:
    return "" if node is None else ast.unparse(node)


def foreign(tree: ast.Module) -> list[str]:
    """The objects whose attributes are set or deleted by others: all but `self`, `cls` and the module's own records."""
    own, own_records = {"self", "cls"}, records(tree)
    found = []
    allowed = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            allowed |= dict.fromkeys(map(id, ast.walk(function)), known_records(function, own_records) | own)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            target = _text(node.value)
        elif isinstance(node, ast.Call) and _text(node.func).strip("_").rpartition(".__")[2] in SETTING:
            target = _text(node.args[0])
        else:
            continue
        if target not in allowed.get(id(node), own):
            found.append(target)
    return found


def setters(tree: ast.Module) -> list[str]:
    """The methods that do nothing but set one attribute: constructor argument, event or a part of a bigger step."""
    found = []
    for node in classes(tree):
        for method in node.body:
            if not isinstance(method, ast.FunctionDef) or method.name == "__init__":
                continue
            only = method.body[-1]
            if len(method.body) - (ast.get_docstring(method) is not None) == 1 and isinstance(
                only, ast.Assign | ast.AugAssign | ast.AnnAssign
            ):
                targets = only.targets if isinstance(only, ast.Assign) else [only.target]
                if [isinstance(each, ast.Attribute) for each in targets] == [True]:
                    found.append(method.name)
    return found


def of_dicts(*trees: ast.Module) -> set[str]:
    """The functions and methods that return a dictionary of anything."""
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {node.name for node in nodes if DICTS.search(_text(node.returns))}


def wired(*trees: ast.Module) -> list[str]:
    """The calls that make a part, and take its arguments out of a dictionary.

    A part is made by the name of its class, by `cls` or by `super().__init__`. It may be given the `**` of the method
    around the call. A record may also be given what was read (JSON, a row). But no class is given what a function of
    ours has put together as a dictionary of anything.
    """
    made, dicts = {node.name for node in classes(*trees)} | {"cls", "super().__init__"}, of_dicts(*trees)
    may_be_read = records(*trees)
    of_records = {id(method) for node in classes(*trees) if is_record(node) for method in node.body}
    found = []
    for function in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        options = _text(function.args.kwarg).partition(":")[0]
        read = may_be_read | ({"cls"} if id(function) in of_records else set())
        for call in ast.walk(function):
            name = _text(call.func) if isinstance(call, ast.Call) else ""
            name = name if name in made else name.rpartition(".")[2]
            for value in [each.value for each in call.keywords if each.arg is None] if name in made else ():
                maker = _text(value.func).rpartition(".")[2] if isinstance(value, ast.Call) else ""
                if maker in dicts or (name not in read and _text(value) != options):
                    found.append(f"{name}(**{_text(value)})")
    return found


def broad(tree: ast.Module) -> Iterator[int]:
    """The lines of the handlers that catch everything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            names = {_text(each) for each in ast.walk(node.type) if isinstance(each, ast.Name)} if node.type else BROAD
            if names & BROAD:
                yield node.lineno


def test_what_the_house_forbids_is_seen():
    tree = ast.parse(SAMPLE)
    assert foreign(tree).count("self.other") == 1
    assert foreign(tree).count("other") == 6
    assert len(foreign(tree)) == 7
    assert setters(tree) == ["begin", "count"]
    assert wired(tree) == [
        "Part(**self.shared())",
        "Part(**shared)",
        "Record(**self.shared())",
    ]
    handlers = ("except:", "except Exception:", "except (OSError, BaseException) as exc:", "except OSError:")
    assert [len(list(broad(ast.parse(f"try: pass\n{each} pass")))) for each in handlers] == [1, 1, 1, 0]


def test_nobody_sets_an_attribute_of_another_part():
    found = {name: set(foreign(tree)) for name, tree in trees().items() if not within(name, "workers.shim")}
    assert {name: targets for name, targets in found.items() if targets} == LIBRARY


def test_no_method_only_sets_an_attribute():
    assert {name: names for name, tree in trees().items() if (names := setters(tree))} == {}


def test_parts_get_their_arguments_by_name_and_not_out_of_a_dictionary():
    assert wired(*trees().values()) == []


def test_a_broad_except_is_rare_and_says_what_it_guards():
    found = [
        (name, line, modules()[name].read_text().splitlines()[line - 1])
        for name, tree in trees().items()
        for line in broad(tree)
    ]
    assert len(found) <= MOST_BROAD
    assert [each for each in found if not GUARDED.search(each[2])] == []
