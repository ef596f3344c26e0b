"""Arrangement: which values share storage, and the layout of each within it.

A branch of a `concat` is written where the concatenation lies; a result takes the storage of an
operand that dies with it; an updated state is written over where it may be; images that
convolutions read carry their zeros around them. What no strides can express stays apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from netdsl.ops import OPS
from netdsl.ops.windows import Pads, reach
from netdsl.plan.flow import Flow
from netdsl.plan.fusion import Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout, contiguous, through
from netdsl.plan.placement import NO_HALO, Geometry
from netdsl.types import Node


@dataclass
class Arrangement:
    """`layouts`: of every stored value and every view, within the storage that `owner` names for
    its base, `inside` the concatenation that a branch lies in."""

    layouts: dict[str, Layout] = field(default_factory=dict)
    geometry: dict[str, Geometry] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)


def arrange(flow: Flow, kernels: Sequence[Kernel], fusion: Fusion) -> Arrangement:
    """Layouts of all that the kernels read and write, before anything has an address."""
    written = {o for k in kernels for o in k.outputs}
    return _Arranger(flow, written, fusion).run()


class _Arranger:
    def __init__(self, flow: Flow, written: set[str], fusion: Fusion) -> None:
        self.flow = flow
        self.written = written
        self.fusion = fusion
        self.views: dict[str, list[Node]] = {}
        for name, base in flow.base.items():
            if name != base:
                self.views.setdefault(base, []).append(flow.nodes[name])
        self.concats = [n for n in flow.nodes.values() if n.op == "concat" and n.name in written]
        self.updates = set(flow.graph.updates.values())

    def run(self) -> Arrangement:
        found = Arrangement()
        wanted = self._wanted()
        for n in reversed(self.concats):
            if n.name not in found.layouts:
                self._settle(found, n.name, wanted.get(n.name))
            self._take_in(found, n)
        for name in self.flow.nodes:
            stored = name in self.written or OPS[self.flow.nodes[name].op].kind == "leaf"
            if stored and name not in found.layouts:
                self._settle(found, name, wanted.get(name))
        return found

    def _settle(self, found: Arrangement, name: str, geometry: Geometry | None) -> None:
        """A value with storage of its own; without zeros around it where a view forbids them."""
        kind = self.flow.nodes[name].type
        layout = geometry.layout(kind.shape) if geometry else contiguous(kind.shape)
        views = self._through(name, layout)
        if views is None:
            geometry, layout = None, contiguous(kind.shape)
            views = self._through(name, layout)
        assert views is not None, f"a view of {name} that Flow took for one is none"
        if geometry is not None:
            found.geometry[name] = geometry
        found.owner[name] = name
        found.layouts |= {name: layout, **views}

    def _through(self, name: str, layout: Layout) -> dict[str, Layout] | None:
        """The layouts of all views of a value; None where one of them cannot be."""
        known = {name: layout}
        for view in self.views.get(name, ()):
            inner = through(known[view.args[0]], view)
            if inner is None:
                return None
            known[view.name] = inner
        return known

    def _take_in(self, found: Arrangement, concat: Node) -> None:
        """Puts branches of a concatenation into its storage."""
        layout, axis = found.layouts[concat.name], concat.attrs["axis"]
        size = self.flow.nodes[concat.name].type.nbytes // max(concat.type.size, 1)
        at = 0
        for arg in concat.args:
            kind = self.flow.nodes[arg].type
            first = layout.offset + at * layout.strides[axis]
            at += kind.shape[axis]
            own = arg in self.written - self.updates and concat.args.count(arg) == 1
            inner = Layout(kind.shape, layout.strides, first)
            joint = self.flow.nodes[arg]
            if joint.op == "concat" and joint.attrs["axis"] != 3:
                own = own and concat.name not in found.geometry
            if not own or arg in found.layouts or (first * size) % self.fusion.concat_align:
                continue
            views = self._through(arg, inner)
            if views is not None:
                found.owner[arg] = found.owner[concat.name]
                found.inside[arg] = concat.name
                found.layouts |= views
                if concat.name in found.geometry and axis == 3:
                    halo = found.geometry[concat.name].halo
                    found.geometry[arg] = Geometry(halo, kind.shape[3])

    # zeros around images

    def _wanted(self) -> dict[str, Geometry]:
        """The halo and channels that readers would like a value to have."""
        halos: dict[str, Pads] = {}
        channels: dict[str, int] = {}
        for name in self.flow.edges:
            node = self.flow.nodes[name]
            image = _image_operand(node)
            if image is None:
                continue
            base = self.flow.nodes[node.args[image]]
            apart = self.flow.base[base.name] == base.name and base.name not in self.updates
            if not apart or base.op in ("state", "const"):
                continue
            if self.fusion.halo:
                halos[base.name] = _wider(halos.get(base.name, NO_HALO), _reach_of(self.flow, node))
            many = self.fusion.channels
            channels[base.name] = -(-base.type.shape[3] // many) * many
        for n in self.concats:
            channels.pop(n.name, None)
            if n.attrs["axis"] != 3:
                halos.pop(n.name, None)
            inner = [halos.get(a, NO_HALO) for a in n.args] if n.attrs["axis"] == 3 else []
            for halo in inner:
                halos[n.name] = _wider(halos.get(n.name, NO_HALO), halo)
        found = {}
        for name in {*halos, *channels}:
            shape = self.flow.nodes[name].type.shape
            geometry = Geometry(halos.get(name, NO_HALO), channels.get(name, shape[-1]))
            if geometry != Geometry(NO_HALO, shape[-1]):
                found[name] = geometry
        return found


def _image_operand(node: Node) -> int | None:
    """Which operand of a convolution is read through windows."""
    return {"conv2d": 0, "conv2d_dgrad": 0, "conv2d_wgrad": 1}.get(node.op)


def _reach_of(flow: Flow, node: Node) -> Pads:
    """How many pixels beyond its image a convolution reads. Its gradient for the image reads the
    result's gradient through the turned kernel; over strides it does so without zeros around."""
    pads: Pads = node.attrs["pad"]
    if node.op != "conv2d_dgrad":
        return pads
    if node.attrs["stride"] != (1, 1):
        return NO_HALO
    kernel = flow.nodes[node.args[1]].type.shape[1:3]
    spans = [reach(k, d) - 1 for k, d in zip(kernel, node.attrs["dilation"], strict=True)]
    (top, bottom), (left, right) = pads
    h, w = spans
    return (max(h - top, 0), max(h - bottom, 0)), (max(w - left, 0), max(w - right, 0))


def _wider(a: Pads, b: Pads) -> Pads:
    """The larger halo on each side."""
    (at, ab), (al, ar) = a
    (bt, bb), (bl, br) = b
    return (max(at, bt), max(ab, bb)), (max(al, bl), max(ar, br))
