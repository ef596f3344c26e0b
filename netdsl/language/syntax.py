"""The syntax tree: frozen records that compare without their places."""

from __future__ import annotations

from dataclasses import dataclass, field

from netdsl.errors import Span
from netdsl.values import Size


@dataclass(frozen=True, slots=True)
class Tree:
    """Anything that stands at a place in the text."""

    span: Span = field(compare=False, repr=False)


# ---- expressions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Number(Tree):
    value: int | float
    text: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Dims(Tree):
    value: Size


@dataclass(frozen=True, slots=True)
class Text(Tree):
    value: str


@dataclass(frozen=True, slots=True)
class Name(Tree):
    name: str


@dataclass(frozen=True, slots=True)
class Listing(Tree):
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Pair(Tree):
    """`("s3.*", 0.1)`."""

    first: Expr
    second: Expr


@dataclass(frozen=True, slots=True)
class Arg(Tree):
    name: str | None
    value: Expr


@dataclass(frozen=True, slots=True)
class CallExpr(Tree):
    name: str
    args: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class Member(Tree):
    """`in.channels`."""

    name: str


@dataclass(frozen=True, slots=True)
class Index(Tree):
    """`depths[0]`, or `table[1][2]`."""

    base: Expr
    indices: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Unary(Tree):
    """`-x` or `not x`."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Flat(Tree):
    """A run of operators of one precedence, left to right: a + b - c."""

    first: Expr
    rest: tuple[tuple[str, Expr], ...]


Expr = Number | Dims | Text | Name | Listing | Pair | CallExpr | Member | Index | Unary | Flat


# ---- what a body does ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step(Tree):
    """A layer, a block, a label or a shared chain by its name; with branches where it joins."""

    name: str
    args: tuple[Arg, ...] | None
    branches: tuple[Chain, ...] | None
    name_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Incoming(Tree):
    """`in`: what flows into the enclosing block."""


@dataclass(frozen=True, slots=True)
class Group(Tree):
    chain: Chain


@dataclass(frozen=True, slots=True)
class If(Tree):
    arms: tuple[tuple[Expr, Body], ...]
    otherwise: Body | None


@dataclass(frozen=True, slots=True)
class For(Tree):
    """`for c in list { }`, or `for c, n in list { }` where the entries are lists of two."""

    variables: tuple[str, ...]
    items: Expr
    body: Body


@dataclass(frozen=True, slots=True)
class Repeat(Tree):
    element: Element
    count: Expr


Element = Step | Incoming | Group | If | For | Repeat


@dataclass(frozen=True, slots=True)
class Chain(Tree):
    label: str | None
    elements: tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class Let(Tree):
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Shared(Tree):
    name: str
    chain: Chain


@dataclass(frozen=True, slots=True)
class Output(Tree):
    name: str
    args: tuple[Arg, ...]
    chain: Chain


Statement = Let | Shared | Output | Chain


@dataclass(frozen=True, slots=True)
class Body(Tree):
    statements: tuple[Statement, ...]


# ---- what a file holds -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter(Tree):
    name: str
    default: Expr | None


@dataclass(frozen=True, slots=True)
class Block(Tree):
    name: str
    params: tuple[Parameter, ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Net(Tree):
    name: str
    params: tuple[Parameter, ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Instance(Tree):
    """`net resnet152 = resnet(depths=[3, 8, 36, 3])`."""

    name: str
    base: str
    args: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class Use(Tree):
    path: str


@dataclass(frozen=True, slots=True)
class Entry(Tree):
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Expect(Tree):
    condition: Expr


@dataclass(frozen=True, slots=True)
class Section(Tree):
    """`data` or `train`, named or not."""

    kind: str
    name: str | None
    entries: tuple[Entry | Expect, ...]


@dataclass(frozen=True, slots=True)
class Test(Tree):
    net: str | None
    expectations: tuple[Expr, ...]


Item = Use | Block | Net | Instance | Section | Test


@dataclass(frozen=True, slots=True)
class File(Tree):
    items: tuple[Item, ...]
