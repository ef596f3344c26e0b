"""The record of an operator: shape rule, cost, reference, gradient and examples in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from netdsl.errors import NetError, fail
from netdsl.signature import Param
from netdsl.types import Array, Emitter, Node, TensorType, dims

Pair = tuple[int, int]
OpKind = Literal["leaf", "anchor", "elementwise", "reduce", "view", "opaque"]
Vjp = Callable[..., Node]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one node: multiply-accumulates, other floating-point operations, bytes touched."""

    macs: int = 0
    flops: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Operand:
    """An example's operand. `distribution` is how to draw it: normal, positive, distinct, bool,
    `below:k` for whole numbers under k, or `ties` for rows of few values, many equal, a few not
    finite."""

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
    """All that is known of an operator.

    `shape(*types, **attrs)` checks the operands and infers the result's type. `reference(xp,
    *arrays, **attrs)` is the plain definition on the array module `xp`. `vjp[i](b, g, y, *args)`
    emits operand i's gradient from the result's gradient `g`; a gradient of a broadcast operand may
    keep the result's shape, `grad` sums it. A variadic operator has one entry, which is also given
    `operand=i`. An operand with neither vjp nor a reason in `nondiff` is an error. `window(types,
    attrs)` gives kernel, stride and dilation where the operator looks at neighbours.
    `whole_operands` names operands that an elementwise operator or a reduction does not read
    element by element, such as the moments of `normalize`; `bitwise_operands` those of which every
    bit counts, since two of them are compared: kernels read them from memory and do not compute
    them again, which might round otherwise."""

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
    doc: str = ""

    def cost(self, out: TensorType, *types: TensorType, **attrs: Any) -> Cost:
        """What one evaluation costs, without caches: every operand read, the result written."""
        if self.kind in ("leaf", "view"):
            return Cost()
        macs = self.macs(out, *types, **attrs) if self.macs else 0
        widest = max([out.size, *(t.size for t in types)])
        flops = 0 if macs else self.flops_per_element * widest
        return Cost(macs, flops, out.nbytes + sum(t.nbytes for t in types))

    def vjp_of(self, operand: int) -> Vjp | None:
        """The gradient rule of one operand; None where `nondiff` says why there is none."""
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
    """A shape rule's check; the Builder adds the place."""
    if not condition:
        raise fail(message, help=help)


def constant_like(b: Emitter, value: float, x: Node) -> Node:
    """A constant of the element type of `x`."""
    return b.const(value, x.type.dtype)


def common_dtype(*types: TensorType) -> str:
    dtypes = {t.dtype for t in types}
    require(len(dtypes) == 1, f"operands of different types: {', '.join(sorted(dtypes))}")
    return types[0].dtype


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's rule: align at the right, 1 stretches. Raises NetError where it cannot."""
    if shapes.count(shapes[0]) == len(shapes):  # nearly always
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
    """Operands of the given shapes in float64, the type of every numeric check."""
    return tuple(Operand(TensorType(s, "float64"), distribution) for s in shapes)


def draw_shape(draw: Draw, low: int = 1, high: int = 4, side: int = 4) -> tuple[int, ...]:
    return tuple(draw.integer(1, side) for _ in range(draw.integer(low, high)))


def draw_image_shape(draw: Draw, side: int = 6, channels: int = 4) -> tuple[int, int, int, int]:
    """The shape of a small batch of images, N x H x W x C."""
    return (
        draw.integer(1, 2),
        draw.integer(1, side),
        draw.integer(1, side),
        draw.integer(1, channels),
    )
