"""Top: the live page of a fleet on the whole of a terminal, and what its keys change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.text import Text

from flowfleet.ledger.claims import Claim
from flowfleet.logs import iso
from flowfleet.monitor.snapshot import Snapshot
from flowfleet.monitor.status import body, head, runs_table
from flowfleet.monitor.tables import span
from flowfleet.printable import printable

_KEYS = "q quit   s sort   r reverse   / filter   ↑ ↓ PgUp PgDn move"
_KEYS_OF_FILTER = "Enter takes it   Esc shows all runs"
#: the orders of the runs, by the column that `s` goes to next
_ORDERS: dict[str, Callable[[Claim], Any]] = {
    "since": lambda claim: (claim.since, claim.run_id),
    "run": lambda claim: (claim.name.lower(), claim.run_id),
    "flow": lambda claim: (claim.flow.lower(), claim.name.lower()),
    "state": lambda claim: (claim.state, claim.since),
    "worker": lambda claim: (claim.worker or "", claim.since),
}
SORTS = tuple(_ORDERS)
#: lines that runs keep, however many queues and workers there are: a title and as many runs
_FEWEST_LINES = 6


@dataclass(frozen=True, kw_only=True)
class View:
    """What somebody looks at: the order of the runs, which of them, and from which one on."""

    sort: str = SORTS[0]
    reverse: bool = False
    filter: str = ""
    #: the filter is being typed
    typing: bool = False
    #: runs above the first that is shown
    above: int = 0
    over: bool = False

    def press(self, key: str, page: "Screenful") -> "View":
        """The view after this key; `page` is what it was pressed at."""
        if self.typing:
            return self._typed(key)
        moved = {
            "up": self.above - 1,
            "k": self.above - 1,
            "down": self.above + 1,
            "j": self.above + 1,
            "page-up": self.above - page.rows,
            "page-down": self.above + page.rows,
            "home": 0,
            "end": page.most_above,
        }
        if key in moved:
            return replace(self, above=max(0, min(moved[key], page.most_above)))
        changes: dict[str, dict[str, Any]] = {
            "q": {"over": True},
            "s": {"sort": SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], "above": 0},
            "r": {"reverse": not self.reverse, "above": 0},
            "/": {"typing": True, "above": 0},
            "escape": {"filter": "", "above": 0},
        }
        return replace(self, **changes.get(key, {}))

    def _typed(self, key: str) -> "View":
        if key == "enter":
            return replace(self, typing=False)
        if key == "escape":
            return replace(self, typing=False, filter="")
        if key == "clear":
            return replace(self, filter="")
        if key == "backspace":
            return replace(self, filter=self.filter[:-1])
        return replace(self, filter=self.filter + key) if len(key) == 1 else self

    def chosen(self, snapshot: Snapshot) -> list[Claim]:
        """The runs that pass the filter, in order: it is a part, in any case, of anything that is told of a run."""
        part = self.filter.lower()
        found = [claim for claim in snapshot.claims if any(part in text.lower() for text in _told(claim, snapshot))]
        return sorted(found, key=_ORDERS[self.sort], reverse=self.reverse)


def _told(claim: Claim, snapshot: Snapshot) -> tuple[str, ...]:
    names = (claim.name, claim.run_id, claim.flow, claim.deployment, claim.worker or "")
    return (*names, str(claim.state), snapshot.route_name(claim.route))


@dataclass(frozen=True, kw_only=True)
class Look:
    """The fleet as it was seen last, and why it is not seen now, if so."""

    snapshot: Snapshot
    trouble: str = ""
    #: for how long it has not been seen
    away_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Screenful:
    """What is shown, how many runs that is, and how far their list can be moved up."""

    content: RenderableType
    rows: int
    most_above: int


def page(view: View, look: Look, out: Console) -> Screenful:
    """The page for this terminal: head, queues, workers, as many runs as fit, and the keys in the last line."""
    snapshot, width, room = look.snapshot, out.width, out.height - 1
    parts: list[RenderableType] = [*_away(look), head(snapshot, width)]
    room -= _lines(parts, out)
    below = body(replace(snapshot, claims=()), width=width)
    if snapshot.claims and _lines(below, out) > room - _FEWEST_LINES:
        below = _shortened(snapshot, room - _FEWEST_LINES, out)
    room -= _lines(below, out)
    runs = view.chosen(snapshot)
    # a blank line, one that says which runs, and the titles
    rows = max(0, room - 3)
    most_above = max(0, len(runs) - rows)
    above = min(view.above, most_above)
    shown = runs[above : above + rows]
    if snapshot.claims and rows:
        below += ["", _which(view, above, shown, len(runs), len(snapshot.claims))]
        below += [runs_table(shown, snapshot, width)] if shown else []
    # what a small terminal has no room for goes, the last line stays
    content = Layout()
    content.split_column(Layout(Group(*parts, *below)), Layout(_footer(view, snapshot, width), size=1))
    return Screenful(content=content, rows=rows, most_above=most_above)


def _away(look: Look) -> list[RenderableType]:
    if not look.trouble:
        return []
    seen = f"shown is the fleet as it was at {iso(look.snapshot.at)}, {span(look.away_seconds)} ago"
    words = f"Redis is away ({printable(look.trouble)}): {seen}. It is asked again each second."
    return [Text(words, style="bold red")]


def _lines(parts: Sequence[RenderableType], out: Console) -> int:
    return len(out.render_lines(Group(*parts), pad=False)) if parts else 0


def _shortened(snapshot: Snapshot, room: int, out: Console) -> list[RenderableType]:
    """Queues and workers with only those rows for which there is room: first goes what has nothing to tell."""
    queues = sorted(snapshot.queues, key=lambda queue: -(queue.due + queue.depth))
    workers = sorted(snapshot.listed, key=lambda worker: (not worker.row.live, -worker.busy))
    # two titles, three blank lines, and a line that says how many are left out
    each = max(1, (room - 6) // 2)
    few = min(each, len(queues))
    many = max(1, room - 6 - few)
    kept = replace(snapshot, queues=tuple(queues[:few]), workers=tuple(workers[:many]), claims=(), tombs=())
    left_out = (len(queues) - few, max(0, len(workers) - many))
    told = [f"{number} more {what}" for number, what in zip(left_out, ("queues", "workers"), strict=True) if number]
    return [*body(kept, width=out.width), *([Text(f"and {', '.join(told)}, see flowfleet status")] if told else [])]


def _which(view: View, above: int, shown: Sequence[Claim], fitting: int, known: int) -> Text:
    place = f"{above + 1} to {above + len(shown)} of {fitting}" if len(shown) < fitting else str(fitting)
    only = f" with {printable(view.filter)!r} of {known}" if view.filter else ""
    order = f"by {view.sort}{', the other way round' if view.reverse else ''}"
    return Text(f"runs {place}{only}, {order}", style="bold")


def _footer(view: View, snapshot: Snapshot, width: int) -> Text:
    if view.typing:
        words = f"filter: {printable(view.filter)}▏   {_KEYS_OF_FILTER}"
    else:
        words = f"{_KEYS}   {iso(snapshot.at)[11:19]} UTC"
    made = Text(words, style="reverse", no_wrap=True, overflow="ellipsis")
    made.truncate(width, overflow="ellipsis", pad=True)
    return made
