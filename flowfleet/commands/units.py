"""Units: the texts by which supervisor or systemd keeps a poller or worker running, as `install` prints them.

Secrets never stand in a unit: they go into a file of their own, whose text `install --secrets` prints.
"""

import getpass
import json
import os
import pwd
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowfleet.commands.program import DRAINED, USAGE
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
    """One poller or worker with the start options that were given to `install`."""

    #: poller | worker
    part: str
    cls: type[Any]
    #: as given, by option key
    flags: Mapping[str, Any]
    config_file: str | None = None
    #: an absolute path: a unit has no PATH to rely on
    program: str
    folder: str
    user: str

    @property
    def name(self) -> str:
        """The unit's name; two units on one host differ by --name."""
        given = self.flags.get("name")
        return f"flowfleet-{self.part}" + (f"-{fitting(given)}" if given else "")

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
        if self.part == "worker" and not self.flags.get("on-stop"):
            # by default a worker started by systemd or supervisor takes a stop for the end of its service, and
            # waits for its runs
            words += ["--on-stop", "detach"]
        if self.config_file:
            words += ["--config", self.config_file]
        for word in words:
            if any(ord(character) < 32 or ord(character) == 127 for character in word):
                raise SettingsError(f"{word!r} has a control character in it, give it in a file by --config")
        return words

    @property
    def secrets(self) -> list[tuple[Option, Any]]:
        """The options with secret values, which go into the other file."""
        return [(option, value) for option, value in self._given() if is_secret(option, value)]

    @property
    def detaches(self) -> bool:
        """Whether the worker's runs go on when the unit is stopped."""
        return self.part == "worker" and self.flags.get("on-stop") in (None, "detach")

    @property
    def stop_seconds(self) -> int:
        """Seconds that a stop may take before the part is killed."""
        if self.part == "poller" or self.detaches:
            return _STOP_SECONDS
        grace = float(self.flags.get("stop-grace") or WorkerSettings.stop_grace)
        return _STOP_SECONDS + 2 * round(grace)  # once to wait for the runs, once between TERM and KILL

    def _given(self) -> Iterator[tuple[Option, Any]]:
        options = {option.key: option for option in options_of(self.cls).values()}
        ordered = [*(key for key in _FIRST if key in options), *(key for key in options if key not in _FIRST)]
        for key in ordered:
            value = self.flags.get(key)
            if value is not None and value != ():
                yield options[key], value


def is_secret(option: Option, value: Any) -> bool:
    """Whether this value must not be shown; an address is secret only when it has a password in it."""
    if isinstance(value, str) and "://" in value:
        return bool(urlsplit(value).password)
    return option.kind.masked is not None


def _flag_words(option: Option, value: Any) -> list[str]:
    if option.kind.switch:
        yes, _, no = option.flags[-1].partition("/")
        return [(option.flags[0].partition("/")[0] if len(option.flags) > 1 else yes) if value else no]
    values = value if option.kind.separator else (value,)
    return [word for each in values for word in (option.flags[0], str(each))]


def program_path(part: str) -> str:
    """The path of the console script beside this interpreter, which needs neither PATH nor a right folder."""
    beside = Path(sys.executable).parent / part
    return str(beside) if beside.exists() else shutil.which(part) or str(Path(sys.argv[0]).absolute())


def here() -> dict[str, str]:
    """The folder and the user of whoever asks for a unit."""
    user = getpass.getuser() if "USER" in os.environ else pwd.getpwuid(os.getuid()).pw_name
    return {"folder": str(Path.cwd()), "user": user}


# -- systemd


