"""Reading the IR's text: what netdsl.ir.text writes becomes the same graph again.

A line is a statement, or a comment that begins with `#`. Nothing in a text is
executed, and its length and nesting have limits.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from netdsl.errors import Diagnostic, NetError, Source, Span, fail, suggest_name
from netdsl.ir.builder import Builder
from netdsl.ir.text import NAME, WORDS, numbered, value_text
from netdsl.limits import MAX_AXES, MAX_IR_CHARACTERS, MAX_NESTING_DEPTH
from netdsl.ops import OPS
from netdsl.ops.op import Op
from netdsl.parameter_types import TypeMismatch
from netdsl.signature import REQUIRED, Param
from netdsl.types import ITEMSIZE, Attrs, Graph, Node, TensorType
from netdsl.values import Symbol, format_value

_NAME = rf'(?:{NAME}|"(?:[^"\\]|\\.)*")'
_TYPE = r"(?P<dims>scalar|\d+(?:x\d+)*) (?P<dtype>\w+)"
_REGION = rf"(?:  @(?P<region>{_NAME}))?"
_HEAD = re.compile(rf"graph (?P<name>{_NAME}) \{{")
_INPUT = re.compile(rf"input (?P<name>{_NAME}): {_TYPE}{_REGION}")
_STATE = re.compile(
    rf"state (?P<name>{_NAME}): {_TYPE} (?P<law>{_NAME})\((?P<scale>[^()]*)\)"
    rf"(?P<still> not learnt)?{_REGION}"
)
_CONST = re.compile(rf"const (?P<name>{_NAME}) = (?P<value>.*?)  {_TYPE}{_REGION}")
_NODE = re.compile(rf"(?P<name>{_NAME}) = (?P<op>\w+)\((?P<inside>.*)\)  {_TYPE}{_REGION}")
_ROOT = re.compile(rf"(?P<word>output|update) (?P<name>{_NAME}): (?P<value>.*)")
_TOKEN = re.compile(
    rf"(?P<size>\d+(?:x\d+)+)|(?P<number>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|-inf)"
    rf"|(?P<word>{'|'.join(WORDS)})(?![\w.])|(?P<name>{_NAME})|(?P<sign>[\[\],=])|(?P<rank>~\d+)"
)
_SPACE = re.compile(r"\s*")
_MOST_DIGITS = 18


def parse(text: str, name: str = "ir") -> Graph:
    """The graph of a text, verified; `name` is what errors call the text.

    Raises NetError, with the place in the text, where it is no graph.
    """
    found = parse_all(text, name)
    if len(found) != 1:
        raise fail(f"{name} holds {len(found)} graphs, not one")
    return found[0]


def parse_all(text: str, name: str = "ir") -> tuple[Graph, ...]:
    """The graphs of a text, one behind the other."""
    if len(text) > MAX_IR_CHARACTERS:
        raise fail(f"{name} has over {MAX_IR_CHARACTERS:,} characters")
    source, at = Source(name, text), 0
    found, current = list[Graph](), None
    for whole in text.split("\n"):
        line, indent = whole.strip(), len(whole) - len(whole.lstrip())
        span = Span(source, at + indent, at + indent + len(line))
        at += len(whole) + 1
        if not line or line.startswith("#"):
            continue
        if current is None:
            current = _Parser.begun(line, span)
        elif line == "}":
            found.append(current.graph())
            current = None
        else:
            current.statement(line, span)
    if current is not None:
        raise fail("the text ends without `}`", Span(source, at - 1, at - 1))
    return tuple(found)


@dataclass(frozen=True)
class _Found:
    """A value that stands in a text, and where."""

    value: Any
    span: Span


@dataclass
class _Parser:
    """The statements so far: nodes in a Builder, constants by how they are written where they are
    read."""

    source: Source
    name: str
    b: Builder = field(default_factory=Builder)
    consts: dict[str, str] = field(default_factory=dict)
    values: Counter[str] = field(default_factory=Counter)
    outputs: dict[str, Node] = field(default_factory=dict)
    updates: dict[str, Node] = field(default_factory=dict)

    @staticmethod
    def begun(line: str, span: Span) -> _Parser:
        found = _HEAD.fullmatch(line)
        if found is None:
            raise fail("`graph NAME {` is expected here", span)
        return _Parser(span.source, _unquoted(found["name"], _part(found, "name", span)))

    def graph(self) -> Graph:
        return self.b.graph(self.outputs, self.updates, self.name)

    def statement(self, line: str, span: Span) -> None:
        node = _NODE.fullmatch(line)
        if node is not None:
            return self._node(node, span)
        for pattern, read in (
            (_INPUT, self._input),
            (_STATE, self._state),
            (_CONST, self._const),
            (_ROOT, self._root),
        ):
            found = pattern.fullmatch(line)
            if found is not None:
                return read(found, span)
        raise fail(
            "this is no statement",
            span,
            help="`name = op(operands, attribute=value)  2x3 float32`, or one that begins with "
            "input, state, const, output or update",
        )

    # statements

    def _input(self, found: re.Match[str], span: Span) -> None:
        kind = self._type(found, span)
        self._insert(found, span, "input", (), {"shape": kind.shape, "dtype": kind.dtype})

    def _state(self, found: re.Match[str], span: Span) -> None:
        kind = self._type(found, span)
        scale = self._one(found, "scale", span)
        if type(scale.value) not in (int, float):
            raise fail("a distribution's parameter is a number", scale.span)
        init = (self._name(found, "law", span), scale.value)
        trainable = found["still"] is None
        attrs = {"shape": kind.shape, "dtype": kind.dtype, "init": init, "trainable": trainable}
        self._insert(found, span, "state", (), attrs)

    def _const(self, found: re.Match[str], span: Span) -> None:
        value, kind = self._one(found, "value", span), self._type(found, span)
        many = value.value if isinstance(value.value, tuple) else (value.value,)
        if not all(type(v) in (int, float) for v in many):
            raise fail("a constant is a number or a list of numbers", value.span)
        node = self._insert(found, span, "const", (), {"value": value.value, "dtype": kind.dtype})
        written = value_text(value.value)
        self.values[written] += 1
        self.consts[numbered(written, self.values[written])] = node.name

    def _root(self, found: re.Match[str], span: Span) -> None:
        name, value = (
            self._name(found, "name", span),
            self._operand(self._one(found, "value", span)),
        )
        roots = self.outputs if found["word"] == "output" else self.updates
        if name in roots:
            raise fail(f"there is a second {found['word']} `{name}`", _part(found, "name", span))
        if roots is self.updates:
            state = self.b.nodes.get(name)
            if state is None or state.op != "state":
                raise fail(f"`{name}` is no state", _part(found, "name", span))
            if state.type != value.type:
                message = f"`{name}` is {state.type}, its update is {value.type}"
                raise fail(message, _part(found, "value", span))
        roots[name] = value

    def _node(self, found: re.Match[str], span: Span) -> None:
        op, where = found["op"], _part(found, "op", span)
        record = OPS.get(op)
        if record is None or record.kind == "leaf":
            raise fail(
                f"no operator is called `{op}`", where, help=suggest_name(op, OPS, "known are")
            )
        operands, given = [], dict[str, _Found]()
        for key, value in self._items(found, "inside", span):
            if key is None and not given:
                operands.append(self._operand(value).name)
            elif key is None:
                raise fail("operands come before attributes", value.span)
            elif key in given:
                raise fail(f"`{key}` is given twice", value.span)
            else:
                given[key] = value
        if not record.variadic and len(operands) != len(record.operands):
            wanted = ", ".join(record.operands) or "none"
            raise fail(f"the operands of `{op}` are {wanted}; here are {len(operands)}", where)
        attrs = _attributes(record, given, where)
        self._insert(found, span, op, tuple(operands), attrs)

    def _insert(
        self,
        found: re.Match[str],
        span: Span,
        op: str,
        operands: tuple[str, ...],
        attrs: dict[str, Any],
    ) -> Node:
        """The node of a line, whose type is what its operator's rule says."""
        name, kind = self._name(found, "name", span), self._type(found, span)
        if name in self.b.nodes:
            raise fail(f"there is a second value `{name}`", _part(found, "name", span))
        if op in ("input", "state"):
            _accepted(OPS[op].attrs[0], kind.shape, _part(found, "dims", span))
        try:
            inferred = OPS[op].shape(*(self.b.nodes[a].type for a in operands), **attrs)
        except NetError as e:
            raise e.with_default_span(span) from None
        if inferred != kind:
            raise fail(f"`{name}` is called {kind}, but is {inferred}", _part(found, "dims", span))
        region = self._name(found, "region", span) if found["region"] else ""
        return self.b.insert(Node(name, op, operands, Attrs(attrs), kind, span, region))

    # parts of statements

    def _type(self, found: re.Match[str], span: Span) -> TensorType:
        dtype, sides = found["dtype"], found["dims"]
        if dtype not in ITEMSIZE:
            help = suggest_name(dtype, ITEMSIZE, "known are")
            raise fail(f"no element type is called {dtype}", _part(found, "dtype", span), help=help)
        where = _part(found, "dims", span)
        shape = () if sides == "scalar" else tuple(_whole(n, where) for n in sides.split("x"))
        if len(shape) > MAX_AXES:
            raise fail(f"a tensor has at most {MAX_AXES} axes", where)
        return TensorType(shape, dtype)

    def _name(self, found: re.Match[str], group: str, span: Span) -> str:
        return _unquoted(found[group], _part(found, group, span))

    def _operand(self, found: _Found) -> Node:
        """The node that is read: by its name, or a constant by its value."""
        if isinstance(found.value, Symbol | str):
            name = str(found.value)
            node = self.b.nodes.get(name)
            if node is None:
                help = suggest_name(name, self.b.nodes)
                raise fail(f"nothing before this is called `{name}`", found.span, help=help)
            return node
        literal = isinstance(found.value, _Literal)
        written = found.value.written if literal else value_text(found.value)
        if written not in self.consts:
            help = "it needs a line `const NAME = VALUE  TYPE`"
            raise fail(f"no constant {written} stands before this", found.span, help=help)
        return self.b.nodes[self.consts[written]]

    def _one(self, found: re.Match[str], group: str, span: Span) -> _Found:
        items = self._items(found, group, span)
        if len(items) != 1 or items[0][0] is not None:
            raise fail("one value is expected here", _part(found, group, span))
        return items[0][1]

    def _items(
        self, found: re.Match[str], group: str, span: Span
    ) -> list[tuple[str | None, _Found]]:
        return _Values(self.source, span.start + found.start(group), found[group]).items()


