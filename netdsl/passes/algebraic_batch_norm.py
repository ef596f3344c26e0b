"""Algebraic batch norm: computes a product's moments from those of its operands, so that the
product is written once, already normalized, and its raw values never reach memory.

For y = x W' over N rows, the mean of y is that of x times W', and the mean of its squares is the
diagonal of W (x'x / N) W', where the Gram matrix x'x is small. So scale and offset are known before
y is, and the scale goes into W. The gradient of all this is the gradient of the IR that the pass
emits.
"""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.ir.builder import Builder
from netdsl.passes.rewrite import count_uses, emit_mean_and_inverse_std, rebuild_graph
from netdsl.types import ITEMSIZE, Graph, Node

FLOPS_PER_BYTE = 250
"""FLOPs that a machine with 16-bit arithmetic computes in the time it takes to move a byte (an
H100: 750 TFLOP/s, 3 TB/s)."""
MIN_SAVED_BYTES = 100 << 20
"""Minimum bytes to save, so that the dozen extra small kernels of a few microseconds each pay
off."""


def rewrite_batch_norms(graph: Graph, min_saved_bytes: float = MIN_SAVED_BYTES) -> Graph:
    """Rewrites those batch norms of the forward graph where this saves memory traffic.

    Sums are taken in another order, and variances as differences of 32-bit sums: if a mean is a
    hundred times the deviation, the variance may be off by a percent.
    """
    return _BatchNormRewriter(graph, min_saved_bytes).rewrite_graph()


@dataclass(frozen=True)
class NormalizedMatmul:
    """y = x W', read only by its normalization."""

    x: str
    weight: str
    rows: int
    inner: int
    outer: int
    itemsize: int

    @property
    def saved_bytes(self) -> float:
        """Bytes that need not be moved. For y: its moments are not read, it is not normalized (read
        and written), nor is its gradient (reduced: 2 read; applied: 2 read, 1 written). For x: a
        Gram matrix reads it, and a product (read, written, read) adds to its gradient."""
        bytes_per_row = (8 * self.outer - 4 * self.inner) * self.itemsize
        return self.rows * (bytes_per_row - 4 * self.inner**2 / FLOPS_PER_BYTE)


def find_normalized_matmuls(graph: Graph) -> dict[str, NormalizedMatmul]:
    """Returns the products of a graph that only a batch norm reads, by the name of their
    moments."""
    use_counts, found = count_uses(graph), {}
    for node in graph.find_by_op("normalize"):
        y, m = (graph[a] for a in node.args)
        is_only_normalized = m.op == "moments" and m.args == (y.name,) and use_counts[y.name] == 2
        if is_only_normalized and m.attrs["axes"] == tuple(range(y.type.rank - 1)):
            if y.op == "cast" and use_counts[y.args[0]] == 1:
                y = graph[y.args[0]]
            if y.op == "matmul" and graph[y.args[1]].type.rank == 2:
                found[m.name] = _describe_matmul(graph, y)
    return found


def _describe_matmul(graph: Graph, y: Node) -> NormalizedMatmul:
    x, w = (graph[a] for a in y.args)
    weight = w.args[0] if w.op == "cast" else w.name
    (outer, inner), rows = w.type.shape, x.type.size // x.type.shape[-1]
    return NormalizedMatmul(x.name, weight, rows, inner, outer, ITEMSIZE[x.type.dtype])


@dataclass(frozen=True)
class _AffineForm:
    """A value as `core` plus a per-channel offset. The core of a normalized product is that product
    with a per-channel scale."""

    core: Node
    offset: Node
    scaled: tuple[NormalizedMatmul, Node] | None = None