def systemd(unit: Unit) -> str:
    """The text of a systemd service file."""
    kill = (
        ["# Its runs go on when it is stopped or upgraded, and the next one adopts them.", "KillMode=process"]
        if unit.detaches
        else ["KillMode=mixed"]
    )
    # one run that needs too much memory must not take the worker and all other runs with it; and each run gets a
    # control group, whose count tells that kill from others (a systemd before 254 has no such subgroup, and says so)
    oom = ["OOMPolicy=continue", "Delegate=memory cpu", "DelegateSubgroup=worker"] if unit.part == "worker" else []
    return _lines(
        f"# The {unit.part} of flowfleet for systemd. To install it, with the same options each time:",
        f"#   {unit.part} install --for systemd OPTIONS | sudo tee /etc/systemd/system/{unit.name}.service",
        *_secrets_comment(unit, "systemd"),
        f"#   sudo systemctl daemon-reload && sudo systemctl enable --now {unit.name}",
        "",
        "[Unit]",
        f"Description=flowfleet {unit.part}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"User={_specifiers(unit.user)}",
        f"WorkingDirectory={_specifiers(unit.folder)}",
        # a dash means that the file need not be there
        f"EnvironmentFile={'' if unit.secrets else '-'}{_specifiers(unit.secrets_path('systemd'))}",
        f"ExecStart={_systemd_command(unit.words)}",
        "# An orderly end is meant to last: a drained worker, a poller after `flowfleet leave` or its last poll.",
        "Restart=on-failure",
        "RestartSec=2",
        "# A setting that cannot be used is not cured by another start, nor is a drain.",
        f"RestartPreventExitStatus={USAGE} {DRAINED}",
        *kill,
        *oom,
        "KillSignal=SIGTERM",
        f"TimeoutStopSec={unit.stop_seconds}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    )


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _systemd_command(words: list[str]) -> str:
    # systemd replaces variables in the arguments only, not in the program
    first, *rest = (_specifiers(word) for word in words)
    return " ".join(_systemd_word(word) for word in (first, *(word.replace("$", "$$") for word in rest)))


def _systemd_word(plain: str) -> str:
    if plain and re.fullmatch(r"[A-Za-z0-9_@%+=:,./$-]+", plain):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _environment_text(unit: Unit) -> str:
    lines = []
    for option, value in unit.secrets:
        pieces = [value] if isinstance(value, str) else [_one_line(option, each) for each in value]
        quoted = re.sub(r'(["\\`$])', r"\\\1", str(option.kind.separator).join(pieces))
        lines.append(f'{option.variable}="{quoted}"')
    return _lines(*lines)


def _one_line(option: Option, value: str) -> str:
    if value != value.strip() or len(value.splitlines()) != 1:
        name = value.partition("=")[0].strip()
        raise SettingsError(
            f"{option.flags[-1]} {name} has a line break or blanks at its ends, which a variable cannot hold: give it "
            "in a file by --config"
        )
    return value


# -- supervisor


def supervisor(unit: Unit) -> str:
    """The text of a whole supervisor configuration with one program in it."""
    environment = []
    if unit.secrets and not unit.config_file:
        environment = [f'environment=FLOWFLEET_CONFIG="{_specifiers(unit.secrets_path("supervisor"))}"']
    return _lines(
        f"; The {unit.part} of flowfleet for supervisor. To start it, with the same options each time:",
        f";   {unit.part} install --for supervisor OPTIONS > supervisord.conf",
        *_secrets_comment(unit, "supervisor"),
        ";   supervisord -c supervisord.conf",
        "; Where a supervisor runs already, only the part [program:…] goes into its folder conf.d.",
        "",
        "[unix_http_server]",
        "file=/tmp/supervisor.sock",
        "",
        "[supervisord]",
        "loglevel=info",
        "",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        "",
        "[supervisorctl]",
        "serverurl=unix:///tmp/supervisor.sock",
        "",
        f"[program:{unit.name}]",
        f"command={' '.join(_supervisor_word(word) for word in unit.words)}",
        f"directory={_supervisor_path(unit.folder)}",
        f"user={unit.user}",
        *environment,
        "autostart=true",
        "; an orderly end is meant to last: a drained worker, a poller after `flowfleet leave` or its last poll",
        "autorestart=unexpected",
        f"exitcodes=0,{DRAINED}",
        "stopsignal=TERM",
        f"stopwaitsecs={unit.stop_seconds}",
        "; only the part itself is stopped: what becomes of its runs is its own business",
        "stopasgroup=false",
        "killasgroup=false",
    )


def _supervisor_word(word: str) -> str:
    # supervisor cuts each line at a blank and one of these, within quotes too; a pair of quotes in between stops it
    return re.sub(r"(\s)([;#])", r"\1''\2", _specifiers(shlex.quote(word)))


def _supervisor_path(path: str) -> str:
    if re.search(r"\s[;#]|^\s|\s$", path):
        raise SettingsError(f"supervisor cannot start anything in {path}, go to a folder without blanks in its name")
    return _specifiers(path)


def _toml_text(unit: Unit) -> str:
    lines = [f"[{unit.part}]"] if unit.secrets else []
    for option, value in unit.secrets:
        # JSON strings and lists are valid TOML too, except for one character
        written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{option.key} = {written}")
    return _lines(*lines)


# -- both


def _secrets_comment(unit: Unit, kind: str) -> Iterator[str]:
    mark = "#" if kind == "systemd" else ";"
    path = unit.config_file if kind == "supervisor" and unit.config_file else unit.secrets_path(kind)
    again = f"{unit.part} install --for {kind} --secrets OPTIONS"
    if unit.secrets:
        names = ", ".join(option.flags[-1] for option, _ in unit.secrets)
        yield f"{mark} Secrets ({names}) are not in this text. They go into a file that only its owner can read:"
        if path == unit.config_file:
            yield f"{mark}   {again}   prints what to add to {path} (chmod 600)"
        elif kind == "systemd":
            yield f"{mark}   {again} | sudo install -D -m 600 /dev/stdin {path}"
        else:
            yield f"{mark}   {again} | sudo install -D -m 600 -o {unit.user} /dev/stdin {path}"
        return
    yield f"{mark} It has no secrets. A key would go into {path}, which only its owner can read (chmod 600),"
    if kind == "systemd":
        yield f"{mark} as FLOWFLEET_KEY=…, or into a file of its own that FLOWFLEET_KEY_FILE=PATH names there."
    else:
        yield f'{mark} as key = "…", named by environment=FLOWFLEET_CONFIG="{path}" below.'


def secrets_text(unit: Unit, kind: str) -> str:
    """The text of the file with the secrets."""
    return _environment_text(unit) if kind == "systemd" else _toml_text(unit)


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