@dataclass(frozen=True)
class _Literal:
    """A constant that is read: its value as it is written, with its number."""

    written: str


class _Values:
    """A part of a line that lists values, some of them with names."""

    def __init__(self, source: Source, start: int, text: str) -> None:
        self.source, self.start = source, start
        self.tokens = list(self._split(text))
        self.at = 0

    def _split(self, text: str) -> Any:
        at = 0
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if at == len(text):
                return
            found = _TOKEN.match(text, at)
            if found is None:
                raise fail("this is no value", self._span(at, at + 1))
            at = found.end()
            yield found

    def _span(self, first: int, last: int) -> Span:
        return Span(self.source, self.start + first, self.start + last)

    def _here(self) -> Span:
        if self.at < len(self.tokens):
            return self._span(*self.tokens[self.at].span())
        end = self.tokens[-1].end() if self.tokens else 0
        return self._span(end, end)

    def _next(self, sign: str) -> bool:
        """Whether this sign comes next, which is then passed."""
        there = self.at < len(self.tokens) and self.tokens[self.at]["sign"] == sign
        self.at += there
        return there

    def items(self) -> list[tuple[str | None, _Found]]:
        found: list[tuple[str | None, _Found]] = []
        while self.at < len(self.tokens):
            if found and not self._next(","):
                raise fail("a comma is missing", self._here())
            found.append(self._item())
        return found

    def _item(self) -> tuple[str | None, _Found]:
        first = self._here()
        value = self._value(0)
        if isinstance(value, Symbol) and self._next("="):
            where = self._here()
            return value.name, _Found(self._value(0), where)
        last = self.tokens[self.at - 1].end()
        span = Span(self.source, first.start, self.start + last)
        if self.at < len(self.tokens) and (self.tokens[self.at]["rank"]):
            self.at += 1
            value = _Literal(value_text(value) + self.tokens[self.at - 1].group())
        return None, _Found(value, span)

    def _value(self, depth: int) -> Any:
        span = self._here()
        if depth > MAX_NESTING_DEPTH:
            raise fail(f"lists are nested more than {MAX_NESTING_DEPTH} deep", span)
        if self._next("["):
            return self._list(depth)
        if self.at == len(self.tokens):
            raise fail("a value is missing", span)
        token = self.tokens[self.at]
        self.at += 1
        if token["size"]:
            return tuple(_whole(n, span) for n in token["size"].split("x"))
        if token["number"]:
            return _number(token["number"], span)
        if token["word"]:
            return WORDS[token["word"]]
        if token["name"]:
            name = _unquoted(token["name"], span)
            return name if token["name"].startswith('"') else Symbol(name)
        raise fail("a value is missing", span)

    def _list(self, depth: int) -> tuple[Any, ...]:
        found: list[Any] = []
        while not self._next("]"):
            if found and not self._next(","):
                raise fail("a comma or `]` is missing", self._here())
            found.append(self._value(depth + 1))
        return tuple(found)


