"""Settings files: the readers of the TOML and `.env` files in which Prefect keeps its own settings."""

import json
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from flowfleet.errors import SettingsError


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, empty where there is none; raises `SettingsError` without showing any content."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: correct it or move it away") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error


def flat(
    table: Any, name_of: Callable[[str, str], str], start: str = "", whole: Collection[str] = ()
) -> Iterator[tuple[str, Any]]:
    """The values of a TOML table and of the tables in it by names that are made of a table's name and a key.

    A table named in `whole` is a value itself.
    """
    for key, value in table.items() if isinstance(table, Mapping) else ():
        name = name_of(start, str(key))
        if isinstance(value, Mapping) and name not in whole:
            yield from flat(value, name_of, name, whole)
        else:
            yield name, value


def text_of(value: Any) -> str:
    """A TOML value in the form that an environment variable has."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def read_dotenv(path: Path, prefix: str) -> dict[str, str]:
    """The variables of a .env file with this prefix, by the library that Prefect uses; empty without the file."""
    try:
        found = dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: correct it or move it away") from error
    return {name.upper(): value or "" for name, value in found.items() if name.upper().startswith(prefix)}
