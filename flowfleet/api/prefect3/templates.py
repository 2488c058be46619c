"""Templates: a pool's base job template, filled with the job variables of deployment and run."""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from flowfleet.errors import UnsupportedRun

_PLACEHOLDER = re.compile(r"{{\s*([\w.\-\[\]$]+)\s*}}")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_VARIABLE = "prefect.variables."
_BLOCK = "prefect.blocks."
#: stands for a declared variable that has no value: its key is left out, within a text it is empty (as Prefect does it)
_UNSET: Any = object()


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
        if "." not in key:
            continue
        *path, last = key.split(".")
        place = nested
        for step in path:
            place = place.setdefault(step, {}) if isinstance(place.get(step, {}), dict) else {}
        place[last] = value
    for key, value in variables.items():
        if "." not in key:
            nested[key] = _deep(nested.get(key), value)
    return nested


def _deep(under: Any, over: Any) -> Any:
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    return {**under, **{key: _deep(under.get(key), value) for key, value in over.items()}}


def fill(
    template: Mapping[str, Any],
    layers: list[Mapping[str, Any]],
    *,
    variable: Callable[[str], Any],
    environ: Mapping[str, str],
    context: Mapping[str, Any],
) -> dict[str, Any]:
    """The job configuration: the template's defaults, each layer laid over them, and then the placeholders filled.

    `variable` looks up a Prefect variable and raises `KeyError` when there is none; `context` is what the template's
    `name` may use (`ctx.flow_run.name`). Raises `UnsupportedRun` naming the placeholder that has no value.
    """
    configuration = deepcopy(dict(template.get("job_configuration") or {}))
    properties = (template.get("variables") or {}).get("properties") or {}
    values = {
        name: deepcopy(schema["default"])
        for name, schema in properties.items()
        if isinstance(schema, Mapping) and schema.get("default") is not None
    }
    for layer in layers:
        values = merge(values, spread(layer))
    if isinstance(configuration.get("env"), Mapping) and isinstance(values.get("env"), Mapping):
        configuration["env"] = {**configuration["env"], **values["env"]}
    filler = _Filler(values, frozenset(properties), variable, environ, context)
    filled = filler.fill(configuration, "the job template")
    return dict(filled)


@dataclass(frozen=True, repr=False)
class _Filler:
    """The replacer of placeholders; a text that is one placeholder as a whole becomes the value with its type."""

    values: Mapping[str, Any]
    declared: frozenset[str]
    variable: Callable[[str], Any]
    environ: Mapping[str, str]
    context: Mapping[str, Any]

    def fill(self, item: Any, where: str, *, given: bool = False) -> Any:
        """Fill one node; `given`: it came from a job variable, where only the server's own references are filled."""
        if isinstance(item, Mapping):
            filled = {key: self.fill(value, f"{where}, {key}", given=given) for key, value in item.items()}
            return {key: value for key, value in filled.items() if value is not _UNSET}
        if isinstance(item, list):
            entries = [self.fill(value, where, given=given) for value in item]
            return [value for value in entries if value is not _UNSET]
        if not isinstance(item, str):
            return item
        whole = _PLACEHOLDER.fullmatch(item.strip())
        if whole:
            return self._value(whole.group(1), where, given=given)

        def text(match: re.Match[str]) -> str:
            value = self._value(match.group(1), where, given=given)
            return "" if value is _UNSET else str(value)

        return _PLACEHOLDER.sub(text, item)

    def _value(self, name: str, where: str, *, given: bool) -> Any:
        if name.startswith(_BLOCK):
            raise UnsupportedRun(
                f"{where}: the block reference {{{{ {name} }}}} is not supported by this version, "
                "use a Prefect variable or the worker's environment instead"
            )
        if name.startswith(_VARIABLE):
            return self._prefect_variable(name, where)
        if name.startswith("$"):
            if name[1:] not in self.environ:
                raise UnsupportedRun(
                    f"{where}: the worker's environment has no {name[1:]}, asked for by {{{{ {name} }}}}"
                )
            return self.environ[name[1:]]
        value = _UNSET if given else _look_up({**self.values, **self.context}, name)
        if value is not _UNSET:
            return self.fill(value, where, given=True)
        if name in self.declared and not given:
            return _UNSET
        raise UnsupportedRun(
            f"{where}: the placeholder {{{{ {name} }}}} has no value, set it in the job variables of the pool, "
            "the deployment or the run"
        )

    def _prefect_variable(self, name: str, where: str) -> Any:
        try:
            return self.variable(name.removeprefix(_VARIABLE))
        except KeyError as error:
            raise UnsupportedRun(
                f"{where}: there is no Prefect variable {name.removeprefix(_VARIABLE)!r}, asked for by {{{{ {name} }}}}"
            ) from error


def _look_up(values: Mapping[str, Any], name: str) -> Any:
    """The value at a path such as `a.b[0]` in nested values, _UNSET where there is none."""
    place: Any = values
    for key, index in _STEP.findall(name):
        if key and isinstance(place, Mapping) and key in place:
            place = place[key]
        elif index and isinstance(place, list) and int(index) < len(place):
            place = place[int(index)]
        else:
            return _UNSET
    return place
