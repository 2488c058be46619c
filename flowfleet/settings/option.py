"""Option: one setting as people give it; its flags and its variable follow from the name of its field."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from flowfleet.errors import SettingsError
from flowfleet.settings.values import SWITCH, ValueKind

#: told of a setting that has a variable only
NO_FLAG = "no flag"
_OPTION = "option"
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Option:
    """A setting as people give it; what `told` does not say follows from the name of its field."""

    #: the field's
    name: str
    #: `{level}` in it stands for the command's own default of --log-level
    help: str
    kind: ValueKind
    #: a short flag, a long one (`--a` or `--a/--b`), a variable without FLOWFLEET_; or that there is no flag
    told: str

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags, one by one: the long one last."""
        told = tuple(word for word in self.told.split() if word.startswith("-"))
        if self.told == NO_FLAG or "--" in self.told:
            return told
        name = self.name.replace("_", "-")
        name = name.removesuffix("s") if self.kind.separator else name  # such a flag is given once for each value
        return (*told, f"--{name}/--no-{name}" if self.kind.switch else f"--{name}")

    @property
    def key(self) -> str:
        """The name in `--config` files and in `flowfleet config`: the long flag without its dashes."""
        return self.flags[-1][2:].partition("/")[0] if self.flags else self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The name of the environment variable: that of the long flag where one is told."""
        told = [word for word in self.told.split() if word[0].isupper()]
        name = told[0] if told else self.key if "--" in self.told else self.name
        return f"FLOWFLEET_{name.upper().replace('-', '_')}"

    @property
    def file_variable(self) -> str:
        """The variable that names a file which holds the value; empty where there is none."""
        return f"{self.variable}_FILE" if self.kind.by_file else ""

    def read(self, given: Any, source: str) -> Any:
        """Parse what a flag (already typed or text), a variable (text) or a config file (TOML) gave.

        Raises `SettingsError` with one sentence that names the source, the value and what is wanted.
        """
        if self.kind.separator:
            items = given if isinstance(given, list | tuple) else [given]
            if isinstance(given, str):
                items = [item.strip() for item in given.split(self.kind.separator) if item.strip()]
            return tuple(self._parse(str(item), source) for item in items)
        if self.kind.switch:
            if str(given).lower() not in _SWITCH:
                raise SettingsError(f"{source} cannot be {str(given)!r}: use true or false.")
            return _SWITCH[str(given).lower()]
        if isinstance(given, bool | list | dict):
            raise SettingsError(f"{source} must be {self.kind.wants}, not {given!r}.")
        return self._parse(str(given), source)

    def _parse(self, text: str, source: str) -> Any:
        shown = "empty" if not text else self.kind.masked(text) if self.kind.masked else repr(text)
        if self.kind.choices and text not in self.kind.choices:
            # log levels may be written in lower case too
            if text.upper() not in self.kind.choices:
                raise SettingsError(f"{source} cannot be {shown}: use one of {', '.join(self.kind.choices)}.")
            text = text.upper()
        try:
            return self.kind.parse(text)
        except ValueError as error:
            raise SettingsError(f"{source} cannot be {shown}: it must be {self.kind.wants}.") from error


@dataclass(frozen=True)
class Origin:
    """Where a value came from, in words: `flag --redis`, `variable FLOWFLEET_REDIS`, `file …`, `default`."""

    kind: str  # of `layers.LADDER`
    name: str = ""

    def __str__(self) -> str:
        words = {"secret-file": "file", "config": "config file", "prefect": "", "machine": "this machine"}
        return f"{words.get(self.kind, self.kind)} {self.name}".strip()


def setting(default: Any, help: str, kind: ValueKind = SWITCH, told: str = "") -> Any:  # noqa: A002 - click's word
    """A dataclass field of a settings class that is an option; `told` is what does not follow from its name."""
    return dataclasses.field(default=default, repr=not kind.masked, metadata={_OPTION: (help, kind, told)})


def options_of(cls: type[Any]) -> dict[str, Option]:
    """All options of a settings class by the names of their fields, in order."""
    fields = [field for field in dataclasses.fields(cls) if _OPTION in field.metadata]
    return {field.name: Option(field.name, *field.metadata[_OPTION]) for field in fields}
