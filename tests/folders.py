"""Folders: what lies in folders whose files come and go while they are looked at.

`Path.glob` raises when a folder vanishes between its listing and its reading, which happens to those of runs.
"""

import glob
from pathlib import Path


def found(folder: Path, pattern: str) -> list[Path]:
    """What matches below this folder, in order of names."""
    matches = glob.glob(pattern, root_dir=folder, recursive=True, include_hidden=True)  # noqa: PTH207 - see above
    return [folder / name for name in sorted(matches)]


def names(folder: Path) -> list[str]:
    """The names in this folder, in order; none where it is gone."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
