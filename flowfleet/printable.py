"""Printable text: names and output of others, made fit for one line of a log, a table or a sentence."""

#: joiners of emoji and of some scripts, which have no width of their own
_JOINERS = frozenset("\u200c\u200d")


def printable(text: str) -> str:
    r"""The text in one line that a terminal shows as it is.

    What would move the cursor, end the line or turn the direction of writing is shown as Python writes it: `\n`,
    `\x1b`, `\u202e`. Letters of all scripts and emoji stay.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    if character.isspace() and character not in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029":
        return " "  # of another width
    return character.encode("unicode_escape").decode()
