"""Odd random graphs: unlike any net, but every pass and plan must handle them.

Nested concatenations along any axis, slices of slices, transposes before reshapes, scalars, values
that are outputs twice or unchanged inputs, states updated by views and by each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from netdsl.errors import NetError
from netdsl.ir.builder import Builder, is_float
from netdsl.ir.verifier import verify_graph
from netdsl.ops.op import Draw
from netdsl.types import Graph, Node, TensorType

_MAX_SIZE = 400
_SHAPES = ((2, 4, 4, 4), (2, 2, 2, 2), (1, 3, 2, 4), (2, 1, 1, 4), (1, 1, 1, 1), (2, 3, 2, 2))


def draw_graph(draw: Draw) -> Graph:
    """A graph of up to 20 steps, each on any of the previous values."""
    return _GraphGenerator(draw).graph()


class _GraphGenerator:
    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.b = Builder(dtype="float64")
        self.base: tuple[int, ...] = draw.choice(_SHAPES)
        self.values: list[Node] = [
            self.b.input(f"x{i}", TensorType(self.base, "float64")) for i in range(2)
        ]
        self.states: list[Node] = []
        for shape in (self.base, self.base[-1:], ()):
            self.state(shape)
        self.values.append(self.b.const(float(draw.integer(0, 2))))
        steps: tuple[Callable[[Node], Node | None], ...] = (
            self.unary,
            self.binary,
            self.binary,
            self.convolution,
            self.product,
            self.concat,
            self.concat,
            self.slice,
            self.slice,
            self.reshape,
            self.transpose,
            self.broadcast,
            self.reduce,
            self.norm,
            self.pool,
            self.dropout,
            self.pad,
            self.select,
            self.scores,
            self.moved,
            self.cast,
            self.scalars,
            self.gate,
            self.negated,
            self.turned,
        )
        for _ in range(draw.integer(3, 20)):
            self.step(draw.choice(steps))

    def step(self, make: Callable[[Node], Node | None]) -> None:
        x = self.any(lambda v: is_float(v.type))
        try:
            y = make(x)
        except NetError:
            return  # the drawn shapes do not fit together
        if y is not None and y.type.size <= _MAX_SIZE:
            self.values.append(y)

    def any(self, good: Callable[[Node], bool]) -> Node:
        return self.draw.choice([v for v in self.values if good(v)][-8:])

    def like(self, x: Node) -> Node:
        return self.any(lambda v: v.type == x.type)

    def whole(self, low: int, high: int) -> int:
        return self.draw.integer(low, high)

    def coin(self) -> bool:
        return self.draw.choice((True, False))

    def state(self, shape: tuple[int, ...]) -> Node:
        kind = TensorType(shape, "float64")
        node = self.b.state(f"s{len(self.states)}", kind, ("normal", 1.0))
        self.states.append(node)
        self.values.append(node)
        return node

    def unary(self, x: Node) -> Node:
        return self.b.emit(self.draw.choice(("relu", "tanh", "gelu", "neg", "copy", "elu")), x)

    def binary(self, x: Node) -> Node:
        return self.b.emit(self.draw.choice(("add", "sub", "mul", "maximum")), x, self.partner(x))

    def partner(self, x: Node) -> Node:
        def fits(v: Node) -> bool:
            try:
                joined = np.broadcast_shapes(v.type.shape, x.type.shape)
            except ValueError:
                return False
            return v.type.dtype == "float64" and math.prod(joined) <= _MAX_SIZE

        return self.any(fits)

    def convolution(self, x: Node) -> Node | None:
        if x.type.rank != 4:
            return None
        _, h, w, c = x.type.shape
        kernel = (self.whole(1, min(3, h + 1)), self.whole(1, min(3, w + 1)))
        groups = self.draw.choice([g for g in (1, 1, 2, 4) if c % g == 0])
        weight = self.state((groups * self.whole(1, 3), *kernel, c // groups))
        how = {name: (self.whole(1, 2), self.whole(1, 2)) for name in ("stride", "dilation")}
        pad = self.draw.choice((((self.whole(0, 1), 1), (1, 1)), ((0, 0), (0, 0))))
        return self.b.conv2d(x, weight, pad=pad, groups=groups, **how)

    def product(self, x: Node) -> Node | None:
        if x.type.rank == 0:
            return None
        return self.b.matmul(x, self.state((self.whole(1, 4), x.type.shape[-1])))

    def concat(self, x: Node) -> Node | None:
        rank = x.type.rank
        if rank == 0:
            return None
        axis = self.draw.choice((rank - 1, rank - 1, self.whole(0, rank - 1)))

        def beside(v: Node) -> tuple[int, ...]:
            return v.type.shape[:axis] + v.type.shape[axis + 1 :]

        def fits(v: Node) -> bool:
            return is_float(v.type) and v.type.rank == rank and beside(v) == beside(x)

        return self.b.concat(x, *(self.any(fits) for _ in range(self.whole(0, 2))), axis=axis)

    def slice(self, x: Node) -> Node:
        start = tuple(self.whole(0, s - 1) for s in x.type.shape)
        stop = tuple(self.whole(a + 1, s) for a, s in zip(start, x.type.shape, strict=True))
        return self.b.slice(x, start=start, stop=stop, step=tuple(self.whole(1, 2) for _ in start))

    def reshape(self, x: Node) -> Node:
        n = x.type.size
        shapes = [(n,), (1, n), (n, 1), *((a, n // a) for a in (2, 3, 4) if n % a == 0)]
        shapes += [self.base] if n == math.prod(self.base) else []
        return self.b.reshape(x, shape=self.draw.choice(shapes))

    def transpose(self, x: Node) -> Node:
        left = list(range(x.type.rank))
        perm = tuple(left.pop(self.whole(0, len(left) - 1)) for _ in range(x.type.rank))
        return self.b.transpose(x, perm=perm)

    def broadcast(self, x: Node) -> Node:
        return self.b.broadcast(x, shape=self.draw.choice((self.base, (3, *x.type.shape))))

    def reduce(self, x: Node) -> Node:
        axes = tuple(a for a in range(x.type.rank) if self.coin())
        op = self.draw.choice(("reduce_sum", "reduce_mean", "reduce_max"))
        return self.b.emit(op, x, axes=axes, keepdims=self.coin())

    def norm(self, x: Node) -> Node | None:
        if x.type.rank == 0:
            return None
        axes = tuple(range(x.type.rank - 1)) or (0,)
        m = self.b.moments(x, axes=axes)
        self.values.append(m)
        return self.b.normalize(x, m, axes=axes, eps=0.1)

    def pool(self, x: Node) -> Node | None:
        if x.type.rank != 4:
            return None
        kernel = (min(2, x.type.shape[1]), min(2, x.type.shape[2]))
        op = self.draw.choice(("max_pool", "avg_pool"))
        return self.b.emit(op, x, kernel=kernel, stride=(self.whole(1, 2), 1))

    def dropout(self, x: Node) -> Node:
        scalars = (self.b.input(n, TensorType((), "int32")) for n in ("seed", "step", "rank"))
        return self.b.dropout(x, *scalars, key="k", rate=0.3)

    def pad(self, x: Node) -> Node:
        amounts = {k: tuple(self.whole(0, 1) for _ in x.type.shape) for k in ("low", "high")}
        return self.b.pad(x, **amounts, interior=tuple(self.whole(0, 1) for _ in x.type.shape))

    def select(self, x: Node) -> Node:
        z = self.partner(x)
        return self.b.select(self.b.greater(x, z), x, z)

    def scores(self, x: Node) -> Node | None:
        if x.type.rank == 0:
            return None
        return self.b.emit(self.draw.choice(("softmax", "log_softmax", "lrn")), x)

    def moved(self, x: Node) -> Node:
        return self.b.ema(x, self.like(x), decay=0.5)

    def cast(self, x: Node) -> Node:
        """A chain of casts through other types and back."""
        for _ in range(self.whole(1, 3)):
            x = self.b.cast(x, dtype=self.draw.choice(("float32", "float16", "float64")))
        return self.b.cast(x, dtype="float64")

    def scalars(self, x: Node) -> Node:
        """A chain of operations with constants, some of which are no-ops."""
        for _ in range(self.whole(1, 3)):
            op = self.draw.choice(("add", "sub", "mul", "div", "maximum", "minimum"))
            pair = (x, self.b.const(self.draw.choice((0.0, 1.0, -1.0, 0.5, 3.0))))
            if op == "div" and pair[1].attrs["value"] == 0:
                continue
            swapped = op != "div" and self.coin()
            x = self.b.emit(op, *(pair[::-1] if swapped else pair))
        return x

    def gate(self, x: Node) -> Node:
        """The product with a constant of this shape or a wider one, which itself is computed from
        constants."""
        shape = self.draw.choice((x.type.shape, (2, *x.type.shape)))
        constant = self.b.broadcast(self.b.const(self.draw.choice((0.0, 1.0, 3.0))), shape=shape)
        for _ in range(self.whole(0, 3)):
            steps = (self.unary, self.scalars, self.turned, self.reshape, self.reduce)
            constant = self.draw.choice(steps)(constant) or constant
        return self.b.mul(x, constant)

    def negated(self, x: Node) -> Node:
        """A difference written as a sum."""
        pair = (x, self.b.neg(self.partner(x)))
        return self.b.add(*(pair[::-1] if self.coin() else pair))

    def turned(self, x: Node) -> Node:
        """A view of a view."""
        return self.transpose(self.transpose(x))

    def graph(self) -> Graph:
        outputs = {f"o{i}": self.draw.choice(self.values[-5:]) for i in range(self.whole(1, 3))}
        updates = {s.name: self.update(s) for s in self.states if self.coin()}
        return verify_graph(self.b.build(outputs, updates, "odd"))

    def update(self, state: Node) -> Node:
        """Any value of the state's type, an average with it, or a reshaped view of it."""
        if self.coin():
            return self.like(state)
        if self.coin():
            return self.b.ema(state, self.like(state), decay=0.7)
        row = self.b.reshape(state, shape=(state.type.size,))
        return self.b.reshape(self.b.mul(row, self.b.const(0.5)), shape=state.type.shape)
