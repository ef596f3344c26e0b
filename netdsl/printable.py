"""Text from elsewhere made safe to show: a terminal must not obey what a file says."""

from __future__ import annotations

import unicodedata

_OBEYED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Categories of characters without a picture of their own: control, format (as the direction of
writing), surrogate, and the separators of lines and paragraphs."""
_PLAIN = frozenset("\n\t\u200c\u200d")
"""Ends of lines, tabs, and the joiners that some scripts are written with."""


def printable(text: str) -> str:
    r"""The text with a `\x1b` or `\u202e` for every character that a terminal would obey or hide;
    ends of lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in _PLAIN or not _is_obeyed(c) else _escape(c) for c in text)


def printable_line(text: str) -> str:
    """As `printable`, of what must stay on one line: a name, a path."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def _is_obeyed(c: str) -> bool:
    return unicodedata.category(c) in _OBEYED


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
