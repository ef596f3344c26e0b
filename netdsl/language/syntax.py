"""The syntax tree: frozen dataclasses whose comparison ignores source locations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from netdsl.errors import Span
from netdsl.values import Size


@dataclass(frozen=True, slots=True)
class SyntaxNode:
    """A node with its location in the text."""

    span: Span = field(compare=False, repr=False)


# ---- expressions ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NumberLiteral(SyntaxNode):
    value: int | float
    text: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class SizeLiteral(SyntaxNode):
    value: Size


@dataclass(frozen=True, slots=True)
class StringLiteral(SyntaxNode):
    value: str


@dataclass(frozen=True, slots=True)
class Name(SyntaxNode):
    name: str


@dataclass(frozen=True, slots=True)
class ListLiteral(SyntaxNode):
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class PairLiteral(SyntaxNode):
    """`("s3.*", 0.1)`."""

    first: Expression
    second: Expression


@dataclass(frozen=True, slots=True)
class Arg(SyntaxNode):
    name: str | None
    value: Expression


@dataclass(frozen=True, slots=True)
class CallExpr(SyntaxNode):
    name: str
    args: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class MemberExpr(SyntaxNode):
    """`in.channels`."""

    name: str


@dataclass(frozen=True, slots=True)
class Slice(SyntaxNode):
    """The `a:b` of `depths[a:b]`; either may be missing."""

    start: Expression | None
    stop: Expression | None


@dataclass(frozen=True, slots=True)
class IndexExpr(SyntaxNode):
    """`depths[0]`, `table[1][2]`, or `depths[:2]`."""

    base: Expression
    indices: tuple[Expression | Slice, ...]


@dataclass(frozen=True, slots=True)
class UnaryExpr(SyntaxNode):
    """`-x` or `not x`."""

    op: str
    operand: Expression


@dataclass(frozen=True, slots=True)
class NaryExpr(SyntaxNode):
    """A sequence of operators of equal precedence, left to right: a + b - c."""

    first: Expression
    rest: tuple[tuple[str, Expression], ...]


@dataclass(frozen=True, slots=True)
class Conditional(SyntaxNode):
    """`a if condition else b`; a chain of them is flat: each arm holds a value and its
    condition."""

    arms: tuple[tuple[Expression, Expression], ...]
    otherwise: Expression


Expression = (
    NumberLiteral
    | SizeLiteral
    | StringLiteral
    | Name
    | ListLiteral
    | PairLiteral
    | CallExpr
    | MemberExpr
    | IndexExpr
    | UnaryExpr
    | NaryExpr
    | Conditional
)


# ---- chains and statements -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step(SyntaxNode):
    """A reference to a layer, block, label or shared chain; `branches` if it joins branches."""

    name: str
    args: tuple[Arg, ...] | None
    branches: tuple[Branch, ...] | None
    name_span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Branch(SyntaxNode):
    """`identity if stride == 1`: a branch of a join; without its condition, it is left out."""

    chain: Chain
    condition: Expression | None


@dataclass(frozen=True, slots=True)
class Incoming(SyntaxNode):
    """`in`: the input of the enclosing block."""


@dataclass(frozen=True, slots=True)
class ChainGroup(SyntaxNode):
    chain: Chain


@dataclass(frozen=True, slots=True)
class If(SyntaxNode):
    arms: tuple[tuple[Expression, Body], ...]
    otherwise: Body | None


@dataclass(frozen=True, slots=True)
class For(SyntaxNode):
    """`for c in list { }`, or `for c, n in list { }` if the entries are pairs; `as i` counts the
    iterations from 0."""

    variables: tuple[str, ...]
    items: Expression
    index: str | None
    body: Body


@dataclass(frozen=True, slots=True)
class Repeat(SyntaxNode):
    """`element * n`; `as i` counts the repeats from 0."""

    element: Element
    count: Expression
    index: str | None


Element = Step | Incoming | ChainGroup | If | For | Repeat


@dataclass(frozen=True, slots=True)
class Chain(SyntaxNode):
    label: str | None
    elements: tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class Let(SyntaxNode):
    """`let n = 4`, or the function `let f(a, b=2) = a + b` if it has `params`."""

    name: str
    params: tuple[Parameter, ...] | None
    value: Expression


@dataclass(frozen=True, slots=True)
class Shared(SyntaxNode):
    name: str
    chain: Chain


@dataclass(frozen=True, slots=True)
class SideOutput(SyntaxNode):
    name: str
    args: tuple[Arg, ...]
    chain: Chain


Statement = Let | Shared | SideOutput | Chain


@dataclass(frozen=True, slots=True)
class Body(SyntaxNode):
    statements: tuple[Statement, ...]


# ---- files -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parameter(SyntaxNode):
    name: str
    default: Expression | None


@dataclass(frozen=True, slots=True)
class Block(SyntaxNode):
    name: str
    params: tuple[Parameter, ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Net(SyntaxNode):
    name: str
    params: tuple[Parameter, ...]
    body: Body


@dataclass(frozen=True, slots=True)
class Instance(SyntaxNode):
    """`net resnet152 = resnet(depths=[3, 8, 36, 3])`."""

    name: str
    base: str
    args: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class Use(SyntaxNode):
    path: str


@dataclass(frozen=True, slots=True)
class SectionEntry(SyntaxNode):
    name: str
    value: Expression


@dataclass(frozen=True, slots=True)
class Expect(SyntaxNode):
    condition: Expression


@dataclass(frozen=True, slots=True)
class Section(SyntaxNode):
    """`data` or `train`, named or not."""

    kind: str
    name: str | None
    entries: tuple[SectionEntry | Expect, ...]


@dataclass(frozen=True, slots=True)
class Test(SyntaxNode):
    net: str | None
    expectations: tuple[Expression, ...]


Item = Use | Let | Block | Net | Instance | Section | Test


@dataclass(frozen=True, slots=True)
class File(SyntaxNode):
    items: tuple[Item, ...]


def free_names(item: Item) -> Iterator[Name | CallExpr]:
    """Yields the names in an item that it does not define itself."""
    bound = bound_names(item)
    for node in walk(item):
        if isinstance(node, Name | CallExpr) and node.name not in bound:
            yield node


def bound_names(item: Item) -> set[str]:
    """The names that an item gives to values, anywhere in it."""
    return {name for node in walk(item) for name in names_given_by(node)}


def names_given_by(node: SyntaxNode) -> tuple[str, ...]:
    """The names that a node gives to values."""
    match node:
        case Parameter(name=name) | Let(name=name) | Repeat(index=str(name)):
            return (name,)
        case For(variables=variables, index=index):
            return (*variables, index) if index else variables
    return ()


def walk(*roots: SyntaxNode) -> Iterator[SyntaxNode]:
    """Yields the nodes and all those inside them, in the order of the text."""
    stack: list[Any] = list(reversed(roots))
    while stack:
        part = stack.pop()
        if isinstance(part, SyntaxNode):
            yield part
            stack += [getattr(part, f.name) for f in reversed(fields(part))]
        elif isinstance(part, tuple):
            stack += reversed(part)


def transform(part: Any, change: Callable[[Any], Any]) -> Any:
    """The tree with every outermost node for which `change` returns another one replaced by it;
    `change` returns None for all others."""
    if isinstance(part, tuple):
        return tuple(transform(p, change) for p in part)
    if not isinstance(part, SyntaxNode):
        return part
    changed = change(part)
    if changed is not None:
        return changed
    return replace(part, **{f.name: transform(getattr(part, f.name), change) for f in fields(part)})
