"""Layout assignment: which values share storage, and the layout of each within it.

A branch of a `concat` is written directly into the concatenation; a result takes over the storage
of an operand that dies with it; an updated state is overwritten in place where this is safe; images
that convolutions read include their zero padding. What strides cannot express gets separate
storage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from netdsl.ops import OPS
from netdsl.ops.windows import Pads, dilated_size
from netdsl.plan.dataflow import DataflowGraph
from netdsl.plan.fusion import FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout, compute_view_layout, make_contiguous
from netdsl.plan.placement import NO_HALO, ImagePadding
from netdsl.types import Node


@dataclass
class LayoutAssignment:
    """`layouts` holds the layout of every stored value and every view, within the storage that
    `storage_owners` names for its base; `enclosing_concats` names the concatenation that a branch
    is part of."""

    layouts: dict[str, Layout] = field(default_factory=dict)
    paddings: dict[str, ImagePadding] = field(default_factory=dict)
    storage_owners: dict[str, str] = field(default_factory=dict)
    enclosing_concats: dict[str, str] = field(default_factory=dict)


def assign_layouts(
    flow: DataflowGraph, kernels: Sequence[Kernel], fusion: FusionOptions
) -> LayoutAssignment:
    """Returns the layouts of everything that the kernels read and write, before addresses are
    assigned."""
    stored_names = {o for k in kernels for o in k.outputs}
    return _LayoutAssigner(flow, stored_names, fusion).run()


class _LayoutAssigner:
    def __init__(self, flow: DataflowGraph, stored_names: set[str], fusion: FusionOptions) -> None:
        self.flow = flow
        self.stored_names = stored_names
        self.fusion = fusion
        self.views: dict[str, list[Node]] = {}
        for name, base in flow.base.items():
            if name != base:
                self.views.setdefault(base, []).append(flow.nodes[name])
        self.concats = [
            n for n in flow.nodes.values() if n.op == "concat" and n.name in stored_names
        ]
        self.updates = set(flow.graph.updates.values())

    def run(self) -> LayoutAssignment:
        assignment = LayoutAssignment()
        paddings = self._find_paddings()
        for n in reversed(self.concats):
            if n.name not in assignment.layouts:
                self._assign_own_storage(assignment, n.name, paddings.get(n.name))
            self._place_branches(assignment, n)
        for name in self.flow.nodes:
            is_stored = name in self.stored_names or OPS[self.flow.nodes[name].op].kind == "leaf"
            if is_stored and name not in assignment.layouts:
                self._assign_own_storage(assignment, name, paddings.get(name))
        return assignment

    def _assign_own_storage(
        self, assignment: LayoutAssignment, name: str, padding: ImagePadding | None
    ) -> None:
        """Gives a value storage of its own, without zero padding if a view rules it out."""
        tensor_type = self.flow.nodes[name].type
        layout = (
            padding.make_layout(tensor_type.shape)
            if padding
            else make_contiguous(tensor_type.shape)
        )
        views = self._find_view_layouts(name, layout)
        if views is None:
            padding, layout = None, make_contiguous(tensor_type.shape)
            views = self._find_view_layouts(name, layout)
        assert views is not None, f"strides cannot express a view of {name}"
        if padding is not None:
            assignment.paddings[name] = padding
        assignment.storage_owners[name] = name
        assignment.layouts |= {name: layout, **views}

    def _find_view_layouts(self, name: str, layout: Layout) -> dict[str, Layout] | None:
        """Returns the layouts of all views of a value, or None if one of them is impossible."""
        layouts = {name: layout}
        for view in self.views.get(name, ()):
            inner = compute_view_layout(layouts[view.args[0]], view)
            if inner is None:
                return None
            layouts[view.name] = inner
        return layouts

    def _place_branches(self, assignment: LayoutAssignment, concat: Node) -> None:
        """Places branches of a concatenation into its storage."""
        layout, axis = assignment.layouts[concat.name], concat.attrs["axis"]
        size = self.flow.nodes[concat.name].type.nbytes // max(concat.type.size, 1)
        axis_offset = 0
        for arg in concat.args:
            tensor_type = self.flow.nodes[arg].type
            first = layout.offset + axis_offset * layout.strides[axis]
            axis_offset += tensor_type.shape[axis]
            can_share = arg in self.stored_names - self.updates and concat.args.count(arg) == 1
            inner = Layout(tensor_type.shape, layout.strides, first)
            branch = self.flow.nodes[arg]
            if branch.op == "concat" and branch.attrs["axis"] != 3:
                can_share = can_share and concat.name not in assignment.paddings
            if (
                not can_share
                or arg in assignment.layouts
                or (first * size) % self.fusion.concat_alignment
            ):
                continue
            views = self._find_view_layouts(arg, inner)
            if views is not None:
                assignment.storage_owners[arg] = assignment.storage_owners[concat.name]
                assignment.enclosing_concats[arg] = concat.name
                assignment.layouts |= views
                if concat.name in assignment.paddings and axis == 3:
                    halo = assignment.paddings[concat.name].halo
                    assignment.paddings[arg] = ImagePadding(halo, tensor_type.shape[3])

    # zeros around images

    def _find_paddings(self) -> dict[str, ImagePadding]:
        """Returns the halo and channel count that a value's readers prefer."""
        halos: dict[str, Pads] = {}
        channels: dict[str, int] = {}
        for name in self.flow.edges:
            node = self.flow.nodes[name]
            image = _find_image_operand(node)
            if image is None:
                continue
            base = self.flow.nodes[node.args[image]]
            has_own_storage = (
                self.flow.base[base.name] == base.name and base.name not in self.updates
            )
            if not has_own_storage or OPS[base.op].kind == "collective":
                continue  # what is reduced is contiguous
            if base.op in ("state", "const"):
                continue
            if self.fusion.has_halo:
                halos[base.name] = _merge_halos(
                    halos.get(base.name, NO_HALO), _compute_halo(self.flow, node)
                )
            multiple = self.fusion.channel_multiple
            channels[base.name] = -(-base.type.shape[3] // multiple) * multiple
        for n in self.concats:
            channels.pop(n.name, None)
            if n.attrs["axis"] != 3:
                halos.pop(n.name, None)
            inner = [halos.get(a, NO_HALO) for a in n.args] if n.attrs["axis"] == 3 else []
            for halo in inner:
                halos[n.name] = _merge_halos(halos.get(n.name, NO_HALO), halo)
        paddings = {}
        for name in {*halos, *channels}:
            shape = self.flow.nodes[name].type.shape
            padding = ImagePadding(halos.get(name, NO_HALO), channels.get(name, shape[-1]))
            if padding != ImagePadding(NO_HALO, shape[-1]):
                paddings[name] = padding
        return paddings


def _find_image_operand(node: Node) -> int | None:
    """Returns the index of the operand that a convolution reads through windows."""
    return {"conv2d": 0, "conv2d_dgrad": 0, "conv2d_wgrad": 1}.get(node.op)


def _compute_halo(flow: DataflowGraph, node: Node) -> Pads:
    """Returns how many pixels beyond its image a convolution reads. Its gradient for the image
    reads the result's gradient through the flipped kernel; with a stride, it needs no halo."""
    pads: Pads = node.attrs["pad"]
    if node.op != "conv2d_dgrad":
        return pads
    if node.attrs["stride"] != (1, 1):
        return NO_HALO
    kernel = flow.nodes[node.args[1]].type.shape[1:3]
    spans = [dilated_size(k, d) - 1 for k, d in zip(kernel, node.attrs["dilation"], strict=True)]
    (top, bottom), (left, right) = pads
    h, w = spans
    return (max(h - top, 0), max(h - bottom, 0)), (max(w - left, 0), max(w - right, 0))


def _merge_halos(a: Pads, b: Pads) -> Pads:
    """Returns the larger halo on each side."""
    (at, ab), (al, ar) = a
    (bt, bb), (bl, br) = b
    return (max(at, bt), max(ab, bb)), (max(al, bl), max(ar, br))
