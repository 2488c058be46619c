"""Settings: Prefect's own settings, found in the files and variables where Prefect's command looks, in the same order.

Nearest first: PREFECT_* environment, `.env`, `prefect.toml`, `pyproject.toml` [tool.prefect], the active profile of
`profiles.toml`. The files are read by `tomllib`, since prefect itself is never imported here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowfleet.api.settings_files import flat, read_dotenv, read_toml, text_of
from flowfleet.settings.layers import Found
from flowfleet.settings.option import Origin

#: settings that are tables themselves, so their keys are no setting names
_TABLES = frozenset({"PREFECT_CLIENT_CUSTOM_HEADERS"})


def prefect_settings(environ: Mapping[str, str], folder: Path, home: Path) -> dict[str, Found]:
    """All PREFECT_* settings that apply in `folder` for the user whose home is `home`, by their variable names."""
    found: dict[str, Found] = {}
    for source, values in _layers(environ, folder, home):
        for name, value in values.items():
            if value != "":
                found.setdefault(name, Found(value, Origin("prefect", source)))
    return found


def _layers(environ: Mapping[str, str], folder: Path, home: Path) -> Iterator[tuple[str, dict[str, str]]]:
    own = {name.upper(): value for name, value in environ.items() if name.upper().startswith("PREFECT_")}
    # PREFECT__… are no settings but the facts of one run, which a worker started inside a flow would pass on
    yield "environment", {name: value for name, value in own.items() if not name.startswith("PREFECT__")}
    dotenv = read_dotenv(folder / ".env", "PREFECT_")
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
    return str(name), {str(key).upper(): text_of(value) for key, value in profile.items()}


def _flat(table: Any) -> dict[str, str]:
    """A TOML table by variable names: `[api] url = …` becomes PREFECT_API_URL."""
    values = flat(table, lambda start, key: f"{start}_{key.upper()}", "PREFECT", _TABLES)
    return {name: text_of(value) for name, value in values}
