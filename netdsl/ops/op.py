"""The definition of an operator: shape rule, cost, reference, gradient and examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from netdsl.errors import NetError, fail
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType, dims

Pair = tuple[int, int]
OpKind = Literal["leaf", "anchor", "elementwise", "reduce", "view", "opaque", "collective"]
Trait = Literal[
    "activation",
    "broadcasting",
    "constant_folding",
    "epilogue",
    "low_precision",
    "takes_epilogue",
]
"""What passes and plans may do with an operator:

`activation`: its range is limited, so it does not give class scores; `broadcasting`: it broadcasts
its operands itself; `constant_folding`: on constants it is a constant; `epilogue`: a product may
apply it to its tiles; `takes_epilogue`: such a product; `low_precision`: mixed precision computes
it in 16 bits, since it selects, moves, averages or attenuates values of similar magnitude, and
accumulates in 32 bits where it sums."""
Vjp = Callable[..., Node]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one node: multiply-accumulates, other floating-point operations, bytes moved."""

    macs: int = 0
    flops: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand of an example. `distribution` is how to draw it: `normal`, `positive`,
    `distinct`, `bool`, `below:k` for non-negative integers below k, or `ties` for rows with many
    equal and a few non-finite values."""

    type: TensorType
    distribution: str = "normal"


@dataclass(frozen=True, slots=True)
class Example:
    """Valid operands and attributes of an operator."""

    operands: tuple[Operand, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Draw(Protocol):
    """A source of choices: Hypothesis in the tests, a seeded generator elsewhere."""

    def integer(self, low: int, high: int) -> int: ...

    def choice(self, options: Sequence[T]) -> T: ...


@dataclass(frozen=True)
class Op:
    """The definition of an operator.

    `shape(*types, **attrs)` checks the operands and infers the result's type. `reference(xp,
    *arrays, **attrs)` is the reference implementation on the array module `xp`. `vjp[i](b, g, y,
    *args)` emits operand i's gradient from the result's gradient `g`; the gradient of a broadcast
    operand may keep the result's shape, `grad` sums it. A variadic operator has one entry, which
    also takes `operand=i`. An operand with neither a vjp nor a reason in `nondiff` is an error.
    `window(types, attrs)` returns kernel, stride and dilation if the operator reads neighbouring
    pixels. `whole_operands` names operands that an elementwise operator or a reduction does not
    read element by element, such as the moments of `normalize`. `bitwise_operands` names operands
    that are compared for equality, so that every bit counts: kernels load them from memory instead
    of recomputing them, which might round differently."""

    name: str
    kind: OpKind
    operands: tuple[str, ...]
    shape: Callable[..., TensorType]
    reference: Callable[..., Array]
    draw_example: Callable[[Draw], Example]
    attrs: tuple[Param, ...] = ()
    vjp: tuple[Vjp | None, ...] = ()
    nondiff: Mapping[str, str] = field(default_factory=dict)
    macs: Callable[..., int] | None = None
    flops_per_element: int = 1
    window: Callable[..., tuple[Pair, Pair, Pair]] | None = None
    whole_operands: tuple[str, ...] = ()
    bitwise_operands: tuple[str, ...] = ()
    is_variadic: bool = False
    is_layer: bool = False
    traits: frozenset[Trait] = frozenset()
    doc: str = ""

    def cost(self, out: TensorType, *types: TensorType, **attrs: Any) -> Cost:
        """The cost of one evaluation without caches: every operand is read, the result written."""
        if self.kind in ("leaf", "view"):
            return Cost()
        macs = self.macs(out, *types, **attrs) if self.macs else 0
        widest = max([out.size, *(t.size for t in types)])
        flops = 0 if macs else self.flops_per_element * widest
        return Cost(macs, flops, out.nbytes + sum(t.nbytes for t in types))

    def vjp_of(self, operand: int) -> Vjp | None:
        """The gradient rule of one operand; None if `nondiff` says why there is none."""
        if not self.vjp:
            return None
        if not self.is_variadic:
            return self.vjp[operand]
        rule = self.vjp[0]
        if rule is None:
            return None

        def variadic_rule(b: Emitter, g: Node, y: Node, *args: Node) -> Node:
            return rule(b, g, y, *args, operand=operand)

        return variadic_rule


def require(condition: bool, message: str, help: str | None = None) -> None:
    """Raises NetError if a shape rule's condition fails; the Builder adds the location."""
    if not condition:
        raise fail(message, help=help)


def constant_like(b: Emitter, value: float, x: Node) -> Node:
    """Emits a constant with the element type of `x`."""
    return b.const(value, x.type.dtype)


def common_dtype(*types: TensorType) -> str:
    dtypes = {t.dtype for t in types}
    require(len(dtypes) == 1, f"operands of different types: {', '.join(sorted(dtypes))}")
    return types[0].dtype


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's broadcasting: align at the right, stretch 1. Raises NetError if shapes conflict."""
    if shapes.count(shapes[0]) == len(shapes):  # the common case
        return shapes[0]
    rank = max(map(len, shapes))
    out = []
    for sizes in zip(*((1,) * (rank - len(s)) + s for s in shapes), strict=True):
        stretched = {s for s in sizes if s != 1}
        if len(stretched) > 1:
            raise shape_mismatch_error(*shapes)
        out.append(stretched.pop() if stretched else 1)
    return tuple(out)


def shape_mismatch_error(*shapes: tuple[int, ...]) -> NetError:
    return fail("shapes do not fit together: " + " and ".join(map(dims, shapes)))


def float_operands(*shapes: tuple[int, ...], distribution: str = "normal") -> tuple[Operand, ...]:
    """Returns operands of the given shapes in float64, the type of every numeric check."""
    return tuple(Operand(TensorType(s, "float64"), distribution) for s in shapes)


def draw_shape(draw: Draw, low: int = 1, high: int = 4, side: int = 4) -> tuple[int, ...]:
    return tuple(draw.integer(1, side) for _ in range(draw.integer(low, high)))


def draw_image_shape(draw: Draw, side: int = 6, channels: int = 4) -> tuple[int, int, int, int]:
    """Draws the shape of a small batch of images, N x H x W x C."""
    return (
        draw.integer(1, 2),
        draw.integer(1, side),
        draw.integer(1, side),
        draw.integer(1, channels),
    )
