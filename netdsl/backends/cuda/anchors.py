"""Products at their places: every way that a library offers is tried, the fastest one is bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from netdsl.backends.cuda import convolution, product, space
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import Launch
from netdsl.backends.cuda.packing import Packing
from netdsl.backends.cuda.tuning import Candidate
from netdsl.plan.kernel import Kernel
from netdsl.plan.placement import Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array, Node

Memory = Mapping[str, Array]
Launcher = Callable[[Launch, Memory], Thunk]
Way = Callable[[Node, list[Placement], Packing], Thunk]
_CHANNELS = 8
"""What convolutions in 16 bits want a multiple of."""


class Anchors:
    """Binds the products of one plan over one memory, to which it adds buffers."""

    def __init__(self, device: Device, plan: Plan, memory: Memory) -> None:
        self.device = device
        self.plan = plan
        self.memory = dict(memory)
        self._packed: dict[tuple[str, int], Placement] = {}

    def place_of(self, kernel: Kernel) -> Placement:
        """Where a kernel's product is written: its own place, or a buffer where it has none."""
        if kernel.name in kernel.outputs:
            return self.plan.placements[kernel.name]
        kind = self.plan.graph[kernel.name].type
        return Packing(self.device, self.memory, {}).buffer(kind.dtype, kind.shape)

    def bound(self, node: Node, out: Placement, launcher: Launcher) -> list[Thunk]:
        """The launches of a product alone. Raises Unmappable where no library computes it."""
        places = [*(self.plan.placements[a] for a in node.args), out]
        if any(p.geometry is not None for p in places):
            raise Unmappable("a value owns zeros around it")
        for group in self._ways(node, places):
            ways = [
                Candidate(w.__name__, partial(self._taken, w, node, places, launcher))
                for w in group
            ]
            try:
                thunks, packing = self.device.tuner.fastest(
                    _way_of(node, places), ways, self._milliseconds, len(ways)
                )
            except RuntimeError:  # the next group may do
                continue
            self._packed, self.memory = packing.known, packing.memory
            return thunks
        raise Unmappable(f"no library computes {node.name}")

    def _taken(
        self, way: Way, node: Node, places: Sequence[Placement], launcher: Launcher
    ) -> tuple[list[Thunk], Packing]:
        packing = Packing(self.device, dict(self.memory), self._packed)
        run = way(node, list(places), packing)
        first, last = (
            [launcher(x, packing.memory) for x in some] for some in (packing.before, packing.after)
        )
        return [*first, run, *last], packing

    def _milliseconds(self, way: tuple[list[Thunk], Packing]) -> float:
        def run() -> None:
            for thunk in way[0]:
                thunk()

        return self.device.milliseconds(run)

    def _ways(self, node: Node, places: Sequence[Placement]) -> Iterator[tuple[Way, ...]]:
        """Ways that compete, and then what is left where none of them works."""
        if node.op == "matmul":
            yield (self._product,)
            yield (self._packed_product,)
            return
        if not convolution.supported(places):
            return
        image = {"conv2d": 0, "conv2d_wgrad": 1}.get(node.op)
        thin = image is not None and _thin(node, places[image])
        yield (
            (self._convolution, self._with_channels, self._in_blocks)
            if thin
            else (self._convolution,)
        )
        yield (self._packed_convolution,)

    def _product(self, node: Node, places: list[Placement], packing: Packing) -> Thunk:
        x, w, out = places
        found = product.product_of(x, w, out)
        return product.bound(self.device, found, [packing.pointer(p) for p in (w, x, out)])

    def _packed_product(self, node: Node, places: list[Placement], packing: Packing) -> Thunk:
        return self._product(node, _packed(node, places, packing), packing)

    def _convolution(self, node: Node, places: list[Placement], packing: Packing) -> Thunk:
        pointers = [packing.pointer(p) for p in places]
        return convolution.bound(self.device, node, places, pointers)

    def _packed_convolution(self, node: Node, places: list[Placement], packing: Packing) -> Thunk:
        return self._convolution(node, _packed(node, places, packing), packing)

    def _with_channels(self, node: Node, places: list[Placement], packing: Packing) -> Thunk:
        """With channels of zeros, as many as the library likes."""
        image = 0 if node.op == "conv2d" else 1
        wide = -(-places[image].layout.shape[3] // _CHANNELS) * _CHANNELS
        places[image] = packing.packed(node.args[image], places[image], wide)
        if node.op == "conv2d":
            places[1] = packing.packed(node.args[1], places[1], wide)
        else:
            places[2] = packing.unpacked(places[2], wide)
        return self._convolution(node, places, packing)

    def _in_blocks(self, node: Node, places: list[Placement], packing: Packing) -> Thunk:
        """With blocks of pixels as channels, at stride 1."""
        image, weight, result = (0, 1, 2) if node.op == "conv2d" else (1, 2, 0)
        shapes = (places[i].layout.shape for i in (image, weight, result))
        blocks = space.blocks_of(node, *shapes)
        if blocks is None:
            raise Unmappable("no gain by blocks of pixels")
        places[image] = packing.blocked_image(node.args[image], places[image], blocks)
        into = packing.blocked_weight if node.op == "conv2d" else packing.unblocked_weight
        places[weight] = into(places[weight], blocks)
        return self._convolution(space.blocked(node, blocks), places, packing)


def _way_of(node: Node, places: Sequence[Placement]) -> tuple[object, ...]:
    """What the choice of a way depends on."""
    laid = ((p.dtype, p.layout.shape, p.layout.strides) for p in places)
    return ("way", node.op, *sorted(node.attrs.items()), *laid)


def _thin(node: Node, image: Placement) -> bool:
    small = image.itemsize == 2 and node.attrs["groups"] == 1
    return small and image.layout.shape[3] % _CHANNELS != 0


def _packed(node: Node, places: Sequence[Placement], packing: Packing) -> list[Placement]:
    """Operands and result without gaps."""
    given = [packing.packed(n, p) for n, p in zip(node.args, places, strict=False)]
    return [*given, packing.unpacked(places[-1])]


def after(kernel: Kernel) -> Kernel | None:
    """What a product's kernel computes besides it, as a kernel that reads the product."""
    outputs = tuple(o for o in kernel.outputs if o != kernel.name)
    if not outputs:
        return None
    nodes = tuple(n for n in kernel.nodes if n != kernel.name)
    return Kernel(outputs[-1], "map", nodes, (*kernel.inputs, kernel.name), outputs)
