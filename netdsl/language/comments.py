"""The comments of a text, in order, as the formatter writes them back one by one."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

from netdsl.errors import Span


@dataclass(frozen=True)
class Comment:
    """A comment; it is standalone if nothing else stands on its line."""

    start: int
    text: str
    is_standalone: bool


_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|(#[^\n]*)')


class Comments:
    """The comments of a text, and which is the next to be written."""

    def __init__(self, text: str) -> None:
        self._comments = _find_comments(text)
        self._next = 0

    def peek(self, before: int) -> Comment | None:
        """The next unwritten comment, if it is before a position."""
        if self._next < len(self._comments) and self._comments[self._next].start < before:
            return self._comments[self._next]
        return None

    def consume(self, comment: Comment) -> str:
        """Marks a comment as written and returns its text."""
        self._next += 1
        return comment.text

    def are_inside(self, span: Span) -> bool:
        """Whether a part of the text contains comments that are not yet written."""
        first = bisect_left(self._comments, span.start, self._next, key=lambda c: c.start)
        return first < len(self._comments) and self._comments[first].start < span.end

    def write_between(
        self, before: int, after: int, lines: list[str], indent: str, can_follow: bool = True
    ) -> bool:
        """Adds the comments between two positions to `lines`, the first one at the end of the last
        line if it stood there and nothing forbids it (`can_follow`); the others on lines of their
        own. Returns whether there were any."""
        has_comments = False
        while (comment := self.peek(after)) and before <= comment.start:
            if comment.is_standalone or has_comments or not can_follow:
                lines.append(f"{indent}{self.consume(comment)}")
            else:
                lines[-1] += f"  {self.consume(comment)}"
            has_comments = True
        return has_comments


def _find_comments(text: str) -> list[Comment]:
    found = []
    for m in _COMMENT.finditer(text):
        if m[1]:
            before = text[text.rfind("\n", 0, m.start()) + 1 : m.start()]
            found.append(Comment(m.start(), m[1].rstrip(), not before.strip()))
    return found
