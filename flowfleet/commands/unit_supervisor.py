"""Unit supervisor: the text of a supervisor configuration, and of the config file with its secrets."""

import json
import re
import shlex
from collections.abc import Iterator

from flowfleet.api.own_variables import Variable
from flowfleet.commands.program import DRAINED
from flowfleet.commands.units import Unit, fit_for_a_line, secrets_comment, specifiers, text_of
from flowfleet.errors import SettingsError


def unit_text(unit: Unit) -> str:
    """The text of a whole supervisor configuration with one program in it."""
    environment = [_pair(each) for each in unit.variables]
    if unit.secrets and not unit.config_file:
        environment.append(f'FLOWFLEET_CONFIG="{specifiers(unit.secrets_path("supervisor"))}"')
    return text_of(
        f"; The {unit.part} of flowfleet for supervisor. To start it, with the same options each time:",
        f";   {unit.part} install --for supervisor OPTIONS > supervisord.conf",
        *_about_secrets(unit),
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
        f"command={' '.join(_word(word) for word in unit.words)}",
        *([f"directory={_path(unit.folder)}"] if unit.folder else []),
        f"user={unit.user}",
        *([f"environment={','.join(environment)}"] if environment else []),
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


def secrets_text(unit: Unit) -> str:
    """The text of the config file."""
    lines = [f"[{unit.part}]"] if unit.secrets else []
    for option, value in unit.secrets:
        # JSON strings and lists are valid TOML too, except for one character
        written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{option.key} = {written}")
    return text_of(*lines)


def _about_secrets(unit: Unit) -> Iterator[str]:
    if unit.secrets:
        path = unit.config_file or unit.secrets_path("supervisor")
        yield from secrets_comment(unit, "supervisor", ", ".join(unit.secret_options), path)
    elif not unit.config_file:
        path = unit.secrets_path("supervisor")
        yield f"; It has no secrets of ours. A key belongs in {path} (chmod 600), as key = …, and that file is named"
        yield f'; by environment=FLOWFLEET_CONFIG="{path}" below.'
    if unit.secrets_of_others:
        names = ", ".join(each.name for each in unit.secrets_of_others)
        yield f"; {names} must be set where supervisord itself is started: supervisor reads no secrets from a file."


def _pair(variable: Variable) -> str:
    value = fit_for_a_line(variable.value, variable.name)
    if '"' in value or re.search(r"\s[;#]", value):
        raise SettingsError(
            f"{variable.name} has a quote or a comment sign in it, which supervisor cannot read: give it by a flag, or "
            "in a file by --config"
        )
    return f'{variable.name}="{specifiers(value)}"'


def _word(word: str) -> str:
    # supervisor cuts each line at a blank and one of these, within quotes too; a pair of quotes in between stops it
    return re.sub(r"(\s)([;#])", r"\1''\2", specifiers(shlex.quote(word)))


def _path(path: str) -> str:
    if re.search(r"\s[;#]|^\s|\s$", path):
        raise SettingsError(f"supervisor cannot start anything in {path}: choose a folder without blanks in its name")
    return specifiers(path)
