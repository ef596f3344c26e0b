"""The canonical layout of a .net file: one way to write each thing, comments kept."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from netdsl.language import syntax as s
from netdsl.language.parse import parse
from netdsl.language.unparse import (
    TIGHT,
    args_text,
    element_text,
    entry_text,
    expectation_text,
    expression,
    inside,
    statement_text,
)
from netdsl.values import format_value

WIDTH = 100
INDENT = "  "


def format_text(text: str, name: str = "<text>") -> str:
    """`text` in canonical layout. Raises NetError where it does not parse."""
    return format_file(parse(text, name), text)


def format_file(file: s.File, text: str = "") -> str:
    """A syntax tree as text; `text` is what it was parsed from, for comments and blank lines."""
    return _Writer(_comments(text), text).file(file)


# ---- comments ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Comment:
    start: int
    text: str
    alone: bool


_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|(#[^\n]*)')


def _comments(text: str) -> list[_Comment]:
    found = []
    for m in _COMMENT.finditer(text):
        if m[1]:
            before = text[text.rfind("\n", 0, m.start()) + 1 : m.start()]
            found.append(_Comment(m.start(), m[1].rstrip(), not before.strip()))
    return found


_BLANK = re.compile(r"\n[ \t]*\n")
_LINE_AND_BLANK = re.compile(r"#[^\n]*\n[ \t]*\n")
_STOPS = re.compile(r"[ \t,;]*")


# ---- layout ------------------------------------------------------------------------------------


class _Writer:
    """Lays a tree out in lines. Every piece first tries to stand on one line, as it did in the
    text; what was written over several lines or grew too long is broken at its own seams."""

    def __init__(self, comments: list[_Comment], text: str) -> None:
        self.comments = comments
        self.written = 0
        self.text = text
        self.lines: list[str] = []
        self._flat: dict[int, str] = {}

    def file(self, file: s.File) -> str:
        last_end, tall, last = 0, False, None
        for item in file.items:
            lead = self._nested(partial(self._leading, item.span.start, "", last is None))
            lines = _ITEMS[type(item)](self, item)
            apart = tall or len(lines) > 1 or len(lead) > 0
            if (
                last is not None
                and type(last) is type(item)
                and isinstance(item, s.Instance | s.Use)
            ):
                apart = False
            if last is not None and self._blank_before(item, last_end, always=apart):
                self.lines.append("")
            self.lines += lead
            self._put(lines, item, "")
            last_end, tall, last = item.span.end, len(lines) > 1, item
        self._leading(len(self.text) + 1, "")
        return "\n".join(self.lines).strip("\n") + "\n" if self.lines else ""

    def _blank_before(self, item: s.Tree, last_end: int, always: bool) -> bool:
        return always or bool(_BLANK.search(self.text, last_end, item.span.start))

    # ---- comments

    def _next(self, before: int) -> _Comment | None:
        """The first comment that is not written yet, where it stands before a place."""
        if self.written < len(self.comments) and self.comments[self.written].start < before:
            return self.comments[self.written]
        return None

    def _taken(self, comment: _Comment) -> str:
        """The text of a comment that is written now."""
        self.written += 1
        return comment.text

    def _leading(self, before: int, indent: str, separate: bool = False) -> None:
        """Comments that stand before the next thing, each on its own line."""
        while comment := self._next(before):
            self.lines.append(indent + self._taken(comment))
            if separate and _LINE_AND_BLANK.match(self.text, comment.start, before):
                self.lines.append("")

    def _put(self, lines: list[str], tree: s.Tree, indent: str) -> None:
        """Lines of one thing, and the comment that stands at its end."""
        self.lines += lines
        comment = self._next(len(self.text))
        if comment is None or comment.alone:
            return
        if _STOPS.fullmatch(self.text, tree.span.end, comment.start):
            self.lines[-1] += "  " + self._taken(comment)

    def _has_comments(self, tree: s.Tree) -> bool:
        """Whether comments within a thing are still to be written."""
        first = bisect_left(self.comments, tree.span.start, self.written, key=lambda c: c.start)
        return first < len(self.comments) and self.comments[first].start < tree.span.end

    def _one_line(self, tree: s.Tree) -> bool:
        """Whether a thing stood on one line, and has no comment within."""
        return self.text.find("\n", tree.span.start, tree.span.end) < 0

    def _nested(self, write: Callable[[], None]) -> list[str]:
        outer, self.lines = self.lines, []
        write()
        inner, self.lines = self.lines, outer
        return inner

    # ---- items

    def use(self, item: s.Use) -> list[str]:
        return [f"use {format_value(item.path)}"]

    def block(self, item: s.Block | s.Net) -> list[str]:
        word = "block" if isinstance(item, s.Block) else "net"
        params = ", ".join(
            p.name if p.default is None else f"{p.name}={expression(p.default)}"
            for p in item.params
        )
        head = f"{word} {item.name}({params})" if params else f"{word} {item.name}"
        return self.braced(head, item.body, item)

    def instance(self, item: s.Instance) -> list[str]:
        return [f"net {item.name} = {item.base}{args_text(item.args or None)}"]

    def section(self, item: s.Section) -> list[str]:
        head = item.kind + (f" {item.name}" if item.name else "")
        return self._entries(head, item, item.entries, entry_text)

    def test(self, item: s.Test) -> list[str]:
        head = "test" + (f" {item.net}" if item.net else "")
        return self._entries(head, item, item.expectations, expectation_text)

    def _entries(
        self, head: str, item: s.Tree, entries: Iterable[Any], text: Callable[[Any], str]
    ) -> list[str]:
        entries = list(entries)
        if not entries and not self._has_comments(item):
            return [head + " {}"]
        flat = f"{head} {{ {', '.join(map(text, entries))} }}"
        if len(flat) <= WIDTH and self._one_line(item):
            return [flat]

        def write() -> None:
            for e in entries:
                self._leading(e.span.start, INDENT)
                self._put([INDENT + text(e)], e, INDENT)
            self._leading(item.span.end, INDENT)

        return [head + " {", *self._nested(write), "}"]

    # ---- bodies

    def braced(self, head: str, body: s.Body, whole: s.Tree, indent: str = "") -> list[str]:
        """`head { statements }`, on one line where it was and fits."""
        if not body.statements and not self._has_comments(whole):
            return [f"{head} {{}}"]
        if body.statements and (self._one_line(body) or not self.text):
            flat = f"{head} {{ {'; '.join(map(statement_text, body.statements))} }}"
            if len(indent + flat) <= WIDTH:
                return [flat]
        return [f"{head} {{", *self._statements(body, indent + INDENT), indent + "}"]

    def _statements(self, body: s.Body, indent: str) -> list[str]:
        widths = _label_widths(body, self.text)

        def write() -> None:
            last = body.span.start + 1
            for i, st in enumerate(body.statements):
                if i and self._blank_before(st, last, always=False):
                    self.lines.append("")
                self._leading(st.span.start, indent)
                self._put(self.statement(st, indent, widths.get(i, 0)), st, indent)
                last = st.span.end
            self._leading(body.span.end, indent)

        return self._nested(write)

    def statement(self, st: s.Statement, indent: str, label_width: int = 0) -> list[str]:
        match st:
            case s.Let():
                return [f"{indent}let {st.name} = {expression(st.value)}"]
            case s.Shared():
                return self.chain(f"{indent}shared {st.name} = ", st.chain, indent)
            case s.Output():
                args = args_text(st.args or None)
                return self.chain(f"{indent}output {st.name}{args}: ", st.chain, indent)
            case s.Chain():
                label = f"{st.label}:".ljust(label_width) + " " if st.label else ""
                return self.chain(indent + label, st, indent, labelled=True)

    def chain(self, head: str, chain: s.Chain, indent: str, labelled: bool = False) -> list[str]:
        """A chain behind `head`; broken before `->` where it does not fit its line."""
        if chain.label and not labelled:
            head += f"{chain.label}: "
        flat = head + " -> ".join(map(element_text, chain.elements))
        if len(flat) <= WIDTH and not self._must_break(chain):
            return [flat]
        lines = [head]
        for i, element in enumerate(chain.elements):
            arrow = " -> " if i else ""
            wide = len(element_text(element))
            full = len(lines[-1]) + len(arrow) + wide > WIDTH
            opens = self._broken(element) or (
                _breakable(element) and len(indent) + len(INDENT) + 3 + wide > WIDTH
            )
            noted = i > 0 and self._between(chain.elements[i - 1], element, lines, indent)
            if i and (noted or (full and not opens)):
                lines.append(f"{indent}{INDENT}-> ")
                arrow = ""
            piece = self.element(element, len(lines[-1]) + len(arrow), indent)
            lines[-1] += arrow + piece[0]
            lines += piece[1:]
        return lines

    def _between(self, before: s.Tree, after: s.Tree, lines: list[str], indent: str) -> bool:
        """Writes the comments between two parts of a statement where they stand; whether any."""
        found = False
        while (comment := self._next(after.span.start)) and before.span.end <= comment.start:
            if comment.alone or found:
                lines.append(f"{indent}{INDENT}{self._taken(comment)}")
            else:
                lines[-1] += f"  {self._taken(comment)}"
            found = True
        return found

    def _must_break(self, chain: s.Chain) -> bool:
        """Whether the chain holds a body or branches that were written over several lines."""
        return self._has_comments(chain) or any(self._broken(e) for e in chain.elements)

    def _broken(self, e: s.Element) -> bool:
        match e:
            case s.Repeat():
                return self._broken(e.element)
            case s.Group():
                return self._must_break(e.chain)
            case s.Step():
                return e.branches is not None and not self._one_line(e)
            case s.If() | s.For():
                return not self._one_line(e)
        return False

    def element(self, e: s.Element, column: int, indent: str) -> list[str]:
        """An element whose first line starts at `column`; later lines come with their indent."""
        flat = element_text(e)
        if column + len(flat) <= WIDTH and not self._broken(e):
            return [flat]
        match e:
            case s.Repeat():
                inner = self.element(e.element, column, indent)
                return [*inner[:-1], f"{inner[-1]} * {inside(e.count, TIGHT + 1)}"]
            case s.Group():
                inner = self.chain(" " * column + "(", e.chain, indent + INDENT)
                inner[0] = inner[0][column:]
                return [*inner[:-1], inner[-1] + ")"]
            case s.Step(branches=tuple()):
                return self._branched(e, column, indent)
            case s.If():
                return self._if(e, indent)
            case s.For():
                return self.braced(
                    f"for {', '.join(e.variables)} in {expression(e.items)}", e.body, e, indent
                )
        return [flat]

    def _branched(self, e: s.Step, column: int, indent: str) -> list[str]:
        assert e.branches is not None
        head = f"{e.name}{args_text(e.args)} "
        at = column + len(head)
        bar = (" " * at if at <= WIDTH // 3 else indent + INDENT * 2) + "| "
        lines = [head + "{ "]
        for i, branch in enumerate(e.branches):
            if i:
                self._between(e.branches[i - 1], branch, lines, indent + INDENT)
                lines.append(bar)
            used = column if len(lines) == 1 else 0
            pad = " " * used
            written = self.chain(pad + lines[-1], branch, indent + INDENT * 3)
            lines = [*lines[:-1], written[0][len(pad) :], *written[1:]]
        return [*lines[:-1], lines[-1] + " }"]

    def _if(self, e: s.If, indent: str) -> list[str]:
        lines: list[str] = []
        arms = [(f"if {expression(c)}", body) for c, body in e.arms]
        if e.otherwise is not None:
            arms.append(("", e.otherwise))
        for i, (condition, body) in enumerate(arms):
            head = condition if i == 0 else f"else {condition}".rstrip()
            written = self.braced(head, body, body, indent)
            if i and lines[-1].strip() == "}":
                written[0] = f"{lines.pop()} {written[0]}"
            elif i:
                written[0] = indent + written[0]
            lines += written
        return lines


def _breakable(e: s.Element) -> bool:
    """Whether an element has seams of its own to break at."""
    if isinstance(e, s.Repeat):
        return _breakable(e.element)
    return isinstance(e, s.Group | s.If | s.For) or (isinstance(e, s.Step) and bool(e.branches))


def _label_widths(body: s.Body, text: str) -> dict[int, int]:
    """For each labelled statement the width that aligns it with its labelled neighbours."""
    widths: dict[int, int] = {}
    run: list[int] = []
    for i, st in enumerate([*body.statements, None]):
        labelled = isinstance(st, s.Chain) and st.label is not None
        apart = run and st and _BLANK.search(text, body.statements[run[-1]].span.end, st.span.start)
        if (not labelled or apart) and run:
            widest = max(len(body.statements[j].label or "") for j in run) + 1  # type: ignore[union-attr]
            widths |= dict.fromkeys(run, widest)
            run = []
        if labelled:
            run.append(i)
    return widths


_ITEMS: dict[type, Callable[[_Writer, Any], list[str]]] = {
    s.Use: _Writer.use,
    s.Block: _Writer.block,
    s.Net: _Writer.block,
    s.Instance: _Writer.instance,
    s.Section: _Writer.section,
    s.Test: _Writer.test,
}
