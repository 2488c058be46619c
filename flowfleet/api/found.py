"""Found: what a Prefect API finds by a name or by a part of an id."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

#: runs in one answer: Prefect 3 gives no more
_PAGE = 200
#: how many pages of unfinished runs are looked through for a part of an id
_MOST_PAGES = 10
#: how many runs of one name are looked at
_NAMESAKES = 20


@dataclass(frozen=True)
class FoundRuns:
    """The runs that were found, as run id → run name."""

    names: Mapping[str, str] = field(default_factory=dict)
    #: after how many runs the search was cut, where there may be more; None: all were looked at
    cut_at: int | None = None


def namesakes(named: Callable[[int], Mapping[str, str]]) -> FoundRuns:
    """The runs of one name; `named` lists so many of them."""
    found = named(_NAMESAKES)
    return FoundRuns(found, cut_at=len(found) if len(found) >= _NAMESAKES else None)


def with_part(part: str, unfinished: Callable[[Collection[str], int], Mapping[str, str]]) -> FoundRuns:
    """The unfinished runs with this in their id, of the 2,000 that are listed first: no server has a question for that.

    `unfinished` lists so many, without those of the ids that it is given. So they are read page by page by the ids that
    were seen: an offset would be shifted by a run that ends meanwhile.
    """
    seen: dict[str, str] = {}
    cut = False
    for _ in range(_MOST_PAGES):
        page = unfinished(sorted(seen), _PAGE)
        seen |= page
        cut = len(page) >= _PAGE
        if not cut:
            break
    found = {run_id: name for run_id, name in seen.items() if part in run_id}
    return FoundRuns(found, cut_at=len(seen) if cut else None)
