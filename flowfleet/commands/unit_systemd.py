"""Unit systemd: the text of a systemd service file, and of the environment file with its secrets."""

import re
from collections.abc import Iterator
from typing import Any

from flowfleet.api.own_variables import Variable
from flowfleet.commands.program import DRAINED, USAGE
from flowfleet.commands.units import Unit, fit_for_a_line, secrets_comment, specifiers, text_of
from flowfleet.errors import SettingsError
from flowfleet.settings.option import Option

#: what all parts of a host share: addresses, names, paths of secrets (docs/several-machines.md)
HOST_FILE = "/etc/flowfleet.env"
#: systemd makes this folder below /var/lib, for the user of the unit
_STATE = "flowfleet"
_NETWORK = "network-online.target"


def unit_text(unit: Unit) -> str:
    """The text of the service file."""
    needs = " ".join([_NETWORK, *_engine(unit)])
    return text_of(
        f"# The {unit.part} of flowfleet for systemd. To install it, with the same options each time:",
        f"#   {unit.part} install --for systemd OPTIONS | sudo tee /etc/systemd/system/{unit.name}.service",
        *_about_secrets(unit),
        f"#   sudo systemctl daemon-reload && sudo systemctl enable --now {unit.name}",
        "",
        "[Unit]",
        f"Description=flowfleet {unit.part}",
        f"Wants={needs}",
        f"After={needs}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"User={specifiers(unit.user)}",
        *([f"WorkingDirectory={specifiers(unit.folder)}"] if unit.folder else []),
        *_environment(unit),
        *([f"StateDirectory={_STATE}", "StateDirectoryMode=0700"] if _has_state(unit) else []),
        f"ExecStart={_command(unit)}",
        "# An orderly end is meant to last: a drained worker, a poller after `flowfleet leave` or its last poll.",
        "Restart=on-failure",
        "RestartSec=2",
        "# A setting that cannot be used is not cured by another start, nor is a drain.",
        f"RestartPreventExitStatus={USAGE} {DRAINED}",
        *_stopping(unit),
        *_memory(unit),
        f"TimeoutStopSec={unit.stop_seconds}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    )


def secrets_text(unit: Unit) -> str:
    """The text of the environment file."""
    lines = []
    for option, value in unit.secrets:
        pieces = [value] if isinstance(value, str) else [_one_line(option, each) for each in value]
        lines.append(_assignment(option.variable, str(option.kind.separator).join(pieces)))
    lines += [_assignment(each.name, fit_for_a_line(each.value, each.name)) for each in unit.secrets_of_others]
    return text_of(*lines)


def _has_secrets(unit: Unit) -> bool:
    return bool(unit.secrets or unit.secrets_of_others)


def _about_secrets(unit: Unit) -> Iterator[str]:
    names = [*unit.secret_options, *(each.name for each in unit.secrets_of_others)]
    if names:
        yield from secrets_comment(unit, "systemd", ", ".join(names), unit.secrets_path("systemd"))
    else:
        yield f"# It has no secrets. A key belongs in {HOST_FILE} (chmod 600), as FLOWFLEET_KEY=…, or in a file of its"
        yield "# own that FLOWFLEET_KEY_FILE=PATH names there."


def _engine(unit: Unit) -> Iterator[str]:
    """The service of the container engine that the worker needs, where it is one of this host."""
    if unit.part != "worker" or unit.value("deploy") != "docker":
        return
    of_docker = (each.value for each in unit.environment if each.name == "DOCKER_HOST")
    address = unit.value("base-url") or next(of_docker, "")
    if not address or address.endswith("/docker.sock"):
        yield "docker.service"
    elif address.endswith("/podman.sock"):
        yield "podman.socket"


def _environment(unit: Unit) -> Iterator[str]:
    for each in unit.variables:
        yield f"Environment={_word(specifiers(_plain(each)), always=True)}"
    # a dash means that the file need not be there; what stands in it wins over the lines above
    yield f"EnvironmentFile=-{HOST_FILE}"
    if _has_secrets(unit):
        yield f"EnvironmentFile={specifiers(unit.secrets_path('systemd'))}"


def _plain(variable: Variable) -> str:
    return f"{variable.name}={fit_for_a_line(variable.value, variable.name)}"


def _has_state(unit: Unit) -> bool:
    return unit.part == "worker" and not unit.value("state-dir")


def _command(unit: Unit) -> str:
    # systemd replaces variables in the arguments only, not in the program
    first, *rest = (specifiers(word) for word in unit.words)
    if _has_state(unit):
        rest += ["--state-dir", f"/var/lib/{_STATE}"]
    return " ".join(_word(word) for word in (first, *(word.replace("$", "$$") for word in rest)))


def _stopping(unit: Unit) -> list[str]:
    if unit.detaches:
        return ["# Its runs go on when it is stopped or upgraded, and the next one adopts them.", "KillMode=process"]
    return ["KillMode=mixed"]


def _memory(unit: Unit) -> list[str]:
    # one run that needs too much memory must not take the worker and all other runs with it; and each run gets a
    # control group, whose count tells that kill from others (a systemd before 254 has no such subgroup, and says so)
    return ["OOMPolicy=continue", "Delegate=memory cpu", "DelegateSubgroup=worker"] if unit.part == "worker" else []


def _word(plain: str, *, always: bool = False) -> str:
    if not always and plain and re.fullmatch(r"[A-Za-z0-9_@%+=:,./$-]+", plain):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _assignment(name: str, value: str) -> str:
    quoted = re.sub(r'(["\\`$])', r"\\\1", value)
    return f'{name}="{quoted}"'


def _one_line(option: Option, value: Any) -> str:
    if value != value.strip() or len(value.splitlines()) != 1:
        name = value.partition("=")[0].strip()
        raise SettingsError(
            f"{option.flags[-1]} {name} has a line break or blanks at its ends, which a variable cannot hold: give it "
            "in a file by --config"
        )
    return str(value)
