"""Escaping of untrusted text for display: a terminal must not obey what a file says."""

from __future__ import annotations

import unicodedata

_UNSAFE_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Categories of characters without a glyph: control, format (such as text direction), surrogate,
and line and paragraph separators."""
_SAFE_CHARACTERS = frozenset("\n\t\u200c\u200d")
"""Line ends, tabs, and the joiners that some scripts use."""


def escape_text(text: str) -> str:
    r"""Replaces every character that a terminal would obey or hide by an escape such as `\x1b` or
    `\u202e`; keeps line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(
        c if c in _SAFE_CHARACTERS or not _is_unsafe(c) else _escape_character(c) for c in text
    )


def escape_line(text: str) -> str:
    """Like `escape_text`, for text that must stay on one line, such as a name or a path."""
    return escape_text(text).replace("\n", r"\n").replace("\t", r"\t")


def quote_name(name: str) -> str:
    """A name as an entry of a list in a message: in quotes if its end would not be seen."""
    is_clear = name and name == name.strip() and not any(c in name for c in ',;"')
    return escape_line(name) if is_clear else f'"{escape_line(name)}"'


def _is_unsafe(c: str) -> bool:
    return unicodedata.category(c) in _UNSAFE_CATEGORIES


def _escape_character(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
