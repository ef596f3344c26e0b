"""Turns parser errors into diagnostics: what was found, what is missing, where it was opened."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from netdsl.errors import Diagnostic, Source, Span
from netdsl.language.characters import explain_character
from netdsl.language.common_mistakes import find_common_mistake
from netdsl.language.single_quotes import double_quotes, explain_single_quotes
from netdsl.language.syntax_error_context import SyntaxErrorContext

RESERVED_WORDS = frozenset(("and", "or", "else"))
"""Words that the grammar never accepts as names."""
_SECTION_START = re.compile(r"^(?:use|block|net|data|train|test)\b", re.MULTILINE)
_TOKEN_PATTERN = re.compile(
    r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|\d+(?:x\d+)+(?!\w)|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?|\w+'
    r"|->|==|!=|<=|>=|//|[^\w\s]"
)
_HEADER = re.compile(r"\b(?:block|net|data|train|test|let|shared|output)[ \t]+$")
_CLOSING_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_MAX_ERRORS = 20
_MAX_SECTIONS = 500


def diagnose(
    source: Source, error: UnexpectedInput, parse: Callable[[Source], object]
) -> list[Diagnostic]:
    """Returns diagnostics for a text that does not parse: one for each invalid top-level section.

    A section begins with its keyword in the first column. Each is parsed alone, so that an error
    in one does not hide errors in the next, and a missing bracket is reported at the end of its
    section. Single quotes are read as double ones, so that they hide no other error.
    """
    diagnostics: list[Diagnostic] = []
    doubled = replace(source, text=double_quotes(source.text))
    for start, end in _split_sections(doubled.text)[:_MAX_SECTIONS]:
        found = list(islice(explain_single_quotes(source, start, end), _MAX_ERRORS))
        try:
            parse(Source(source.name, doubled.text[start:end]))
        except UnexpectedInput as e:
            found.append(_move(_explain(doubled, start, end, e, start), source))
        diagnostics += sorted(found, key=lambda d: d.span.start if d.span else 0)
        if len(diagnostics) >= _MAX_ERRORS:
            break
    return diagnostics[:_MAX_ERRORS] or [_explain(source, 0, len(source.text), error)]


def _move(diagnostic: Diagnostic, source: Source) -> Diagnostic:
    """The same diagnostic, at the same place of another source."""
    span = diagnostic.span
    return replace(diagnostic, span=replace(span, source=source) if span else None)


def diagnose_expression(source: Source, start: int, error: UnexpectedInput) -> Diagnostic:
    """Explains the syntax error in the expression that begins at `start` in `source`."""
    quotes = explain_single_quotes(source, start, len(source.text))
    return next(quotes, None) or _explain(source, start, len(source.text), error)


def _split_sections(text: str) -> list[tuple[int, int]]:
    starts = [m.start() for m in _SECTION_START.finditer(text)]
    if not starts or text[: starts[0]].strip():
        starts.insert(0, 0)
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _explain(
    source: Source, start: int, end: int, error: UnexpectedInput, offset: int = 0
) -> Diagnostic:
    """Explains the error between `start` and `end`; its positions are relative to `offset`."""
    at_end_of_text = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    position = (
        end if at_end_of_text or error.pos_in_stream is None else error.pos_in_stream + offset
    )
    tokens = [w for w in _TOKEN_PATTERN.finditer(source.text, start, end) if w[0][0] != "#"]
    preceding = [w for w in tokens if w.end() <= position]
    token = next((w for w in tokens if w.end() > position), None)
    previous = preceding[-1] if preceding else None
    if isinstance(error, UnexpectedCharacters):
        bad_character = _check_character(source, position)
        if bad_character:
            return bad_character
    if token is None and previous is None:
        return Diagnostic("there is nothing to read here", Span(source, start, start + 1))
    if token and token[0] == "if" and "VBAR" in _expected_terminals(error):
        help = "write the condition of a branch on the line where its chain ends: `a if condition`"
        return Diagnostic("a line begins with `if`", _match_span(source, token), help)
    bad_bracket = _check_brackets(source, preceding, token, error)
    if bad_bracket:
        return bad_bracket
    if token is None and previous is not None:
        return Diagnostic(
            "the text ends too early", _span_after(source, previous), _format_expected(error)
        )
    assert token is not None
    span = Span(source, token.start(), token.end())
    expected = _expected_terminals(error)
    gap = _span_after(source, previous) if previous else span
    common_mistake = find_common_mistake(
        SyntaxErrorContext(token[0], [m[0] for m in preceding], span, gap, expected)
    )
    if common_mistake is None and token[0] in RESERVED_WORDS and "NAME" in expected:
        return _reserved_word_error(source, token)
    location = f"after `{previous[0]}`" if previous and previous[0] in (",", "->", "(") else "here"
    message = f"`{token[0]}` does not belong {location}"
    if location == "here" and "_NL" not in expected and "\n" in source.text[gap.start : span.start]:
        message, span = "the line ends too early", gap
    return common_mistake or Diagnostic(message, span, _format_expected(error))


def _reserved_word_error(source: Source, token: re.Match[str]) -> Diagnostic:
    message = f"`{token[0]}` is a reserved word, not a name"
    return Diagnostic(
        message, _match_span(source, token), f"choose another name, such as `{token[0]}_`"
    )


def _span_after(source: Source, token: re.Match[str]) -> Span:
    return Span(source, token.end(), token.end() + 1)


def _check_character(source: Source, position: int) -> Diagnostic | None:
    """Explains a character that starts no token: a number run into a name, an unclosed quote, or
    a character that is not part of the language."""
    text = source.text
    if text[position].isdigit():
        m = re.compile(r"[\w.]+").match(text, position)
        assert m is not None
        is_exponent = re.fullmatch(r"[\d.]+e", m[0]) and m.end() < len(text)
        if is_exponent and not text[m.end()].isascii():
            return explain_character(source, m.end())
        help = "put an operator or a space in between: a size is `3x3`, a product `4*c`"
        if bounds := re.fullmatch(r"(\d+)\.\.(\d{1,9})", m[0]):
            help = f"`range({bounds[1]}, {int(bounds[2]) + 1})` is [{bounds[1]}, ..., {bounds[2]}]"
        elif re.fullmatch(r"[\d.]+", m[0]):
            help = "numbers are written `12`, `0.5` or `1e-4`"
        elif _HEADER.search(text[max(0, position - 80) : position]):
            help = "names begin with a letter or `_`"
        elif unit := re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([kKmM])", m[0]):
            number = round(float(unit[1]) * (1_000 if unit[2] in "kK" else 1_000_000))
            help = f"write the number out: `{number:_}`"
        return Diagnostic(f"`{m[0]}` is neither a number nor a name", _match_span(source, m), help)
    if text[position] == '"':
        end = text.find("\n", position)
        span = Span(source, position, end if end > position else len(text))
        return Diagnostic("this string has no closing quote", span, 'end it with `"` on its line')
    if text[position] == "'":
        span = Span(source, position, position + 1)
        return Diagnostic('strings are quoted with `"`', span, 'begin and end it with `"`')
    if text[position] == "." and re.match(r"\.\d", text[position : position + 2]):
        return Diagnostic(
            "a number begins with a digit", Span(source, position, position + 2), "write `0.5`"
        )
    return explain_character(source, position)


def _match_span(source: Source, m: re.Match[str]) -> Span:
    return Span(source, m.start(), m.end())


def _check_brackets(
    source: Source,
    preceding: list[re.Match[str]],
    token: re.Match[str] | None,
    error: UnexpectedInput,
) -> Diagnostic | None:
    """Reports an unmatched closing bracket, or a missing one at the place where it is missing."""
    open_brackets = []
    for m in preceding:
        if m[0] in _CLOSING_BRACKETS:
            open_brackets.append(m)
        elif m[0] in _CLOSING_BRACKETS.values() and open_brackets:
            open_brackets.pop()
    closers = {_CLOSING_BRACKETS[m[0]] for m in open_brackets}
    if token is not None and token[0] in set(_CLOSING_BRACKETS.values()) - closers:
        span = _match_span(source, token)
        return Diagnostic(
            f"`{token[0]}` has no opening bracket", span, "remove it, or open it earlier"
        )
    if not open_brackets:
        return None
    closer = _CLOSING_BRACKETS[open_brackets[-1][0]]
    previous = preceding[-1]
    is_on_next_line = token is None or "\n" in source.text[previous.end() : token.start()]
    is_mismatched = (
        token is not None and token[0] in _CLOSING_BRACKETS.values() and token[0] != closer
    )
    expected = _expected_terminals(error)
    is_before_arrow = (
        token is not None and token[0] == "->" and closer == ")" and "RPAR" in expected
    )
    is_at_line_end = is_on_next_line and (closer != "}" or "VBAR" in expected or token is None)
    if not (is_mismatched or is_before_arrow or is_at_line_end):
        return None
    line, column = source.position(open_brackets[-1].start())
    help = f"the `{open_brackets[-1][0]}` at {line}:{column} is not closed"
    return Diagnostic(f"a `{closer}` is missing", _span_after(source, previous), help)


_TERMINAL_NAMES = {
    "NAME": "a name",
    "NUMBER": "a number",
    "SIZE": "a size such as `3x3`",
    "STRING": "a quoted string",
    "_NL": "the end of the line",
    "SEMICOLON": "`;`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "COMMA": "`,`",
    "EQUAL": "`=`",
    "COLON": "`:`",
    "VBAR": "`|`",
    "STAR": "`*`",
    "DOT": "`.`",
    "_ARROW": "`->`",
    "$END": "the end of the file",
}
_HIDDEN_TERMINALS = {
    "MINUS",
    "SIGN",
    "TIMES",
    "COMPARE",
    "SEMICOLON",
    "_OR",
    "_AND",
    "_NOT",
    "_AS",
    "$END",
}


def _expected_terminals(error: UnexpectedInput) -> set[str]:
    if isinstance(error, UnexpectedToken):
        return set(error.accepts or error.expected or ())
    return set(error.allowed or ()) if isinstance(error, UnexpectedCharacters) else set()


def _format_expected(error: UnexpectedInput) -> str | None:
    names = _expected_terminals(error)
    follows_expression = "_OR" in names
    names -= _HIDDEN_TERMINALS | ({"_IF"} if follows_expression else set())
    descriptions = [_TERMINAL_NAMES.get(n, f"`{n.lower().strip('_')}`") for n in sorted(names)]
    return f"expected {', '.join(descriptions)}" if 0 < len(descriptions) <= 9 else None
