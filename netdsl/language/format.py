"""Formats a .net file in its canonical layout; keeps comments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from netdsl.language import syntax as s
from netdsl.language.comments import Comments
from netdsl.language.format_rows import INDENT, WIDTH, RowFormatter
from netdsl.language.parse import parse
from netdsl.language.unparse import (
    args_text,
    condition_text,
    count_text,
    counter_text,
    element_text,
    entry_text,
    expectation_text,
    expression_text,
    params_text,
    statement_text,
)
from netdsl.values import format_value


def format_text(text: str, name: str = "<text>") -> str:
    """Returns `text` in canonical layout. Raises NetError if it does not parse."""
    return format_file(parse(text, name), text)


def format_file(file: s.File, text: str = "") -> str:
    """Formats a syntax tree; `text` is its source, for comments and blank lines."""
    return _Formatter(text).format_file(file)


_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_COMMENT_AND_BLANK_LINE = re.compile(r"#[^\n]*\n[ \t]*\n")
_SEPARATORS = re.compile(r"[ \t,;]*")


# ---- layout ------------------------------------------------------------------------------------


class _Formatter:
    """Formats a tree as lines. A construct that was on one line stays on one line if it fits; one
    that spanned several lines or is too long is broken between its parts."""

    def __init__(self, text: str) -> None:
        self.comments = Comments(text)
        self.rows = RowFormatter(self.comments, text)
        self.text = text
        self.lines: list[str] = []

    def format_file(self, file: s.File) -> str:
        last_end, was_multiline, previous = 0, False, None
        for item in file.items:
            comment_lines = self._capture_lines(
                partial(self._write_leading_comments, item.span.start, "", previous is None)
            )
            lines = _ITEM_FORMATTERS[type(item)](self, item)
            needs_blank_line = was_multiline or len(lines) > 1 or len(comment_lines) > 0
            if (
                previous is not None
                and type(previous) is type(item)
                and isinstance(item, s.Instance | s.Use | s.Let)
            ):
                needs_blank_line = False
            if previous is not None and self._needs_blank_line_before(
                item, last_end, always=needs_blank_line
            ):
                self.lines.append("")
            self.lines += comment_lines
            self._write_lines(lines, item, "")
            last_end, was_multiline, previous = item.span.end, len(lines) > 1, item
        self._write_leading_comments(len(self.text) + 1, "")
        return "\n".join(self.lines).strip("\n") + "\n" if self.lines else ""

    def _needs_blank_line_before(self, item: s.SyntaxNode, last_end: int, always: bool) -> bool:
        return always or bool(_BLANK_LINE.search(self.text, last_end, item.span.start))

    # ---- comments

    def _write_leading_comments(self, before: int, indent: str, separate: bool = False) -> None:
        """Writes the comments before a position, each on its own line."""
        while comment := self.comments.peek(before):
            self.lines.append(indent + self.comments.consume(comment))
            if separate and _COMMENT_AND_BLANK_LINE.match(self.text, comment.start, before):
                self.lines.append("")

    def _write_lines(self, lines: list[str], tree: s.SyntaxNode, indent: str) -> None:
        """Writes the lines of a construct, and the comment at its end."""
        self.lines += lines
        comment = self.comments.peek(len(self.text))
        if comment is None or comment.is_standalone:
            return
        if _SEPARATORS.fullmatch(self.text, tree.span.end, comment.start):
            self.lines[-1] += "  " + self.comments.consume(comment)

    def _is_one_line(self, tree: s.SyntaxNode) -> bool:
        """Whether a construct was on one line in the source, and so has no comment inside."""
        return self.text.find("\n", tree.span.start, tree.span.end) < 0

    def _capture_lines(self, write: Callable[[], None]) -> list[str]:
        outer, self.lines = self.lines, []
        write()
        inner, self.lines = self.lines, outer
        return inner

    # ---- items

    def format_use(self, item: s.Use) -> list[str]:
        return [f"use {format_value(item.path)}"]

    def format_let(self, item: s.Let) -> list[str]:
        head = f"let {item.name}{params_text(item.params)} = "
        return self.rows.format_value(head, item.value, "")

    def format_block(self, item: s.Block | s.Net) -> list[str]:
        word = "block" if isinstance(item, s.Block) else "net"
        head = self.rows.format_params(f"{word} {item.name}", item.params, item)
        return self.format_braced(head, item.body, item)

    def format_instance(self, item: s.Instance) -> list[str]:
        return self.rows.format_args(f"net {item.name} = {item.base}", item.args, item, "")

    def format_section(self, item: s.Section) -> list[str]:
        head = item.kind + (f" {item.name}" if item.name else "")
        return self._format_entries(head, item, item.entries, entry_text, self._format_entry)

    def _format_entry(self, e: s.SectionEntry | s.Expect) -> list[str]:
        if isinstance(e, s.Expect):
            return [INDENT + entry_text(e)]
        return self.rows.format_value(f"{INDENT}{e.name} = ", e.value, INDENT)

    def format_test(self, item: s.Test) -> list[str]:
        head = "test" + (f" {item.net}" if item.net else "")
        return self._format_entries(
            head,
            item,
            item.expectations,
            expectation_text,
            self._format_expectation,
        )

    def _format_expectation(self, e: s.Expression) -> list[str]:
        if isinstance(e, s.CallExpr):
            return self.rows.format_value(INDENT, e, INDENT)
        return [INDENT + expectation_text(e)]

    def _format_entries(
        self,
        head: str,
        item: s.SyntaxNode,
        entries: Iterable[Any],
        text: Callable[[Any], str],
        format_entry: Callable[[Any], list[str]],
    ) -> list[str]:
        entries = list(entries)
        if not entries and not self.comments.are_inside(item.span):
            return [head + " {}"]
        flat = f"{head} {{ {', '.join(map(text, entries))} }}"
        if len(flat) <= WIDTH and self._is_one_line(item):
            return [flat]

        def write() -> None:
            for e in entries:
                self._write_leading_comments(e.span.start, INDENT)
                self._write_lines(format_entry(e), e, INDENT)
            self._write_leading_comments(item.span.end, INDENT)

        return [head + " {", *self._capture_lines(write), "}"]

    # ---- bodies

    def format_braced(
        self, head: list[str], body: s.Body, owner: s.SyntaxNode, indent: str = ""
    ) -> list[str]:
        """Formats `head { statements }`, on one line if it was there before and fits. The head may
        have several lines; the first has no indent."""
        *above, last = head
        pad = "" if above else indent
        if not body.statements and not self.comments.are_inside(owner.span):
            return [*above, f"{last} {{}}"]
        if body.statements and (self._is_one_line(body) or not self.text):
            flat = f"{last} {{ {'; '.join(map(statement_text, body.statements))} }}"
            if len(pad + flat) <= WIDTH:
                return [*above, flat]
        statements = self._format_statements(body, indent + INDENT)
        return [*above, f"{last} {{", *statements, indent + "}"]

    def _format_statements(self, body: s.Body, indent: str) -> list[str]:
        widths = _compute_label_widths(body, self.text)

        def write() -> None:
            last = body.span.start + 1
            for i, st in enumerate(body.statements):
                if i and self._needs_blank_line_before(st, last, always=False):
                    self.lines.append("")
                self._write_leading_comments(st.span.start, indent)
                self._write_lines(self.format_statement(st, indent, widths.get(i, 0)), st, indent)
                last = st.span.end
            self._write_leading_comments(body.span.end, indent)

        return self._capture_lines(write)

    def format_statement(self, st: s.Statement, indent: str, label_width: int = 0) -> list[str]:
        match st:
            case s.Let():
                head = f"{indent}let {st.name}{params_text(st.params)} = "
                return self.rows.format_value(head, st.value, indent)
            case s.Shared():
                return self.format_chain(f"{indent}shared {st.name} = ", st.chain, indent)
            case s.SideOutput():
                args = args_text(st.args or None)
                return self.format_chain(f"{indent}output {st.name}{args}: ", st.chain, indent)
            case s.Chain():
                label = f"{st.label}:".ljust(label_width) + " " if st.label else ""
                return self.format_chain(indent + label, st, indent, has_label=True)

    def format_chain(
        self, head: str, chain: s.Chain, indent: str, has_label: bool = False, tail: str = ""
    ) -> list[str]:
        """Formats a chain between `head` and `tail`, broken before `->` if it does not fit on one
        line."""
        if chain.label and not has_label:
            head += f"{chain.label}: "
        flat = head + " -> ".join(map(element_text, chain.elements)) + tail
        if len(flat) <= WIDTH and not self._needs_break(chain):
            return [flat]
        lines = [head]
        for i, element in enumerate(chain.elements):
            arrow = " -> " if i else ""
            last_tail = tail if i == len(chain.elements) - 1 else ""
            width = len(element_text(element)) + len(last_tail)
            is_line_full = len(lines[-1]) + len(arrow) + width > WIDTH
            breaks_inside = self._is_multiline(element) or (
                _can_break(element) and len(indent) + len(INDENT) + 3 + width > WIDTH
            )
            has_comments = i > 0 and self.comments.write_between(
                chain.elements[i - 1].span.end, element.span.start, lines, indent + INDENT
            )
            if i and (has_comments or (is_line_full and not breaks_inside)):
                lines.append(f"{indent}{INDENT}-> ")
                arrow = ""
            piece = self.format_element(element, len(lines[-1]) + len(arrow), indent)
            lines[-1] += arrow + piece[0]
            lines += piece[1:]
            lines[-1] += last_tail
        return lines

    def _needs_break(self, chain: s.Chain) -> bool:
        """Whether the chain has comments, or a body or branches on several lines."""
        return self.comments.are_inside(chain.span) or any(
            self._is_multiline(e) for e in chain.elements
        )

    def _is_multiline(self, e: s.Element) -> bool:
        match e:
            case s.Repeat():
                return self._is_multiline(e.element)
            case s.ChainGroup():
                return self._needs_break(e.chain)
            case s.Step(branches=None):
                has_rows = any(self.rows.has_rows(a) for a in e.args or ())
                return has_rows or self.comments.are_inside(e.span)
            case s.Step():
                return not self._is_one_line(e)
            case s.If() | s.For():
                return not self._is_one_line(e)
        return False

    def format_element(self, e: s.Element, column: int, indent: str) -> list[str]:
        """Formats an element whose first line starts at `column`; later lines are indented."""
        flat = element_text(e)
        if column + len(flat) <= WIDTH and not self._is_multiline(e):
            return [flat]
        match e:
            case s.Repeat():
                inner = self.format_element(e.element, column, indent)
                return [*inner[:-1], inner[-1] + count_text(e)]
            case s.ChainGroup():
                inner = self.format_chain(" " * column + "(", e.chain, indent + INDENT)
                inner[0] = inner[0][column:]
                return [*inner[:-1], inner[-1] + ")"]
            case s.Step(branches=tuple()):
                return self._format_branches(e, column, indent)
            case s.Step() if e.args:
                lines = self.rows.format_args(" " * column + e.name, e.args, e, indent)
                return [lines[0][column:], *lines[1:]]
            case s.If():
                return self._format_if(e, indent)
            case s.For():
                return self.format_braced(self._format_loop(e, column, indent), e.body, e, indent)
        return [flat]

    def _format_loop(self, e: s.For, column: int, indent: str) -> list[str]:
        """The lines of a loop before its body; the first has no indent."""
        head = " " * column + f"for {', '.join(e.variables)} in "
        lines = self.rows.format_value(head, e.items, indent, counter_text(e.index))
        return [lines[0][column:], *lines[1:]]

    def _format_branches(self, e: s.Step, column: int, indent: str) -> list[str]:
        assert e.branches is not None
        head = f"{e.name}{args_text(e.args)} "
        bar_column = column + len(head)
        bar = (" " * bar_column if bar_column <= WIDTH // 3 else indent + INDENT * 2) + "| "
        lines = [head + "{ "]
        for i, branch in enumerate(e.branches):
            if i:
                before = e.branches[i - 1].span.end
                self.comments.write_between(before, branch.span.start, lines, indent + INDENT * 2)
                lines.append(bar)
            pad = " " * (column if len(lines) == 1 else 0)
            branch_lines = self.format_chain(
                pad + lines[-1], branch.chain, indent + INDENT * 3, tail=condition_text(branch)
            )
            lines = [*lines[:-1], branch_lines[0][len(pad) :], *branch_lines[1:]]
        return [*lines[:-1], lines[-1] + " }"]

    def _format_if(self, e: s.If, indent: str) -> list[str]:
        lines: list[str] = []
        arms = [(f"if {expression_text(c)}", body) for c, body in e.arms]
        if e.otherwise is not None:
            arms.append(("", e.otherwise))
        for i, (condition, body) in enumerate(arms):
            head = condition if i == 0 else f"else {condition}".rstrip()
            arm_lines = self.format_braced([head], body, body, indent)
            if i and lines[-1].strip() == "}":
                arm_lines[0] = f"{lines.pop()} {arm_lines[0]}"
            elif i:
                arm_lines[0] = indent + arm_lines[0]
            lines += arm_lines
        return lines


def _can_break(e: s.Element) -> bool:
    """Whether an element can be broken inside."""
    if isinstance(e, s.Repeat):
        return _can_break(e.element)
    return isinstance(e, s.ChainGroup | s.If | s.For) or (
        isinstance(e, s.Step) and bool(e.branches or e.args)
    )


def _compute_label_widths(body: s.Body, text: str) -> dict[int, int]:
    """Returns for each labelled statement the width that aligns it with its labelled
    neighbours."""
    widths: dict[int, int] = {}
    run: list[int] = []
    for i, st in enumerate([*body.statements, None]):
        has_label = isinstance(st, s.Chain) and st.label is not None
        is_separate = (
            run
            and st
            and _BLANK_LINE.search(text, body.statements[run[-1]].span.end, st.span.start)
        )
        if (not has_label or is_separate) and run:
            widest = max(len(body.statements[j].label or "") for j in run) + 1  # type: ignore[union-attr]
            widths |= dict.fromkeys(run, widest)
            run = []
        if has_label:
            run.append(i)
    return widths


_ITEM_FORMATTERS: dict[type, Callable[[_Formatter, Any], list[str]]] = {
    s.Use: _Formatter.format_use,
    s.Let: _Formatter.format_let,
    s.Block: _Formatter.format_block,
    s.Net: _Formatter.format_block,
    s.Instance: _Formatter.format_instance,
    s.Section: _Formatter.format_section,
    s.Test: _Formatter.format_test,
}