class _BatchNormRewriter:
    """Re-emits a graph, keeping normalized values in affine form as long as possible."""

    def __init__(self, graph: Graph, min_saved_bytes: float) -> None:
        self.graph = graph
        self.b = Builder()
        self.new_nodes: dict[str, Node] = {}
        self.products = {
            m: p
            for m, p in find_normalized_matmuls(graph).items()
            if p.saved_bytes > min_saved_bytes
        }
        self.affine_forms: dict[str, _AffineForm] = {}
        self.use_counts = count_uses(graph)

    def rewrite_graph(self) -> Graph:
        rules = {
            "normalize": self._rewrite_normalize,
            "mul": self._rewrite_mul,
            "add": self._rewrite_add,
        }
        for node in self.graph.nodes.values():
            with self.b.at(node.span, node.name, node.region):
                rule = rules.get(node.op)
                found = rule(node) if rule else None
                if found is not None:
                    self.affine_forms[node.name] = found
                    self.new_nodes[node.name] = self.b.add(found.core, found.offset)
                elif node.name in self.products:
                    self.new_nodes[node.name] = self._rewrite_moments(node)
                else:
                    self.new_nodes[node.name] = self._copy_node(node)
        return rebuild_graph(self.b, self.graph, self.new_nodes)

    def _copy_node(self, node: Node) -> Node:
        args = (self.new_nodes[a] for a in node.args)
        return self.b.emit(node.op, *args, name=node.name, **node.attrs)

    def _rewrite_moments(self, node: Node) -> Node:
        """Emits the moments of a product from those of its operands."""
        b, p, dtype = self.b, self.products[node.name], node.type.dtype
        x, w = self.new_nodes[p.x], self.new_nodes[p.weight]
        over_columns = {"axes": (1,)}
        center = b.reduce_mean(_cast_to(b, x, dtype), axes=tuple(range(x.type.rank - 1)))
        mean = b.reduce_sum(b.mul(w, b.reshape(center, shape=(1, p.inner))), **over_columns)
        total = b.reduce_sum(b.mul(w, b.matmul(w, _cast_to(b, b.gram(x), dtype))), **over_columns)
        square = b.mul(total, b.const(1 / p.rows, dtype))
        variance = b.maximum(b.sub(square, b.mul(mean, mean)), b.const(0.0, dtype))
        rows = (b.reshape(v, shape=(1, p.outer)) for v in (mean, variance))
        return b.concat(*rows, axis=0)

    def _rewrite_normalize(self, node: Node) -> _AffineForm | None:
        product = self.products.get(node.args[1])
        if product is None:
            return None
        b = self.b
        mean, factor = emit_mean_and_inverse_std(b, self.new_nodes[node.args[1]], node.attrs["eps"])
        return self._emit_scaled(product, factor, b.neg(b.mul(mean, factor)))

    def _emit_scaled(self, product: NormalizedMatmul, factor: Node, offset: Node) -> _AffineForm:
        b, x, w = self.b, self.new_nodes[product.x], self.new_nodes[product.weight]
        scaled = b.mul(w, b.reshape(factor, shape=(product.outer, 1)))
        core = _cast_to(b, b.matmul(x, _cast_to(b, scaled, x.type.dtype)), factor.type.dtype)
        return _AffineForm(core, offset, (product, factor))

    def _rewrite_mul(self, node: Node) -> _AffineForm | None:
        """Moves a factor applied to a normalized product into its weight too."""
        b, found = self.b, self._match_channel_operand(node)
        if found is None:
            return None
        (p, v), scaled = found, found[0].scaled
        return (
            self._emit_scaled(scaled[0], b.mul(scaled[1], v), b.mul(p.offset, v))
            if scaled
            else None
        )

    def _rewrite_add(self, node: Node) -> _AffineForm | None:
        """Adds offsets separately from cores."""
        b, found = self.b, self._match_channel_operand(node)
        if found is not None:
            p, v = found
            return _AffineForm(p.core, b.add(p.offset, v), p.scaled)
        one, two = (self._find_affine_form(a) for a in node.args)
        if one is None or two is None or one.core.type != two.core.type:
            return None
        return _AffineForm(b.add(one.core, two.core), b.add(one.offset, two.offset))

    def _match_channel_operand(self, node: Node) -> tuple[_AffineForm, Node] | None:
        """Returns the operand that is in affine form and the per-channel one, if a node has one of
        each."""
        for a, v in (node.args, node.args[::-1]):
            found, vector = self._find_affine_form(a), self.new_nodes[v]
            if found and vector.type.shape in ((), found.offset.type.shape):
                return found, vector
        return None

    def _find_affine_form(self, name: str) -> _AffineForm | None:
        """Returns the affine form of a value that has no other use."""
        return self.affine_forms.get(name) if self.use_counts[name] == 1 else None


def _cast_to(b: Builder, x: Node, dtype: str) -> Node:
    return x if x.type.dtype == dtype else b.cast(x, dtype=dtype)
