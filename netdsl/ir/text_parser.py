"""Parser of the IR's text form: what netdsl.ir.printer writes is read back as the same graph.

Each line is a statement, or a comment that begins with `#`. Nothing in the text is executed, and
its length and nesting are limited.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from netdsl.errors import Diagnostic, NetError, Source, Span, fail, suggest_name
from netdsl.ir.builder import Builder
from netdsl.ir.printer import LITERALS, NAME_PATTERN, format_constant_label, format_literal
from netdsl.limits import MAX_AXES, MAX_IR_CHARACTERS, MAX_NESTING_DEPTH
from netdsl.ops import OPS
from netdsl.ops.op import Op
from netdsl.parameter_types import TypeMismatch
from netdsl.signature import REQUIRED, Param
from netdsl.types import ITEMSIZE, Attrs, Graph, Node, TensorType
from netdsl.values import Symbol, format_value

_NAME = rf'(?:{NAME_PATTERN}|"(?:[^"\\]|\\.)*")'
_TYPE = r"(?P<dims>scalar|\d+(?:x\d+)*) (?P<dtype>\w+)"
_REGION = rf"(?:  @(?P<region>{_NAME}))?"
_HEADER = re.compile(rf"graph (?P<name>{_NAME}) \{{")
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
    rf"|(?P<word>{'|'.join(LITERALS)})(?![\w.])|(?P<name>{_NAME})|(?P<sign>[\[\],=])|(?P<rank>~\d+)"
)
_SPACE = re.compile(r"\s*")
_MAX_DIGITS = 18


def parse_graph(text: str, name: str = "ir") -> Graph:
    """Parses and verifies a text of one graph; `name` is the text's name in errors.

    Raises NetError, with the location in the text, if it is not a graph.
    """
    graphs = parse_graphs(text, name)
    if len(graphs) != 1:
        raise fail(f"{name} contains {len(graphs)} graphs, not one")
    return graphs[0]


def parse_graphs(text: str, name: str = "ir") -> tuple[Graph, ...]:
    """Parses all graphs of a text."""
    if len(text) > MAX_IR_CHARACTERS:
        raise fail(f"{name} has more than {MAX_IR_CHARACTERS:,} characters")
    source, offset = Source(name, text), 0
    graphs, current = list[Graph](), None
    for raw_line in text.split("\n"):
        line, indent = raw_line.strip(), len(raw_line) - len(raw_line.lstrip())
        span = Span(source, offset + indent, offset + indent + len(line))
        offset += len(raw_line) + 1
        if not line or line.startswith("#"):
            continue
        if current is None:
            current = _Parser.from_header(line, span)
        elif line == "}":
            graphs.append(current.build_graph())
            current = None
        else:
            current.parse_statement(line, span)
    if current is not None:
        raise fail("the text ends without `}`", Span(source, offset - 1, offset - 1))
    return tuple(graphs)


@dataclass(frozen=True)
class _LocatedValue:
    """A value and its location in the text."""

    value: Any
    span: Span


@dataclass
class _Parser:
    """The statements parsed so far: nodes in a Builder, constants by the label that operands
    use."""

    source: Source
    name: str
    b: Builder = field(default_factory=Builder)
    consts: dict[str, str] = field(default_factory=dict)
    value_counts: Counter[str] = field(default_factory=Counter)
    outputs: dict[str, Node] = field(default_factory=dict)
    updates: dict[str, Node] = field(default_factory=dict)

    @staticmethod
    def from_header(line: str, span: Span) -> _Parser:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise fail("expected `graph NAME {` here", span)
        return _Parser(span.source, _unquote(found["name"], _group_span(found, "name", span)))

    def build_graph(self) -> Graph:
        return self.b.build(self.outputs, self.updates, self.name)

    def parse_statement(self, line: str, span: Span) -> None:
        node = _NODE.fullmatch(line)
        if node is not None:
            return self._parse_node(node, span)
        for pattern, parse_rule in (
            (_INPUT, self._parse_input),
            (_STATE, self._parse_state),
            (_CONST, self._parse_const),
            (_ROOT, self._parse_root),
        ):
            found = pattern.fullmatch(line)
            if found is not None:
                return parse_rule(found, span)
        raise fail(
            "this is not a statement",
            span,
            help="`name = op(operands, attribute=value)  2x3 float32`, or one that begins with "
            "input, state, const, output or update",
        )

    # statements

    def _parse_input(self, found: re.Match[str], span: Span) -> None:
        tensor_type = self._parse_type(found, span)
        self._insert_node(
            found, span, "input", (), {"shape": tensor_type.shape, "dtype": tensor_type.dtype}
        )

    def _parse_state(self, found: re.Match[str], span: Span) -> None:
        tensor_type = self._parse_type(found, span)
        scale = self._parse_single_value(found, "scale", span)
        if type(scale.value) not in (int, float):
            raise fail("a distribution's parameter must be a number", scale.span)
        init = (self._parse_name(found, "law", span), scale.value)
        trainable = found["still"] is None
        attrs = {
            "shape": tensor_type.shape,
            "dtype": tensor_type.dtype,
            "init": init,
            "trainable": trainable,
        }
        self._insert_node(found, span, "state", (), attrs)

    def _parse_const(self, found: re.Match[str], span: Span) -> None:
        value, tensor_type = (
            self._parse_single_value(found, "value", span),
            self._parse_type(found, span),
        )
        numbers = value.value if isinstance(value.value, tuple) else (value.value,)
        if not all(type(v) in (int, float) for v in numbers):
            raise fail("a constant must be a number or a list of numbers", value.span)
        node = self._insert_node(
            found, span, "const", (), {"value": value.value, "dtype": tensor_type.dtype}
        )
        literal = format_literal(value.value)
        self.value_counts[literal] += 1
        self.consts[format_constant_label(literal, self.value_counts[literal])] = node.name

    def _parse_root(self, found: re.Match[str], span: Span) -> None:
        name, value = (
            self._parse_name(found, "name", span),
            self._resolve_operand(self._parse_single_value(found, "value", span)),
        )
        roots = self.outputs if found["word"] == "output" else self.updates
        if name in roots:
            raise fail(
                f"there is a second {found['word']} `{name}`", _group_span(found, "name", span)
            )
        if roots is self.updates:
            state = self.b.nodes.get(name)
            if state is None or state.op != "state":
                raise fail(f"`{name}` is not a state", _group_span(found, "name", span))
            if state.type != value.type:
                message = f"`{name}` is {state.type}, its update is {value.type}"
                raise fail(message, _group_span(found, "value", span))
        roots[name] = value

    def _parse_node(self, found: re.Match[str], span: Span) -> None:
        op, where = found["op"], _group_span(found, "op", span)
        operator = OPS.get(op)
        if operator is None or operator.kind == "leaf":
            raise fail(
                f"there is no operator `{op}`", where, help=suggest_name(op, OPS, "known operators")
            )
        operands, attributes = [], dict[str, _LocatedValue]()
        for key, value in self._parse_items(found, "inside", span):
            if key is None and not attributes:
                operands.append(self._resolve_operand(value).name)
            elif key is None:
                raise fail("operands must come before attributes", value.span)
            elif key in attributes:
                raise fail(f"`{key}` is given twice", value.span)
            else:
                attributes[key] = value
        if not operator.is_variadic and len(operands) != len(operator.operands):
            wanted = ", ".join(operator.operands) or "none"
            raise fail(f"the operands of `{op}` are {wanted}; got {len(operands)}", where)
        attrs = _bind_attributes(operator, attributes, where)
        self._insert_node(found, span, op, tuple(operands), attrs)

    def _insert_node(
        self,
        found: re.Match[str],
        span: Span,
        op: str,
        operands: tuple[str, ...],
        attrs: dict[str, Any],
    ) -> Node:
        """Inserts the node of a line, whose type must be the one that its operator's rule
        infers."""
        name, declared = self._parse_name(found, "name", span), self._parse_type(found, span)
        if name in self.b.nodes:
            raise fail(f"there is a second value `{name}`", _group_span(found, "name", span))
        if op in ("input", "state"):
            _check_attribute(OPS[op].attrs[0], declared.shape, _group_span(found, "dims", span))
        try:
            inferred = OPS[op].shape(*(self.b.nodes[a].type for a in operands), **attrs)
        except NetError as e:
            raise e.with_default_span(span) from None
        if inferred != declared:
            raise fail(
                f"`{name}` is declared {declared}, but is {inferred}",
                _group_span(found, "dims", span),
            )
        region = self._parse_name(found, "region", span) if found["region"] else ""
        return self.b.insert(Node(name, op, operands, Attrs(attrs), declared, span, region))

    # parts of statements

    def _parse_type(self, found: re.Match[str], span: Span) -> TensorType:
        dtype, sides = found["dtype"], found["dims"]
        if dtype not in ITEMSIZE:
            help = suggest_name(dtype, ITEMSIZE, "known types")
            raise fail(
                f"there is no element type {dtype}", _group_span(found, "dtype", span), help=help
            )
        where = _group_span(found, "dims", span)
        shape = (
            () if sides == "scalar" else tuple(_parse_integer(n, where) for n in sides.split("x"))
        )
        if len(shape) > MAX_AXES:
            raise fail(f"a tensor has at most {MAX_AXES} axes", where)
        return TensorType(shape, dtype)

    def _parse_name(self, found: re.Match[str], group: str, span: Span) -> str:
        return _unquote(found[group], _group_span(found, group, span))

    def _resolve_operand(self, found: _LocatedValue) -> Node:
        """Returns the node that an operand refers to: by name, or by value for a constant."""
        if isinstance(found.value, Symbol | str):
            name = str(found.value)
            node = self.b.nodes.get(name)
            if node is None:
                help = suggest_name(name, self.b.nodes)
                raise fail(f"no value named `{name}` comes before this", found.span, help=help)
            return node
        is_literal = isinstance(found.value, _ConstantLabel)
        label = found.value.text if is_literal else format_literal(found.value)
        if label not in self.consts:
            help = "it needs a line `const NAME = VALUE  TYPE`"
            raise fail(f"no constant {label} comes before this", found.span, help=help)
        return self.b.nodes[self.consts[label]]

    def _parse_single_value(self, found: re.Match[str], group: str, span: Span) -> _LocatedValue:
        items = self._parse_items(found, group, span)
        if len(items) != 1 or items[0][0] is not None:
            raise fail("expected one value here", _group_span(found, group, span))
        return items[0][1]

    def _parse_items(
        self, found: re.Match[str], group: str, span: Span
    ) -> list[tuple[str | None, _LocatedValue]]:
        return _ValueParser(
            self.source, span.start + found.start(group), found[group]
        ).parse_items()


@dataclass(frozen=True)
class _ConstantLabel:
    """A constant operand: its value as written, with its number."""

    text: str


class _ValueParser:
    """Parses the part of a line that lists values, some of them named."""

    def __init__(self, source: Source, start: int, text: str) -> None:
        self.source, self.start = source, start
        self.tokens = list(self._tokenize(text))
        self.position = 0

    def _tokenize(self, text: str) -> Any:
        at = 0
        while True:
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            if at == len(text):
                return
            found = _TOKEN.match(text, at)
            if found is None:
                raise fail("this is not a value", self._span(at, at + 1))
            at = found.end()
            yield found

    def _span(self, first: int, last: int) -> Span:
        return Span(self.source, self.start + first, self.start + last)

    def _current_span(self) -> Span:
        if self.position < len(self.tokens):
            return self._span(*self.tokens[self.position].span())
        end = self.tokens[-1].end() if self.tokens else 0
        return self._span(end, end)

    def _consume(self, sign: str) -> bool:
        """Returns whether this sign comes next, and skips it if so."""
        is_next = self.position < len(self.tokens) and self.tokens[self.position]["sign"] == sign
        self.position += is_next
        return is_next

    def parse_items(self) -> list[tuple[str | None, _LocatedValue]]:
        found: list[tuple[str | None, _LocatedValue]] = []
        while self.position < len(self.tokens):
            if found and not self._consume(","):
                raise fail("a comma is missing", self._current_span())
            found.append(self._parse_item())
        return found

    def _parse_item(self) -> tuple[str | None, _LocatedValue]:
        first = self._current_span()
        value = self._parse_value(0)
        if isinstance(value, Symbol) and self._consume("="):
            where = self._current_span()
            return value.name, _LocatedValue(self._parse_value(0), where)
        last = self.tokens[self.position - 1].end()
        span = Span(self.source, first.start, self.start + last)
        if self.position < len(self.tokens) and (self.tokens[self.position]["rank"]):
            self.position += 1
            value = _ConstantLabel(format_literal(value) + self.tokens[self.position - 1].group())
        return None, _LocatedValue(value, span)

    def _parse_value(self, depth: int) -> Any:
        span = self._current_span()
        if depth > MAX_NESTING_DEPTH:
            raise fail(f"lists are nested more than {MAX_NESTING_DEPTH} deep", span)
        if self._consume("["):
            return self._parse_list(depth)
        if self.position == len(self.tokens):
            raise fail("a value is missing", span)
        token = self.tokens[self.position]
        self.position += 1
        if token["size"]:
            return tuple(_parse_integer(n, span) for n in token["size"].split("x"))
        if token["number"]:
            return _parse_number(token["number"], span)
        if token["word"]:
            return LITERALS[token["word"]]
        if token["name"]:
            name = _unquote(token["name"], span)
            return name if token["name"].startswith('"') else Symbol(name)
        raise fail("a value is missing", span)

    def _parse_list(self, depth: int) -> tuple[Any, ...]:
        found: list[Any] = []
        while not self._consume("]"):
            if found and not self._consume(","):
                raise fail("a comma or `]` is missing", self._current_span())
            found.append(self._parse_value(depth + 1))
        return tuple(found)


def _parse_number(text: str, span: Span) -> int | float:
    if text.lstrip("-").isdigit():
        return (
            -_parse_integer(text[1:], span) if text.startswith("-") else _parse_integer(text, span)
        )
    return float(text)


def _parse_integer(text: str, span: Span) -> int:
    if len(text) > _MAX_DIGITS:
        raise fail(f"an integer has at most {_MAX_DIGITS} digits", span)
    return int(text)


def _unquote(text: str, span: Span) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise fail("this is not a valid quoted string", span) from None


def _bind_attributes(record: Op, given: dict[str, _LocatedValue], where: Span) -> dict[str, Any]:
    """Returns all attributes of an operator, each checked against its type."""
    params = {p.name: p for p in record.attrs}
    for key, found in given.items():
        if key not in params:
            help = suggest_name(key, params, "it has")
            raise fail(f"`{record.name}` has no attribute `{key}`", found.span, help=help)
    bound = {}
    for key, param in params.items():
        if key in given:
            bound[key] = _check_attribute(param, given[key].value, given[key].span)
        elif param.default is REQUIRED:
            raise fail(f"`{record.name}` needs `{key}`", where)
        else:
            bound[key] = param.default
    return bound


def _check_attribute(param: Param, value: Any, span: Span) -> Any:
    try:
        return param.type.accept(value)
    except TypeMismatch as wanted:
        message = f"`{param.name}` must be {wanted}, not {format_value(value)}"
        raise NetError(Diagnostic(message, span)) from None


def _group_span(found: re.Match[str], group: str, span: Span) -> Span:
    return Span(span.source, span.start + found.start(group), span.start + found.end(group))
