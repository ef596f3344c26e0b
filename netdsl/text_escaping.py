"""Text from elsewhere made safe to show: a terminal must not obey what a file says."""

from __future__ import annotations

import unicodedata

_UNSAFE_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Categories of characters without a picture of their own: control, format (as the direction of
writing), surrogate, and the separators of lines and paragraphs."""
_SAFE_CHARACTERS = frozenset("\n\t\u200c\u200d")
"""Ends of lines, tabs, and the joiners that some scripts are written with."""


def escape_text(text: str) -> str:
    r"""The text with a `\x1b` or `\u202e` for every character that a terminal would obey or hide;
    ends of lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        c if c in _SAFE_CHARACTERS or not _is_unsafe(c) else _escape_character(c) for c in text
    )


def escape_line(text: str) -> str:
    """As `escape_text`, of what must stay on one line: a name, a path."""
    return escape_text(text).replace("\n", r"\n").replace("\t", r"\t")


def _is_unsafe(c: str) -> bool:
    return unicodedata.category(c) in _UNSAFE_CATEGORIES


def _escape_character(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
