"""The text of a .net as pieces, each with the kind that a page shows it in."""

from __future__ import annotations

import re
from collections.abc import Iterator

_PIECE = re.compile(
    r"""(?P<comment>\#[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<numeral>(?<!\w)\d[\w.]*)
    |(?P<keyword>^\s*(?:net|block|test|data|train|let|use|shared|output|published)\b
      |\b(?:for|in|as|if|else|and|or|not|expect)\b)""",
    re.VERBOSE | re.MULTILINE,
)


def split_text(text: str) -> Iterator[tuple[str, str]]:
    """Yields (kind, piece); all pieces one after the other are the text. The kind is empty for
    plain text."""
    end = 0
    for found in _PIECE.finditer(text):
        if found.start() > end:
            yield "", text[end : found.start()]
        yield str(found.lastgroup), found[0]
        end = found.end()
    if end < len(text):
        yield "", text[end:]
