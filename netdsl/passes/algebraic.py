"""Algebraic batch norm: a product's moments come from those of what it reads, so that it is written
once, normalised, and its own values never lie in memory.

For y = x W' over N rows, the mean of y is that of x times W', and the mean of its squares is the
diagonal of W (x'x / N) W', where the Gram matrix x'x is small. So scale and offset are known before
y is, and the scale goes into W. The gradient of all this is the gradient of what the pass emits.
"""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.ir.builder import Builder
from netdsl.passes.rewrite import reads, rebuilt, standard
from netdsl.types import ITEMSIZE, Graph, Node

FLOPS_PER_BYTE = 250
"""What a machine with 16-bit arithmetic computes in the time that it moves a byte (an H100: 750
TFLOP/s, 3 TB/s)."""
LEAST = 100 << 20
"""Bytes that are to be saved for the dozen small kernels, of some microseconds each, to pay."""


def algebraic(graph: Graph, least: float = LEAST) -> Graph:
    """The forward graph with those batch norms rewritten that this spares memory traffic.

    Sums are taken in another order, and variances as differences of 32-bit sums: where a mean is a
    hundred times the deviation, the variance may be off by a percent.
    """
    return _Algebra(graph, least).rewritten()


@dataclass(frozen=True)
class Product:
    """y = x W' whose normalisation alone reads it."""

    x: str
    weight: str
    rows: int
    inner: int
    outer: int
    itemsize: int

    @property
    def saved(self) -> float:
        """Bytes that need not be moved. Of y: its moments are not read, it is not normalised (read
        and written), nor is its gradient (reduced: 2 read; applied: 2 read, 1 written). Of x: a
        Gram matrix reads it, and a product (read, written, read) adds to its gradient."""
        moved = (8 * self.outer - 4 * self.inner) * self.itemsize
        return self.rows * (moved - 4 * self.inner**2 / FLOPS_PER_BYTE)


def products(graph: Graph) -> dict[str, Product]:
    """The products in a graph that nothing but a batch norm reads, by the name of their moments."""
    count, found = reads(graph), {}
    for node in graph.find_by_op("normalize"):
        y, m = (graph[a] for a in node.args)
        alone = m.op == "moments" and m.args == (y.name,) and count[y.name] == 2
        if alone and m.attrs["axes"] == tuple(range(y.type.rank - 1)):
            if y.op == "cast" and count[y.args[0]] == 1:
                y = graph[y.args[0]]
            if y.op == "matmul" and graph[y.args[1]].type.rank == 2:
                found[m.name] = _product(graph, y)
    return found


def _product(graph: Graph, y: Node) -> Product:
    x, w = (graph[a] for a in y.args)
    weight = w.args[0] if w.op == "cast" else w.name
    (outer, inner), rows = w.type.shape, x.type.size // x.type.shape[-1]
    return Product(x.name, weight, rows, inner, outer, ITEMSIZE[x.type.dtype])


@dataclass(frozen=True)
class _Pieces:
    """A value as `core` and an offset for each channel. The core of a normalised product is that
    product with a factor for each channel."""

    core: Node
    offset: Node
    scaled: tuple[Product, Node] | None = None


class _Algebra:
    """Emits a graph anew; what is normalised stays in pieces for as long as that goes."""

    def __init__(self, graph: Graph, least: float) -> None:
        self.graph = graph
        self.b = Builder()
        self.new: dict[str, Node] = {}
        self.products = {m: p for m, p in products(graph).items() if p.saved > least}
        self.pieces: dict[str, _Pieces] = {}
        self.reads = reads(graph)

    def rewritten(self) -> Graph:
        rules = {"normalize": self._normalize, "mul": self._mul, "add": self._add}
        for node in self.graph.nodes.values():
            with self.b.at(node.span, node.name, node.region):
                rule = rules.get(node.op)
                found = rule(node) if rule else None
                if found is not None:
                    self.pieces[node.name] = found
                    self.new[node.name] = self.b.add(found.core, found.offset)
                elif node.name in self.products:
                    self.new[node.name] = self._moments(node)
                else:
                    self.new[node.name] = self._again(node)
        return rebuilt(self.b, self.graph, self.new)

    def _again(self, node: Node) -> Node:
        args = (self.new[a] for a in node.args)
        return self.b.emit(node.op, *args, name=node.name, **node.attrs)

    def _moments(self, node: Node) -> Node:
        """Of a product, from those of what it reads."""
        b, p, dtype = self.b, self.products[node.name], node.type.dtype
        x, w = self.new[p.x], self.new[p.weight]
        across = {"axes": (1,)}
        center = b.reduce_mean(_as(b, x, dtype), axes=tuple(range(x.type.rank - 1)))
        mean = b.reduce_sum(b.mul(w, b.reshape(center, shape=(1, p.inner))), **across)
        total = b.reduce_sum(b.mul(w, b.matmul(w, _as(b, b.gram(x), dtype))), **across)
        square = b.mul(total, b.const(1 / p.rows, dtype))
        variance = b.maximum(b.sub(square, b.mul(mean, mean)), b.const(0.0, dtype))
        rows = (b.reshape(v, shape=(1, p.outer)) for v in (mean, variance))
        return b.concat(*rows, axis=0)

    def _normalize(self, node: Node) -> _Pieces | None:
        product = self.products.get(node.args[1])
        if product is None:
            return None
        b = self.b
        mean, factor = standard(b, self.new[node.args[1]], node.attrs["eps"])
        return self._scaled(product, factor, b.neg(b.mul(mean, factor)))

    def _scaled(self, product: Product, factor: Node, offset: Node) -> _Pieces:
        b, x, w = self.b, self.new[product.x], self.new[product.weight]
        scaled = b.mul(w, b.reshape(factor, shape=(product.outer, 1)))
        core = _as(b, b.matmul(x, _as(b, scaled, x.type.dtype)), factor.type.dtype)
        return _Pieces(core, offset, (product, factor))

    def _mul(self, node: Node) -> _Pieces | None:
        """A factor behind a normalised product goes into its weight too."""
        b, found = self.b, self._channels(node)
        if found is None:
            return None
        (p, v), scaled = found, found[0].scaled
        return self._scaled(scaled[0], b.mul(scaled[1], v), b.mul(p.offset, v)) if scaled else None

    def _add(self, node: Node) -> _Pieces | None:
        """Offsets are added up for themselves."""
        b, found = self.b, self._channels(node)
        if found is not None:
            p, v = found
            return _Pieces(p.core, b.add(p.offset, v), p.scaled)
        one, two = (self._in_pieces(a) for a in node.args)
        if one is None or two is None or one.core.type != two.core.type:
            return None
        return _Pieces(b.add(one.core, two.core), b.add(one.offset, two.offset))

    def _channels(self, node: Node) -> tuple[_Pieces, Node] | None:
        """A value in pieces and one for each of its channels, if a node has two such operands."""
        for a, v in (node.args, node.args[::-1]):
            found, vector = self._in_pieces(a), self.new[v]
            if found and vector.type.shape in ((), found.offset.type.shape):
                return found, vector
        return None

    def _in_pieces(self, name: str) -> _Pieces | None:
        """The pieces of a value that is not needed whole as well."""
        return self.pieces.get(name) if self.reads[name] == 1 else None


def _as(b: Builder, x: Node, dtype: str) -> Node:
    return x if x.type.dtype == dtype else b.cast(x, dtype=dtype)
