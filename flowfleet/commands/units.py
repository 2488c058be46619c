"""Units: what a unit for supervisor or systemd says of a poller or worker, as `install` prints it.

Secrets never stand in a unit: they go into a file of their own, whose text `install --secrets` prints.
"""

import getpass
import os
import pwd
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfleet.api.own_variables import Variable
from flowfleet.commands.unit_environment import is_secret
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings
from flowfleet.settings.option import Option, options_of
from flowfleet.settings.values import fitting

#: options in the order of the generator of Prefect 1's agent; all others follow in the order of the settings class
_FIRST = ("show-flow-logs", "label", "import-path", "key", "token", "tenant-id", "agent-config-id")
#: how long a stop may take in addition to the time that the runs get
_STOP_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One poller or worker with the start options and the variables that were given to `install`."""

    #: poller | worker
    part: str
    cls: type[Any]
    #: as given, by option key
    flags: Mapping[str, Any]
    environment: tuple[Variable, ...] = ()
    config_file: str | None = None
    #: an absolute path: a unit has no PATH to rely on
    program: str
    #: where the part is started; None = where supervisor or systemd starts it
    folder: str | None = None
    user: str

    @property
    def name(self) -> str:
        """The unit's name; two units on one host differ by --name."""
        given = self.value("name")
        return f"flowfleet-{self.part}" + (f"-{fitting(given)}" if given else "")

    def value(self, key: str) -> Any:
        """What flag or variable says of this option; None where neither does."""
        given = self.flags.get(key)
        of_environment = (each.value for each in self.environment if each.option and each.option.key == key)
        return next(of_environment, None) if given is None else given

    def secrets_path(self, kind: str) -> str:
        """The path of the file that the secrets are to go into."""
        return f"/etc/flowfleet/{self.name.removeprefix('flowfleet-')}.{'env' if kind == 'systemd' else 'toml'}"

    @property
    def words(self) -> list[str]:
        """The start command without secrets; raises `SettingsError` for a word with a control character."""
        words = [self.program, "start"]
        for option, value in self._given():
            if not is_secret(option, value):
                words += _flag_words(option, value)
        if self.part == "worker" and not self.value("on-stop"):
            # by default a worker started by systemd or supervisor takes a stop for the end of its service, and
            # waits for its runs
            words += ["--on-stop", "detach"]
        if self.config_file:
            words += ["--config", self.config_file]
        return [fit_for_a_line(word, word) for word in words]

    @property
    def secrets(self) -> list[tuple[Option, Any]]:
        """The options with secret values, which go into the other file."""
        of_flags = [(option, value) for option, value in self._given() if is_secret(option, value)]
        of_environment = [(each.option, each.value) for each in self.environment if each.option and each.secret]
        return [*of_flags, *((option, option.read(value, option.variable)) for option, value in of_environment)]

    @property
    def secrets_of_others(self) -> list[Variable]:
        """The variables with secrets that are no settings of ours."""
        return [each for each in self.environment if each.secret and each.option is None]

    @property
    def secret_options(self) -> list[str]:
        """How people give these secrets: the flags, or the variables where there is no flag."""
        return [option.flags[-1] if option.flags else option.variable for option, _ in self.secrets]

    @property
    def variables(self) -> list[Variable]:
        """The variables that stand in the unit."""
        return [each for each in self.environment if not each.secret]

    @property
    def detaches(self) -> bool:
        """Whether the worker's runs go on when the unit is stopped."""
        return self.part == "worker" and self.value("on-stop") in (None, "detach")

    @property
    def stop_seconds(self) -> int:
        """Seconds that a stop may take before the part is killed."""
        if self.part == "poller" or self.detaches:
            return _STOP_SECONDS
        grace = float(self.value("stop-grace") or WorkerSettings.stop_grace)
        return _STOP_SECONDS + 2 * round(grace)  # once to wait for the runs, once between TERM and KILL

    def _given(self) -> Iterator[tuple[Option, Any]]:
        options = {option.key: option for option in options_of(self.cls).values()}
        ordered = [*(key for key in _FIRST if key in options), *(key for key in options if key not in _FIRST)]
        for key in ordered:
            value = self.flags.get(key)
            if value is not None and value != ():
                yield options[key], value


def _flag_words(option: Option, value: Any) -> list[str]:
    if option.kind.switch:
        yes, _, no = option.flags[-1].partition("/")
        return [yes if value else no]
    values = value if option.kind.separator else (value,)
    return [word for each in values for word in (option.flags[-1], str(each))]


def fit_for_a_line(text: str, named: str) -> str:
    """The text as it is; raises `SettingsError` for one with a control character, which no unit can hold."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise SettingsError(f"{named!r} has a control character in it: give it in a file by --config")
    return text


def program_path(part: str) -> str:
    """The path of the console script beside this interpreter, which needs neither PATH nor a right folder."""
    beside = Path(sys.executable).parent / part
    return str(beside) if beside.exists() else shutil.which(part) or str(Path(sys.argv[0]).absolute())


def me() -> str:
    """The user who asks for a unit."""
    return getpass.getuser() if "USER" in os.environ else pwd.getpwuid(os.getuid()).pw_name


def specifiers(text: str) -> str:
    """A text in which systemd and supervisor find nothing to fill in."""
    return text.replace("%", "%%")


def secrets_comment(unit: Unit, kind: str, names: str, path: str) -> Iterator[str]:
    """The lines of a unit that say how the file with its secrets is made."""
    mark = "#" if kind == "systemd" else ";"
    again = f"{unit.part} install --for {kind} --secrets OPTIONS"
    yield f"{mark} Secrets ({names}) are not in this text. They go into a file that only its owner can read:"
    if path == unit.config_file:
        yield f"{mark}   {again}   prints what to add to {path} (chmod 600)"
    else:
        owner = "" if kind == "systemd" else f"-o {unit.user} "
        yield f"{mark}   {again} | sudo install -D -m 600 {owner}/dev/stdin {path}"


def text_of(*lines: str) -> str:
    """The lines as one text."""
    return "".join(f"{line}\n" for line in lines)
