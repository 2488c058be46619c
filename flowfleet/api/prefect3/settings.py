"""Settings: Prefect's own settings, found in the files and variables where Prefect's command looks, in the same order.

Nearest first: PREFECT_* environment, `.env`, `prefect.toml`, `pyproject.toml` [tool.prefect], the active profile of
`profiles.toml`. The files are read by `tomllib`, since prefect itself is never imported here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowfleet.api.found import FoundSetting, read_toml
from flowfleet.errors import SettingsError

#: settings that are tables themselves, so their keys are no setting names
_TABLES = frozenset({"PREFECT_CLIENT_CUSTOM_HEADERS"})
_DOTENV_LINE = re.compile(
    r"""^\s*(?:export\s+)?(?P<name>[\w.]+)\s*=\s*(?:'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|(?P<bare>[^\n]*?))\s*(?:\s\#.*)?$"""
)


def prefect_settings(environ: Mapping[str, str], folder: Path, home: Path) -> dict[str, FoundSetting]:
    """All PREFECT_* settings that apply in `folder` for the user whose home is `home`, by their variable names."""
    found: dict[str, FoundSetting] = {}
    for source, values in _layers(environ, folder, home):
        for name, value in values.items():
            if value != "":
                found.setdefault(name, FoundSetting(value, source))
    return found


def _layers(environ: Mapping[str, str], folder: Path, home: Path) -> Iterator[tuple[str, dict[str, str]]]:
    own = {name.upper(): value for name, value in environ.items() if name.upper().startswith("PREFECT_")}
    # PREFECT__… are no settings but the facts of one run, which a worker started inside a flow would pass on
    yield "environment", {name: value for name, value in own.items() if not name.startswith("PREFECT__")}
    dotenv = _dotenv(folder / ".env")
    yield ".env", dotenv
    prefect_toml = _flat(read_toml(folder / "prefect.toml"))
    yield "prefect.toml", prefect_toml
    pyproject = _flat(read_toml(folder / "pyproject.toml").get("tool", {}).get("prefect", {}))
    yield "pyproject.toml", pyproject
    near = {**pyproject, **prefect_toml, **dotenv, **own}
    profiles = _profiles_path(near, own, home)
    name, values = _profile(profiles, own)
    yield f"profile {name} of {profiles}", values


def _profiles_path(near: Mapping[str, str], own: Mapping[str, str], home: Path) -> Path:
    if near.get("PREFECT_PROFILES_PATH"):
        return _expand(near["PREFECT_PROFILES_PATH"], near, home)
    if own.get("PREFECT_HOME"):
        return _expand(own["PREFECT_HOME"], own, home) / "profiles.toml"
    return home / ".prefect" / "profiles.toml"


def _expand(text: str, near: Mapping[str, str], home: Path) -> Path:
    prefect_home = near.get("PREFECT_HOME") or str(home / ".prefect")
    text = text.replace("$PREFECT_HOME", prefect_home)
    return home / text[2:] if text.startswith("~/") else Path(text)


def _profile(path: Path, own: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The name and settings of the active profile: that of PREFECT_PROFILE, else the file's own choice."""
    data = read_toml(path)
    name = own.get("PREFECT_PROFILE") or data.get("active") or ""
    profile = data.get("profiles", {}).get(name)
    if not isinstance(profile, Mapping):
        return str(name), {}
    return str(name), {str(key).upper(): _text(value) for key, value in profile.items()}


def _flat(table: Any, prefix: str = "PREFECT") -> dict[str, str]:
    """A TOML table by variable names: `[api] url = …` becomes PREFECT_API_URL."""
    flat: dict[str, str] = {}
    if not isinstance(table, Mapping):
        return flat
    for key, value in table.items():
        name = f"{prefix}_{str(key).upper()}"
        if isinstance(value, Mapping) and name not in _TABLES:
            flat |= _flat(value, name)
        else:
            flat[name] = _text(value)
    return flat


def _text(value: Any) -> str:
    """A TOML value in the form that an environment variable has."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def _dotenv(path: Path) -> dict[str, str]:
    """The PREFECT_* lines of a .env file: `export`, quotes and comments as usual there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read, correct it or move it away") from error
    values: dict[str, str] = {}
    for line in lines:
        match = _DOTENV_LINE.match(line)
        if not match or not match["name"].upper().startswith("PREFECT_"):
            continue
        if match["double"] is not None:
            value = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), match["double"])
        else:
            value = match["single"] if match["single"] is not None else (match["bare"] or "")
        values[match["name"].upper()] = value
    return values
