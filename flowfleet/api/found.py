"""Found: one setting of Prefect's own, with the place where it was found; and the reader of its TOML files."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfleet.errors import SettingsError


@dataclass(frozen=True)
class FoundSetting:
    """One setting and where it was found; the value may be a secret, so `repr` does not show it."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"FoundSetting(source={self.source!r})"


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, empty where there is none; raises `SettingsError` without showing any content."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML, correct it or move it away") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
