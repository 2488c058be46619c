"""Templates: a pool's base job template, filled with the job variables of deployment and run, as Prefect fills it.

Three passes, each as that of a stock worker (source: prefect 3.9.1, workers.base and utilities.templating):

1. what the pool wrote: `{{ name }}` becomes the job variable, `{{ $NAME }}` the worker's own variable, else nothing;
2. block references, 3. variable references: everywhere, in job variables too.

What comes from a job variable is never read as a template: its author may be another than the pool's, and not all that
stands in the worker's environment is for everybody.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

from flowfleet.errors import UnsupportedRun

_PLACEHOLDER = re.compile(r"{{\s*([\w.\-\[\]$]+)\s*}}")
_VARIABLE = "prefect.variables."
_BLOCK = "prefect.blocks."
#: stands for a name that has no value: its key is left out, within a text it is empty (as Prefect does it)
_UNSET: Any = object()


class References(Protocol):
    """The server's things that a template or a job variable may name; each method raises `KeyError` for what is gone.

    Blocks are given as their data, secrets included.
    """

    def variable(self, name: str) -> Any:
        """The value of a Prefect variable."""

    def block(self, kind: str, name: str) -> Mapping[str, Any]:
        """The data of the block with this name and the slug of its type."""

    def block_by_id(self, document_id: str) -> Mapping[str, Any]:
        """The data of the block with this id."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A filled job configuration, and what its reader should know of it."""

    configuration: dict[str, Any]
    #: sentences for the run's log page
    remarks: tuple[str, ...] = ()


