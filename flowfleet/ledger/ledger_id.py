"""Ledger id: tells the ledger of one Redis from others of the same fleet name, also in the API's history of a run.

It is made by chance at the first election in an empty Redis. The call that claims runs begins with it. Pollers and
workers remember the ids that they have heard, so that an emptied Redis is known again by what it had claimed before.
"""

import re
import uuid
from collections.abc import Iterable
from random import Random

#: as prelude.lua has it: so many ids are kept and remembered
KEPT = 16
_DIGITS = 8
_ID = re.compile(rf"[0-9a-f]{{{_DIGITS}}}")


def new_id(chance: Random) -> str:
    """An id of eight hex digits, for a ledger that nobody remembers."""
    return f"{chance.getrandbits(4 * _DIGITS):0{_DIGITS}x}"


def new_call(ledger: str) -> str:
    """The id of a call that claims runs through this ledger: a version-4 uuid that begins with the ledger's id."""
    return ledger + str(uuid.uuid4())[len(ledger) :]


def ledger_of(call: str) -> str:
    """The id of the ledger through which the runs of this call were claimed; chance, where its maker knew of none."""
    return call[:_DIGITS]


def remembered(heard: Iterable[str], before: Iterable[str]) -> tuple[str, ...]:
    """The ids to remember after these were heard: they come first, and of too many the oldest are forgotten."""
    ids = dict.fromkeys([*heard, *before])
    return tuple(text for text in ids if _ID.fullmatch(text))[:KEPT]
