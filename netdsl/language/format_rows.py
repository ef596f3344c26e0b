"""Formats values that take several lines: lists, which keep their rows, and long arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from netdsl.errors import Span
from netdsl.language import syntax as s
from netdsl.language.comments import Comments
from netdsl.language.unparse import expression_text

WIDTH = 100
INDENT = "  "


@dataclass(frozen=True)
class _Item:
    """An entry of a list, an argument or a parameter: `name=`, if it has a name, and its value
    (a parameter may have none)."""

    tree: s.SyntaxNode
    name: str
    value: s.Expression | None

    @property
    def text(self) -> str:
        return self.name + (expression_text(self.value) if self.value else "")


class RowFormatter:
    """Formats values of a text. A value is on one line if it fits there, but a list that spanned
    several lines keeps its rows, each with its comment; so does what has comments inside."""

    def __init__(self, comments: Comments, text: str) -> None:
        self.comments = comments
        self.text = text

    def has_rows(self, tree: s.SyntaxNode) -> bool:
        """Whether a value, or anything inside it, keeps the lines that it had."""
        if self.comments.are_inside(tree.span):
            return True
        return self._is_multiline(tree) and any(
            isinstance(x, s.ListLiteral) and self._is_multiline(x) for x in s.walk(tree)
        )

    def _is_multiline(self, tree: s.SyntaxNode) -> bool:
        return "\n" in self.text[tree.span.start : tree.span.end]

    def format_value(self, head: str, e: s.Expression, indent: str, tail: str = "") -> list[str]:
        """The lines of a value between `head` and `tail`."""
        flat = head + expression_text(e) + tail
        if len(flat) <= WIDTH and not self.has_rows(e):
            return [flat]
        match e:
            case s.ListLiteral(items=items) if items:
                entries = [_Item(x, "", x) for x in items]
                return self._format_items(f"{head}[", entries, e.span, indent, f"]{tail}")
            case s.CallExpr(args=args) if args:
                return self.format_args(f"{head}{e.name}", args, e, indent, tail)
        return [flat]

    def format_args(
        self, head: str, args: Sequence[s.Arg], owner: s.SyntaxNode, indent: str, tail: str = ""
    ) -> list[str]:
        """The lines of `head(a, b=c)tail`."""
        items = [_Item(a, f"{a.name}=" if a.name else "", a.value) for a in args]
        return self._format_parenthesised(head, items, owner.span, indent, tail)

    def format_params(
        self, head: str, params: Sequence[s.Parameter], owner: s.Block | s.Net
    ) -> list[str]:
        """The lines of `head(a, b=1)`."""
        items = [_Item(p, f"{p.name}=" if p.default else p.name, p.default) for p in params]
        before_body = replace(owner.span, end=owner.body.span.start)
        return self._format_parenthesised(head, items, before_body, "", "")

    def _format_parenthesised(
        self, head: str, items: Sequence[_Item], span: Span, indent: str, tail: str
    ) -> list[str]:
        if not items:
            return [head + tail]
        flat = f"{head}({', '.join(x.text for x in items)}){tail}"
        has_rows = any(self.has_rows(x.tree) for x in items) or self.comments.are_inside(span)
        if len(flat) <= WIDTH and not has_rows:
            return [flat]
        return self._format_items(f"{head}(", items, span, indent, f"){tail}")

    def _format_items(
        self, head: str, items: Sequence[_Item], span: Span, indent: str, tail: str
    ) -> list[str]:
        """The items in rows: those of the text, or as many as fit on a line."""
        inner, lines = indent + INDENT, [head]
        keeps_rows = any(self._is_break(a, b) for a, b in pairwise(items))
        is_row_open = False
        end = span.start
        for i, item in enumerate(items):
            before = items[i - 1] if i else None
            breaks = before is None or (keeps_rows and self._is_break(before, item))
            has_comments = self.comments.write_between(end, item.tree.span.start, lines, inner)
            comma = "," if i < len(items) - 1 else ""
            fits = len(lines[-1]) + 1 + len(item.text) + len(comma) <= WIDTH
            is_row_open = is_row_open and fits and not breaks and not has_comments
            is_long = self._needs_lines(item, inner + comma)
            if is_row_open and not is_long:
                lines[-1] += f" {item.text}{comma}"
            elif item.value is None:
                lines.append(f"{inner}{item.name}{comma}")
            else:
                lines += self.format_value(inner + item.name, item.value, inner, comma)
            is_row_open, end = not is_long, item.tree.span.end
        self.comments.write_between(end, span.end, lines, inner)
        return [*lines, indent + tail]

    def _needs_lines(self, item: _Item, around: str) -> bool:
        is_wide = len(around) + len(item.text) > WIDTH
        return item.value is not None and (is_wide or self.has_rows(item.value))

    def _is_break(self, before: _Item, after: _Item) -> bool:
        """Whether the text has a line break between two items."""
        return "\n" in self.text[before.tree.span.end : after.tree.span.start]
