"""Folding for inference: what depends on states alone is prepared once, normalisation goes into the
weights before it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import networkx as nx

from netdsl.ir.builder import Builder
from netdsl.ir.restrict import restricted
from netdsl.ir.views import shown
from netdsl.ops import OPS
from netdsl.passes.rewrite import Rewriter, Rule, reads, rebuilt, standard
from netdsl.passes.simplify import RULES as SIMPLER
from netdsl.types import Graph, Node, TensorType, find_reachable

PREFIX = "folded."
_STILL = ("state", "const")


@dataclass(frozen=True)
class Folded:
    """`main` runs on every batch; `prepare` gives it its `folded.` states when weights change."""

    main: Graph
    prepare: Graph


def fold(graph: Graph) -> Graph:
    """A normalisation by known moments becomes a factor and an offset for each channel; factors
    move into the weights of the product before them where nothing else reads that product (Jacob
    et al. 2018, section 3.2)."""
    b = _Folder()
    count = reads(graph)
    new: dict[str, Node] = {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            args = (new[a] for a in node.args)
            found = b.emit(node.op, *args, name=node.name, **node.attrs)
        new[node.name] = found
        if count[node.name] > 1:
            b.shared.add(found.name)
    return rebuilt(b, graph, new)


def split(graph: Graph) -> Folded:
    """An inference graph as what waits for its inputs and what does not."""
    begins = [n.name for n in graph.nodes.values() if not n.args and n.op not in _STILL]
    moving = find_reachable(graph.dag, begins)
    ready = {n for n in _frontier(graph, moving) if OPS[shown(graph, n).op].kind != "leaf"}
    b, new = Builder(), {}
    for node in graph.nodes.values():
        with b.at(node.span, node.name, node.region):
            if node.name in ready:
                new[node.name] = _kept(b, node)
            else:
                args = (new[a] for a in node.args)
                name = node.name if node.op in ("input", "state") else _plain(node.name)
                new[node.name] = b.emit(node.op, *args, name=name, **node.attrs)
    return Folded(rebuilt(b, graph, new), _prepare(graph, ready))


def _is_still(node: Node, still: set[str]) -> bool:
    """Whether a node is the same for every input, where those of `still` before it are."""
    return node.op in _STILL or (bool(node.args) and all(a in still for a in node.args))


class _Folder(Rewriter):
    """Knows which nodes are `still`: the same for every input. `shared` ones have several readers
    and stay as they are."""

    def __init__(self) -> None:
        self.still: set[str] = set()
        self.shared: set[str] = set()
        super().__init__({op: (*SIMPLER.get(op, ()), *_RULES.get(op, ())) for op in _OPS})

    def insert(self, node: Node) -> Node:
        if _is_still(node, self.still):
            self.still.add(node.name)
        return super().insert(node)

    def moving(self, *nodes: Node) -> bool:
        """Whether none of the nodes is still or read elsewhere too."""
        return not any(n.name in self.still or n.name in self.shared for n in nodes)

    def halves(self, x: Node, z: Node) -> tuple[Node, Node] | None:
        """The moving and the still operand, where there is one of each and the still one is a
        value for each channel, or for all."""
        for a, s in ((x, z), (z, x)):
            if a.name not in self.still and s.name in self.still and a.type.rank:
                size = s.type.size
                channels = size in (1, a.type.shape[-1]) and s.type.shape[-1:] in ((), (size,))
                return (a, self.vector(s)) if channels and s.type.rank <= a.type.rank else None
        return None

    def vector(self, s: Node) -> Node:
        return self.reshape(s, shape=(s.type.size,)) if s.type.rank > 1 else s


def _normalize(b: _Folder, x: Node, m: Node, axes: Any, eps: float) -> Node | None:
    if x.name in b.still or m.name not in b.still or axes != tuple(range(x.type.rank - 1)):
        return None
    mean, scale = standard(b, m, eps)
    return b.add(b.mul(x, scale), b.mul(b.neg(mean), scale))


def _mul(b: _Folder, x: Node, z: Node) -> Node | None:
    """A factor for each channel moves towards the product that it scales."""
    halves = b.halves(x, z)
    if halves is None or not b.moving(halves[0]):
        return None
    y, factor = halves
    if y.op in _SCALED_AXIS:
        return _scaled(b, y, factor)
    if y.op not in ("add", "mul"):
        return None
    inner = b.halves(*(b.nodes[a] for a in y.args))
    if inner is None:
        return None
    if y.op == "mul":
        return b.mul(inner[0], b.mul(inner[1], factor))
    return b.add(b.mul(inner[0], factor), b.mul(inner[1], factor))


def _add(b: _Folder, x: Node, z: Node) -> Node | None:
    """Offsets one after the other are one offset, and so are those of two values that are added."""
    halves = b.halves(x, z)
    if halves is not None:
        inner = _shifted(b, halves[0])
        return b.add(inner[0], b.add(inner[1], halves[1])) if inner else None
    one, two = _shifted(b, x), _shifted(b, z)
    if one is None or two is None or x.type.shape != z.type.shape:
        return None
    return b.add(b.add(one[0], two[0]), b.add(one[1], two[1]))


def _shifted(b: _Folder, y: Node) -> tuple[Node, Node] | None:
    """A value that only one node reads as another one and an offset for each channel."""
    if y.op != "add" or not b.moving(y):
        return None
    return b.halves(*(b.nodes[a] for a in y.args))


_SCALED_AXIS = {"conv2d": 0, "conv2d_dgrad": 3, "matmul": 0}
"""Which axis of the weight counts the channels of the result."""


def _scaled(b: _Folder, y: Node, factor: Node) -> Node | None:
    x, w = (b.nodes[a] for a in y.args)
    grouped = y.op == "conv2d_dgrad" and y.attrs["groups"] != 1
    if w.name not in b.still or grouped or (y.op == "matmul" and w.type.rank != 2):
        return None
    axis = _SCALED_AXIS[y.op]
    shape = tuple(factor.type.size if a == axis else 1 for a in range(w.type.rank))
    scaled = b.emit("mul", w, b.reshape(factor, shape=shape), name=w.name)
    with b.at(y.span, y.name, y.region):
        return b.emit(y.op, x, scaled, name=y.name, **y.attrs)


_RULES: dict[str, tuple[Rule, ...]] = {"normalize": (_normalize,), "mul": (_mul,), "add": (_add,)}
_OPS = {*SIMPLER, *_RULES}


def _frontier(graph: Graph, moving: set[str]) -> set[str]:
    """What is still and read by what is moving, or given out."""
    read: set[str] = nx.node_boundary(graph.dag.reverse(copy=False), moving)
    return read | (set(graph.roots) - moving)


def _kept(b: Builder, node: Node) -> Node:
    kind = TensorType(node.type.shape, node.type.dtype)
    init = ("constant", 0.0)
    return b.emit(
        "state",
        name=PREFIX + _plain(node.name),
        shape=kind.shape,
        dtype=kind.dtype,
        init=init,
        trainable=False,
    )


def _plain(name: str) -> str:
    """A name as it was before a pass made room for its successor."""
    return re.sub(r"~\d+$", "", name)


def _prepare(graph: Graph, ready: set[str]) -> Graph:
    """The graph that computes what is ready beforehand, as updates of the states that keep it."""
    b = Builder(restricted(graph, graph.backward_slice(*ready), {}))
    names = [n for n in graph.nodes if n in ready]
    updates = {_kept(b, graph[n]).name: b.nodes[n] for n in names}
    return b.graph({}, updates, f"{graph.name}.prepare")
