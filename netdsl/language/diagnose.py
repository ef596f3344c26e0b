"""Syntax errors that teach: what stands there, what is missing, and where it was opened."""

from __future__ import annotations

import re
from collections.abc import Callable

from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from netdsl.errors import Diagnostic, Source, Span
from netdsl.language.mistakes import Place, usual

NO_NAMES = frozenset(("and", "or", "else"))
"""Words that the grammar takes for names nowhere."""
_SECTION_START = re.compile(r"^(?:use|block|net|data|train|test)\b", re.MULTILINE)
_WORDS = re.compile(
    r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|\d+(?:x\d+)+(?!\w)|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?|\w+'
    r"|->|==|!=|<=|>=|//|[^\w\s]"
)
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_MOST_ERRORS = 20
_MOST_SECTIONS = 500


def diagnose(
    source: Source, first: UnexpectedInput, parse: Callable[[Source], object]
) -> list[Diagnostic]:
    """Diagnostics for a text that does not parse: one for each top-level section that is wrong.

    A section begins at the left margin with its word; each is parsed alone, so that an error in
    one hides none in the next and a missing bracket is told where its section ends.
    """
    found: list[Diagnostic] = []
    for start, end in _sections(source.text)[:_MOST_SECTIONS]:
        try:
            parse(Source(source.name, source.text[start:end]))
        except UnexpectedInput as e:
            found.append(_explain(source, start, end, e, start))
        if len(found) == _MOST_ERRORS:
            break
    return found or [_explain(source, 0, len(source.text), first)]


def diagnose_expression(source: Source, start: int, error: UnexpectedInput) -> Diagnostic:
    """What is wrong in the one expression that stands in `source` from `start` on."""
    return _explain(source, start, len(source.text), error)


def _sections(text: str) -> list[tuple[int, int]]:
    starts = [m.start() for m in _SECTION_START.finditer(text)]
    if not starts or text[: starts[0]].strip():
        starts.insert(0, 0)
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _explain(
    source: Source, start: int, end: int, error: UnexpectedInput, shift: int = 0
) -> Diagnostic:
    """What is wrong between start and end; the error counts its places from `shift`."""
    ended = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    at = end if ended or error.pos_in_stream is None else error.pos_in_stream + shift
    words = [w for w in _WORDS.finditer(source.text, start, end) if w[0][0] != "#"]
    before = [w for w in words if w.start() < at]
    word = next((w for w in words if w.start() >= at and w.end() > at), None)
    last = before[-1] if before else None
    if isinstance(error, UnexpectedCharacters):
        glued = _glued(source, at)
        if glued:
            return glued
    if word is None and last is None:
        return Diagnostic("there is nothing to read here", Span(source, start, start + 1))
    unclosed = _unclosed(source, before, word, error)
    if unclosed:
        return unclosed
    if word is None and last is not None:
        return Diagnostic("the text ends too early", _after(source, last), _wanted(error))
    assert word is not None
    where = Span(source, word.start(), word.end())
    wanted = _expected(error)
    known = usual(Place(word[0], [m[0] for m in before], where, wanted))
    if known is None and word[0] in NO_NAMES and "NAME" in wanted:
        return _no_name(source, word)
    behind = f"after `{last[0]}`" if last and last[0] in (",", "->", "(") else "here"
    return known or Diagnostic(f"`{word[0]}` does not belong {behind}", where, _wanted(error))


def _no_name(source: Source, word: re.Match[str]) -> Diagnostic:
    message = f"`{word[0]}` is a word of the language and no name"
    return Diagnostic(message, _here(source, word), f"choose another, such as `{word[0]}_`")


def _after(source: Source, word: re.Match[str]) -> Span:
    return Span(source, word.end(), word.end() + 1)


def _glued(source: Source, at: int) -> Diagnostic | None:
    """A character that starts no word: a number run into a name, an open quote, a stranger."""
    text = source.text
    if text[at].isdigit():
        m = re.compile(r"[\w.]+").match(text, at)
        assert m is not None
        help = "put an operator or a space between: a size is `3x3`, a product `4*c`"
        if re.fullmatch(r"[\d.]+", m[0]):
            help = "numbers are written `12`, `0.5` or `1e-4`"
        return Diagnostic(f"`{m[0]}` is neither a number nor a name", _here(source, m), help)
    if text[at] == '"':
        end = text.find("\n", at)
        where = Span(source, at, end if end > at else len(text))
        return Diagnostic("this text has no closing quote", where, 'end it with `"` on its line')
    if text[at] == "'":
        return Diagnostic('texts are quoted with `"`', Span(source, at, at + 1))
    if text[at] == "." and re.match(r"\.\d", text[at : at + 2]):
        return Diagnostic("a number begins with a digit", Span(source, at, at + 2), "write `0.5`")
    if not re.match(r'[\w\s(){}\[\]|,;:=+\-*/%<>~!."#]', text[at]):
        meant = {"→": "write `->`", "×": "a size is `3x3`, a product `4*c`", "&": "write `and`"}
        stranger = "&&" if text.startswith("&&", at) else text[at]
        message = f"`{stranger}` has no meaning in a .net file"
        return Diagnostic(message, Span(source, at, at + len(stranger)), meant.get(text[at]))
    return None


def _here(source: Source, m: re.Match[str]) -> Span:
    return Span(source, m.start(), m.end())


def _unclosed(
    source: Source,
    before: list[re.Match[str]],
    word: re.Match[str] | None,
    error: UnexpectedInput,
) -> Diagnostic | None:
    """A bracket that was not closed where it must have been, told where it is missing."""
    opened = []
    for m in before:
        if m[0] in _CLOSES:
            opened.append(m)
        elif m[0] in _CLOSES.values() and opened:
            opened.pop()
    closers = {_CLOSES[m[0]] for m in opened}
    if word is not None and word[0] in set(_CLOSES.values()) - closers:
        where = _here(source, word)
        return Diagnostic(f"`{word[0]}` closes nothing", where, "remove it, or open it before")
    if not opened:
        return None
    needed = _CLOSES[opened[-1][0]]
    last = before[-1]
    next_line = word is None or "\n" in source.text[last.end() : word.start()]
    other = word is not None and word[0] in _CLOSES.values() and word[0] != needed
    expected = _expected(error)
    arrow = word is not None and word[0] == "->" and needed == ")" and "RPAR" in expected
    ended = next_line and (needed != "}" or "VBAR" in expected or word is None)
    if not (other or arrow or ended):
        return None
    line, column = source.position(opened[-1].start())
    place = f"the `{opened[-1][0]}` at {line}:{column} is not closed"
    return Diagnostic(f"a `{needed}` is missing", _after(source, last), place)


_FRIENDLY = {
    "NAME": "a name",
    "NUMBER": "a number",
    "SIZE": "a size such as `3x3`",
    "STRING": "a quoted text",
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
_QUIET = {"MINUS", "SIGN", "TIMES", "COMPARE", "SEMICOLON", "_OR", "_AND", "_NOT", "$END"}


def _expected(error: UnexpectedInput) -> set[str]:
    if isinstance(error, UnexpectedToken):
        return set(error.accepts or error.expected or ())
    return set(error.allowed or ()) if isinstance(error, UnexpectedCharacters) else set()


def _wanted(error: UnexpectedInput) -> str | None:
    names = _expected(error) - _QUIET
    shown = [_FRIENDLY.get(n, f"`{n.lower().strip('_')}`") for n in sorted(names)]
    return f"expected {', '.join(shown)}" if 0 < len(shown) <= 9 else None