def layered(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lay job variables over each other: `env` key by key, dotted keys (`env.FOO`) into what they name, else whole.

    Within one layer the nested form wins over the dotted one, and a later layer wins over both.
    """
    whole: dict[str, Any] = {}
    for layer in layers:
        whole = merge(whole, layer)
    nested = spread(whole)
    for layer in layers[1:]:
        own = spread({key: value for key, value in layer.items() if "." not in key})
        for key, value in layer.items():
            if "." in key and _look_up(own, key) is _UNSET:
                _put(nested, key.split("."), value)
    return nested


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the job variables of one layer over another: `env` key by key, everything else as a whole."""
    merged = {**under, **over}
    if isinstance(under.get("env"), Mapping) and isinstance(over.get("env"), Mapping):
        merged["env"] = {**under["env"], **over["env"]}
    return merged


def spread(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with dotted keys (`env.FOO`) as nested ones; in one layer the nested form wins over the dotted."""
    nested: dict[str, Any] = {}
    for key, value in variables.items():
        if "." in key:
            _put(nested, key.split("."), value)
    for key, value in variables.items():
        if "." not in key:
            nested[key] = _deep(nested.get(key), value)
    return nested


def _put(place: dict[str, Any], path: list[str], value: Any) -> None:
    *steps, last = path
    for step in steps:
        inner = place.get(step)
        # a copy: the tables of deployment and run are kept for other runs
        place[step] = dict(inner) if isinstance(inner, Mapping) else {}
        place = place[step]
    place[last] = value


def _deep(under: Any, over: Any) -> Any:
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    return {**under, **{key: _deep(under.get(key), value) for key, value in over.items()}}


def fill(
    template: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    *,
    references: References,
    environ: Mapping[str, str],
    context: Mapping[str, Any],
) -> Filled:
    """Fill the template's job configuration with its own defaults and the layers over them.

    `environ` is the worker's environment as a template may read it, and `context` what a `name` may use
    (`ctx.flow_run.name`). Raises `UnsupportedRun` naming the reference to a block that cannot be resolved.
    """
    configuration = deepcopy(dict(template.get("job_configuration") or {}))
    properties = (template.get("variables") or {}).get("properties") or {}
    defaults = {
        name: deepcopy(schema["default"])
        for name, schema in properties.items()
        if isinstance(schema, Mapping) and schema.get("default") is not None
    }
    if defaults.get("env"):
        # the pool wrote both
        configuration["env"] = merge({"env": configuration.get("env")}, {"env": defaults["env"]})["env"]
    given = deepcopy(layered(layers))
    filled = _each(configuration, "", _Template({**defaults, **given, **context}, environ).text)
    if isinstance(configuration.get("env"), Mapping) and given.get("env"):
        filled["env"] = merge({"env": filled["env"]}, {"env": given["env"]})["env"]
    resolver = _Resolver(references)
    resolved = _each(filled, "", resolver.blocks, resolver.referred)
    resolved = _each(resolved, "", resolver.variables)
    if isinstance(resolved.get("name"), str):
        resolved["name"] = _in_context(resolved["name"], context)
    return Filled(configuration=dict(resolved), remarks=tuple(resolver.remarks))


def _each(
    item: Any,
    where: str,
    text: Callable[[str, str], Any],
    table: Callable[[Mapping[str, Any], str], Any] = lambda _table, _where: _UNSET,
) -> Any:
    """The item with each text in it replaced, and each table for which `table` has something else."""
    if isinstance(item, Mapping):
        instead = table(item, where)
        if instead is not _UNSET:
            return instead
        at = {key: f"{where}, {key}" if where else f"job variable {key}" for key in item}
        filled = {key: _each(value, at[key], text, table) for key, value in item.items()}
        return {key: value for key, value in filled.items() if value is not _UNSET}
    if isinstance(item, list):
        entries = [_each(value, where, text, table) for value in item]
        return [value for value in entries if value is not _UNSET]
    return text(item, where) if isinstance(item, str) else item


@dataclass(frozen=True, repr=False)
class _Template:
    """The replacer of what a pool's template names; a text that is one name as a whole becomes the value itself."""

    values: Mapping[str, Any]
    environ: Mapping[str, str]

    def text(self, text: str, _where: str) -> Any:
        whole = _PLACEHOLDER.fullmatch(text)
        if whole and not whole[1].startswith((_BLOCK, _VARIABLE, "$")):
            return _look_up(self.values, whole[1])
        return _PLACEHOLDER.sub(self._within, text)

    def _within(self, match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith((_BLOCK, _VARIABLE)):
            return match[0]
        if name.startswith("$"):
            return self.environ.get(name.lstrip("$"), "")
        value = _look_up(self.values, name)
        return "" if value is _UNSET else str(value)


class _Resolver:
    """The replacer of references to what the server keeps; each thing is asked for once."""

    def __init__(self, references: References) -> None:
        self._references = references
        self._known: dict[tuple[str, ...], Any] = {}
        self.remarks: list[str] = []

    def blocks(self, text: str, where: str) -> Any:
        whole = _PLACEHOLDER.fullmatch(text)
        if whole and whole[1].startswith(_BLOCK):
            return self._block(whole[1], where)

        def within(match: re.Match[str]) -> str:
            if not match[1].startswith(_BLOCK):
                return match[0]
            value = self._block(match[1], where)
            if isinstance(value, Mapping | list):
                raise UnsupportedRun(
                    f"{where}: {match[0]} is a {'table' if isinstance(value, Mapping) else 'list'}, which cannot stand "
                    "within a text: name one of its values"
                )
            return str(value)

        return _PLACEHOLDER.sub(within, text)

    def _block(self, reference: str, where: str) -> Any:
        asked = f"asked for by {{{{ {reference} }}}}"
        kind, _, rest = reference.removeprefix(_BLOCK).partition(".")
        name, _, path = rest.partition(".")
        if not name:
            raise UnsupportedRun(f"{where}: {{{{ {reference} }}}} names no block: write prefect.blocks.TYPE.NAME")
        data = self._ask(
            ("block", kind, name),
            lambda: self._references.block(kind, name),
            f"{where}: there is no block {name!r} of type {kind!r}, {asked}",
        )
        alone = len(data) == 1 and "value" in data
        if alone and path != "value" and not path.startswith(("value.", "value[")):
            data = data["value"]
        value = _look_up(data, path) if path else data
        if value is _UNSET:
            raise UnsupportedRun(f"{where}: the block {name!r} of type {kind!r} has no {path}, {asked}")
        return deepcopy(value)

    def referred(self, table: Mapping[str, Any], where: str) -> Any:
        reference = table.get("$ref")
        document = reference.get("block_document_id") if isinstance(reference, Mapping) else None
        if not document:
            return _UNSET
        data = self._ask(
            ("block id", str(document)),
            lambda: self._references.block_by_id(str(document)),
            f"{where}: there is no block with the id {document}, asked for by a $ref",
        )
        return deepcopy(dict(data))

    def _ask(self, key: tuple[str, ...], ask: Callable[[], Any], missing: str) -> Any:
        if key not in self._known:
            try:
                self._known[key] = ask()
            except KeyError as error:
                raise UnsupportedRun(f"{missing}: make it or correct the reference") from error
        return self._known[key]

    def variables(self, text: str, where: str) -> Any:
        whole = _PLACEHOLDER.fullmatch(text)
        if whole and whole[1].startswith(_VARIABLE):
            return self._variable(whole[1], where)
        return _PLACEHOLDER.sub(
            lambda match: str(self._variable(match[1], where)) if match[1].startswith(_VARIABLE) else match[0], text
        )

    def _variable(self, reference: str, where: str) -> Any:
        name = reference.removeprefix(_VARIABLE)
        key = ("variable", name)
        if key not in self._known:
            try:
                self._known[key] = self._references.variable(name)
            except KeyError:
                # not an error: a stock worker leaves it empty without a word
                self._known[key] = ""
                self.remarks.append(f"There is no Prefect variable {name!r}; {where} has an empty text instead.")
        return self._known[key]


def _in_context(name: str, context: Mapping[str, Any]) -> str:
    def within(match: re.Match[str]) -> str:
        value = _look_up(context, match[1])
        return "" if value is _UNSET else str(value)

    return _PLACEHOLDER.sub(lambda match: within(match) if match[1].startswith("ctx.") else match[0], name)


def _look_up(values: Any, path: str) -> Any:
    """The value at a path such as `a.b[0]` or `a.b.0` in nested values, _UNSET where there is none."""
    place = values
    for key in path.replace("[", ".").replace("]", "").split("."):
        try:
            place = place[_step(place, key)]
        except (TypeError, KeyError, IndexError):
            return _UNSET
    return place


def _step(place: Any, key: str) -> str | int:
    if isinstance(place, Mapping) and key in place:
        return key
    try:
        number = int(key)
    except ValueError:
        return key
    return number if not isinstance(place, Mapping) or str(number) == key else key