def _number(text: str, span: Span) -> int | float:
    if text.lstrip("-").isdigit():
        return -_whole(text[1:], span) if text.startswith("-") else _whole(text, span)
    return float(text)


def _whole(text: str, span: Span) -> int:
    if len(text) > _MOST_DIGITS:
        raise fail(f"a whole number has at most {_MOST_DIGITS} digits", span)
    return int(text)


def _unquoted(text: str, span: Span) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise fail("these quotes hold no text", span) from None


def _attributes(record: Op, given: dict[str, _Found], where: Span) -> dict[str, Any]:
    """All attributes of an operator, each of the kind that its record wants."""
    params = {p.name: p for p in record.attrs}
    for key, found in given.items():
        if key not in params:
            help = suggest_name(key, params, "it has")
            raise fail(f"`{record.name}` has no attribute `{key}`", found.span, help=help)
    full = {}
    for key, param in params.items():
        if key in given:
            full[key] = _accepted(param, given[key].value, given[key].span)
        elif param.default is REQUIRED:
            raise fail(f"`{record.name}` needs `{key}`", where)
        else:
            full[key] = param.default
    return full


def _accepted(param: Param, value: Any, span: Span) -> Any:
    try:
        return param.type.accept(value)
    except TypeMismatch as wanted:
        message = f"`{param.name}` must be {wanted}, not {format_value(value)}"
        raise NetError(Diagnostic(message, span)) from None


def _part(found: re.Match[str], group: str, span: Span) -> Span:
    return Span(span.source, span.start + found.start(group), span.start + found.end(group))
