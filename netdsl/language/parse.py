"""The parser: text to syntax tree, with Lark's LALR parser and a transformer."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import lark
from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput
from lark.grammar import Rule
from lark.lexer import TerminalDef
from lark.tree import Meta

from netdsl.disk_cache import LANGUAGE_CACHE, make_key
from netdsl.errors import NetError, Source, Span
from netdsl.language import syntax as s
from netdsl.language.budget import ensure_recursion_limit, limit_error
from netdsl.language.diagnose import diagnose, diagnose_expression
from netdsl.limits import MAX_FILE_CHARACTERS, MAX_NESTING_DEPTH, MAX_TOKEN_CHARACTERS, MAX_TOKENS
from netdsl.values import Size


@lru_cache(maxsize=64)
def parse(text: str, name: str = "<text>", folder: str | None = None) -> s.File:
    """Parses the text of a .net file in `folder`; None for a text that is no file. Raises NetError
    with every syntax error found. Trees never change, so that a text which is parsed again, such as
    that of a file which several others use, gives the same tree."""
    source = Source(name, text, folder)
    check_limits(source)
    try:
        return _parse(source)
    except UnexpectedInput as e:
        raise NetError(*diagnose(source, e, _parse)) from None


def count_tokens(text: str) -> int:
    """Counts the tokens of a text, without comments."""
    return sum(m[0][0] != "#" for m in _TOKEN_PATTERN.finditer(text))


def parse_expression(text: str, prefix: str, origin: str = "command line") -> s.Expression:
    """Parses one expression; `prefix` is the text before it on the command line, or in `origin`.

    Raises NetError, with the position on that line, if it is not an expression.
    """
    source = Source(origin, prefix + text)
    check_limits(source)
    try:
        tree = _load_parser().parse(" " * len(prefix) + text, start="expression")
    except UnexpectedInput as e:
        raise NetError(diagnose_expression(source, len(prefix), e)) from None
    expression: s.Expression = _SyntaxTreeBuilder(source).transform(tree)
    return expression


def _parse(source: Source) -> s.File:
    file: s.File = _SyntaxTreeBuilder(source).transform(
        _load_parser().parse(source.text, start="start")
    )
    return file


def load_grammar() -> str:
    """Returns the Lark grammar. A wheel has it inside the package; in the repository, and so in an
    editable install, it is next to the package."""
    package = files("netdsl")
    packaged_file = package.joinpath("grammar", "netdsl.lark")
    repository_file = package.joinpath("..", "grammar", "netdsl.lark")
    return (packaged_file if packaged_file.is_file() else repository_file).read_text(
        encoding="utf-8"
    )


@cache
def _load_parser() -> Lark:
    """Returns the parser, from cached tables if possible: building them takes longer than parsing
    a file."""
    text = load_grammar()
    key = make_key("tables", text, _LARK_OPTIONS, lark.__version__)
    cached_tables = LANGUAGE_CACHE.load(key)
    if cached_tables is not None:
        with suppress(ValueError, LookupError, TypeError, AttributeError, AssertionError):
            return _deserialize_tables(cached_tables)
    parser = Lark(text, **_LARK_OPTIONS)
    LANGUAGE_CACHE.store(key, _serialize_tables(parser))
    return parser


def _serialize_tables(parser: Lark) -> bytes:
    """Returns a parser's tables as JSON. Unlike `Lark.save`, which pickles the same plain data,
    this cannot contain executable code."""
    data, memo = parser.memo_serialize([TerminalDef, Rule])
    return json.dumps({"data": data, "memo": memo}, separators=(",", ":")).encode()


def _deserialize_tables(tables: bytes) -> Lark:
    """Rebuilds the parser. JSON turned the integer keys of the tables into strings."""
    data = json.loads(tables)
    data["memo"] = _with_integer_keys(data["memo"])
    table = data["data"]["parser"]["parser"]
    table["tokens"] = _with_integer_keys(table["tokens"])
    table["states"] = {int(k): _with_integer_keys(row) for k, row in table["states"].items()}
    parser: Lark = Lark.load(data)
    return parser


def _with_integer_keys(table: dict[str, Any]) -> dict[int, Any]:
    return {int(k): v for k, v in table.items()}


_LARK_OPTIONS: dict[str, Any] = {
    "parser": "lalr",
    "start": ["start", "expression"],
    "propagate_positions": True,
    "maybe_placeholders": True,
}

_TOKEN_PATTERN = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|([(\[{])|([)\]}])|\w+|[^\w\s]')


def check_limits(source: Source) -> None:
    """Raises NetError if a text is longer or nested deeper than any real .net file."""
    ensure_recursion_limit()
    if len(source.text) > MAX_FILE_CHARACTERS:
        message = f"{source.name} has over {MAX_FILE_CHARACTERS:,} characters"
        raise limit_error(
            message, None, ".net files are not that long; split it into several with `use`"
        )
    depth = tokens = 0
    for m in _TOKEN_PATTERN.finditer(source.text):
        depth += 1 if m[1] else -1 if m[2] else 0
        tokens += m[0][0] != "#"
        if len(m[0]) > MAX_TOKEN_CHARACTERS and m[0][0] not in '"#':
            message = f"a word of over {MAX_TOKEN_CHARACTERS:,} characters"
            help = "names and numbers must be shorter"
            raise limit_error(message, Span(source, m.start(), m.end()), help)
        if depth > MAX_NESTING_DEPTH:
            message = f"brackets are nested more than {MAX_NESTING_DEPTH} deep"
            help = "move part of a net into a `block`, part of an expression into a `let`"
            raise limit_error(message, Span(source, m.start(), m.end()), help)
        if tokens > MAX_TOKENS:
            message = f"{source.name} has over {MAX_TOKENS:,} tokens"
            help = "repeats and loops make it shorter; `use` splits a file into several"
            raise limit_error(message, Span(source, m.start(), m.end()), help)


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _optional_name(token: Token | None) -> str | None:
    return None if token is None else str(token)


def _drop_none(children: list[Any]) -> list[Any]:
    return [c for c in children if c is not None]


@v_args(meta=True)
class _SyntaxTreeBuilder(Transformer[Any, Any]):
    """One method per grammar rule; each builds the syntax node of that name."""

    def __init__(self, source: Source) -> None:
        super().__init__(visit_tokens=False)
        self.source = source

    def _span(self, meta: Meta) -> Span:
        if meta.empty:
            return Span(self.source, 0, 0)
        return Span(self.source, meta.start_pos, meta.end_pos)

    def _token_span(self, token: Token) -> Span:
        start = token.start_pos or 0
        return Span(self.source, start, token.end_pos or start)

    # ---- expressions

    def number(self, meta: Meta, c: list[Any]) -> s.NumberLiteral:
        text = str(c[0])
        plain = text.replace("_", "")
        whole = plain.isdigit()
        return s.NumberLiteral(self._span(meta), int(plain) if whole else float(plain), text)

    def size(self, meta: Meta, c: list[Any]) -> s.SizeLiteral:
        return s.SizeLiteral(self._span(meta), Size(tuple(int(d) for d in c[0].split("x"))))

    def text(self, meta: Meta, c: list[Any]) -> s.StringLiteral:
        return s.StringLiteral(self._span(meta), _unquote(c[0]))

    def name(self, meta: Meta, c: list[Any]) -> s.Name:
        return s.Name(self._span(meta), str(c[0]))

    def listing(self, meta: Meta, c: list[Any]) -> s.ListLiteral:
        return s.ListLiteral(self._span(meta), tuple(_drop_none(c)))

    def pair(self, meta: Meta, c: list[Any]) -> s.PairLiteral:
        return s.PairLiteral(self._span(meta), c[0], c[1])

    def arg(self, meta: Meta, c: list[Any]) -> s.Arg:
        return s.Arg(self._span(meta), str(c[0]) if c[0] else None, c[1])

    def args(self, meta: Meta, c: list[Any]) -> tuple[s.Arg, ...]:
        return tuple(_drop_none(c))

    def call(self, meta: Meta, c: list[Any]) -> s.CallExpr:
        return s.CallExpr(self._span(meta), str(c[0]), c[1])

    def member(self, meta: Meta, c: list[Any]) -> s.MemberExpr:
        return s.MemberExpr(self._span(meta), str(c[0]))

    def index(self, meta: Meta, c: list[Any]) -> s.IndexExpr:
        base: s.Expression = c[0]
        indices = tuple(c[1:])
        if isinstance(base, s.IndexExpr):  # it was in brackets, which have no meaning
            return s.IndexExpr(self._span(meta), base.base, (*base.indices, *indices))
        return s.IndexExpr(self._span(meta), base, indices)

    def slice(self, meta: Meta, c: list[Any]) -> s.Slice:
        return s.Slice(self._span(meta), c[0], c[1])

    def negative(self, meta: Meta, c: list[Any]) -> s.UnaryExpr:
        return s.UnaryExpr(self._span(meta), "-", c[0])

    def denied(self, meta: Meta, c: list[Any]) -> s.UnaryExpr:
        return s.UnaryExpr(self._span(meta), "not", c[0])

    def sum(self, meta: Meta, c: list[Any]) -> s.NaryExpr:
        pairs = zip(c[1::2], c[2::2], strict=True)
        return s.NaryExpr(self._span(meta), c[0], tuple((str(op), e) for op, e in pairs))

    product = sum
    comparison = sum

    def both(self, meta: Meta, c: list[Any]) -> s.NaryExpr:
        return s.NaryExpr(self._span(meta), c[0], tuple(("and", e) for e in c[1:]))

    def either(self, meta: Meta, c: list[Any]) -> s.NaryExpr:
        return s.NaryExpr(self._span(meta), c[0], tuple(("or", e) for e in c[1:]))

    def conditional(self, meta: Meta, c: list[Any]) -> s.Conditional:
        arms = tuple(zip(c[:-1:2], c[1::2], strict=True))
        return s.Conditional(self._span(meta), arms, c[-1])

    def expression(self, meta: Meta, c: list[Any]) -> Any:
        return c[0]

    end = expression
    condition = expression

    # ---- bodies

    def step(self, meta: Meta, c: list[Any]) -> s.Step:
        name, args, branches = c
        return s.Step(self._span(meta), str(name), args, branches, self._token_span(name))

    def branches(self, meta: Meta, c: list[Any]) -> tuple[s.Branch, ...]:
        return tuple(c)

    def branch(self, meta: Meta, c: list[Any]) -> s.Branch:
        return s.Branch(self._span(meta), c[0], c[1])

    def incoming(self, meta: Meta, c: list[Any]) -> s.Incoming:
        return s.Incoming(self._span(meta))

    def group(self, meta: Meta, c: list[Any]) -> s.ChainGroup:
        return s.ChainGroup(self._span(meta), c[0])

    def arm(self, meta: Meta, c: list[Any]) -> tuple[s.Expression, s.Body]:
        return c[0], c[1]

    def if_(self, meta: Meta, c: list[Any]) -> s.If:
        return s.If(self._span(meta), tuple(c[:-1]), c[-1])

    def for_(self, meta: Meta, c: list[Any]) -> s.For:
        *variables, items, index, body = c
        return s.For(
            self._span(meta), tuple(map(str, variables)), items, _optional_name(index), body
        )

    def repeat(self, meta: Meta, c: list[Any]) -> s.Repeat:
        return s.Repeat(self._span(meta), c[0], c[-2], _optional_name(c[-1]))

    def chain(self, meta: Meta, c: list[Any]) -> s.Chain:
        return s.Chain(self._span(meta), str(c[0]) if c[0] else None, tuple(c[1:]))

    def let(self, meta: Meta, c: list[Any]) -> s.Let:
        return s.Let(self._span(meta), str(c[0]), c[1], c[2])

    def shared(self, meta: Meta, c: list[Any]) -> s.Shared:
        return s.Shared(self._span(meta), str(c[0]), c[1])

    def output(self, meta: Meta, c: list[Any]) -> s.SideOutput:
        return s.SideOutput(self._span(meta), str(c[0]), c[1] or (), c[2])

    def body(self, meta: Meta, c: list[Any]) -> s.Body:
        return s.Body(self._span(meta), tuple(_drop_none(c)))

    # ---- files

    def param(self, meta: Meta, c: list[Any]) -> s.Parameter:
        return s.Parameter(self._span(meta), str(c[0]), c[1] if len(c) > 1 else None)

    def params(self, meta: Meta, c: list[Any]) -> tuple[s.Parameter, ...]:
        return tuple(_drop_none(c))

    def use(self, meta: Meta, c: list[Any]) -> s.Use:
        return s.Use(self._span(meta), _unquote(c[0]))

    def block(self, meta: Meta, c: list[Any]) -> s.Block:
        return s.Block(self._span(meta), str(c[0]), c[1] or (), c[2])

    def net(self, meta: Meta, c: list[Any]) -> s.Net:
        return s.Net(self._span(meta), str(c[0]), c[1] or (), c[2])

    def instance(self, meta: Meta, c: list[Any]) -> s.Instance:
        return s.Instance(self._span(meta), str(c[0]), str(c[1]), c[2] or ())

    def entry(self, meta: Meta, c: list[Any]) -> s.SectionEntry:
        return s.SectionEntry(self._span(meta), str(c[0]), c[1])

    def expect(self, meta: Meta, c: list[Any]) -> s.Expect:
        return s.Expect(self._span(meta), c[0])

    def section(self, meta: Meta, c: list[Any]) -> s.Section:
        name = str(c[1]) if c[1] else None
        return s.Section(self._span(meta), str(c[0]), name, tuple(_drop_none(c[2:])))

    def test(self, meta: Meta, c: list[Any]) -> s.Test:
        return s.Test(self._span(meta), str(c[0]) if c[0] else None, tuple(_drop_none(c[1:])))

    def start(self, meta: Meta, c: list[Any]) -> s.File:
        whole = Span(self.source, 0, len(self.source.text))
        return s.File(whole, tuple(_drop_none(c)))


setattr(_SyntaxTreeBuilder, "if", _SyntaxTreeBuilder.if_)
setattr(_SyntaxTreeBuilder, "for", _SyntaxTreeBuilder.for_)
