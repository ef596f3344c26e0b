"""Products at their places: every way that a library offers is tried, the fastest one is bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from netdsl.backends.cuda import convolution, direct, product, space
from netdsl.backends.cuda.device import Device, Thunk
from netdsl.backends.cuda.epilogue import Form, forms
from netdsl.backends.cuda.generate import generated
from netdsl.backends.cuda.index import Unmappable
from netdsl.backends.cuda.launch import Launch
from netdsl.backends.cuda.packing import Packing
from netdsl.backends.cuda.tuning import Candidate
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import contiguous
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array, Node

Memory = Mapping[str, Array]
Launcher = Callable[[Launch, Memory], Thunk]
Way = Callable[["Cut", Packing], Thunk | None]
"""Gives a library's call; None where the launches that it has put into the packing are all."""
_CHANNELS = 8
"""What convolutions in 16 bits want a multiple of."""
_RAW = "products"
"""The buffer of products that the rest of their kernel reads and nothing else."""


@dataclass(frozen=True)
class Bound:
    """A kernel's launches, of which timing may run some: not those that write states, which a step
    will read."""

    thunks: list[Thunk]
    timed: list[Thunk]
    packing: Packing


@dataclass(frozen=True)
class Cut:
    """A form of a kernel at its places: those of the product's operands, and of what is written."""

    form: Form
    given: tuple[Placement, ...]
    out: Placement

    @property
    def node(self) -> Node:
        return self.form.node


class Anchors:
    """Binds the products of one plan over one memory, to which it adds buffers."""

    def __init__(self, device: Device, plan: Plan, memory: Memory) -> None:
        self.device = device
        self.plan = plan
        self.memory = dict(memory)
        self._packed: dict[tuple[str, int], Placement] = {}
        self._compile()

    def _compile(self) -> None:
        """Begins with all that may follow a product, so that timing does not wait for one after
        the other."""
        for kernel in self.plan.kernels:
            if kernel.kind == "anchor":
                for form in forms(self.plan.graph, kernel):
                    with suppress(Unmappable):
                        for launch in self._rest(self._cut(kernel, form)):
                            self.device.compiled(launch)

    def bound(self, kernel: Kernel, launcher: Launcher) -> list[Thunk]:
        """The launches of a product's kernel. Raises Unmappable where no library computes it."""
        *fused, plain = (self._cut(kernel, form) for form in forms(self.plan.graph, kernel))
        if any(p.geometry is not None for p in (*plain.given, plain.out)):
            raise Unmappable("a value owns zeros around it")
        if not _in_between(plain.out):
            raise Unmappable("a product is a state, which timing would write")
        fused = [cut for cut in fused if _in_between(cut.out)]
        ways = [(cut, way) for cut in fused for way in self._fused_ways(cut)]
        for group in self._ways(plain):
            both = [*ways, *((plain, way) for way in group)]
            both.sort(key=lambda pair: pair[1] == self._direct)  # libraries are the likelier ones
            offered = [self._candidate(way, cut, launcher) for cut, way in both]
            try:
                found = self.device.tuner.fastest(
                    self._what(kernel, plain), offered, self._milliseconds, len(offered)
                )
            except RuntimeError:  # the next group may do
                ways.clear()
                continue
            self._packed, self.memory = found.packing.known, found.packing.memory
            return found.thunks
        raise Unmappable(f"no library computes {kernel.name}")

    def _cut(self, kernel: Kernel, form: Form) -> Cut:
        places = self.plan.placements
        given = tuple(places[a] for a in form.node.args)
        known = form.value in kernel.outputs
        return Cut(form, given, places[form.value] if known else self._raw(kernel))

    def _raw(self, kernel: Kernel) -> Placement:
        """Where a product is written that only the rest of its kernel reads: where an output will
        be, if that is alike and nothing lies there yet, else in a buffer for all of them."""
        kind, places = self.plan.graph[kernel.name].type, self.plan.placements
        read = [places[i] for i in kernel.inputs]
        for name in kernel.outputs:
            p = places[name]
            alike = (p.dtype, p.layout.shape) == (kind.dtype, kind.shape) and p.geometry is None
            if alike and _in_between(p) and not any(p.overlaps(r) for r in read):
                return p
        return Placement(_RAW, kind.dtype, contiguous(kind.shape))

    def _most(self) -> int:
        """Bytes of the largest product that is not written itself."""
        inner = (k for k in self.plan.kernels if k.kind == "anchor" and k.name not in k.outputs)
        return max(self.plan.graph[k.name].type.nbytes for k in inner)

    def _taken(self, way: Way, cut: Cut, launcher: Launcher) -> Bound:
        if cut.out.buffer == _RAW and _RAW not in self.memory:
            self.memory[_RAW] = self.device.cupy.zeros(self._most(), dtype="uint8")
        packing = Packing(self.device, dict(self.memory), self._packed)
        run = way(cut, packing)
        first, last, rest = (
            [launcher(x, packing.memory) for x in some]
            for some in (packing.before, packing.after, self._rest(cut))
        )
        product = [*first, *([run] if run else []), *last]
        after = cut.form.rest.outputs if cut.form.rest else ()
        states = not all(_in_between(self.plan.placements[o]) for o in after)
        return Bound([*product, *rest], product if states else [*product, *rest], packing)

    def _rest(self, cut: Cut) -> tuple[Launch, ...]:
        """What the kernel computes from the value that is written."""
        rest, value = cut.form.rest, cut.form.value
        if rest is None:
            return ()
        places = {**self.plan.placements, value: cut.out}
        found = generated(self.plan, rest, self.device.multiprocessors, places)
        if found is None:
            raise Unmappable(f"no kernel computes what follows {value}")
        return found

    def _milliseconds(self, way: Bound) -> float:
        def run() -> None:
            for thunk in way.timed:
                thunk()

        return self.device.milliseconds(run)

    def _candidate(self, way: Way, cut: Cut, launcher: Launcher) -> Candidate[Bound]:
        name: str = way.__name__
        epilogue = cut.form.epilogue
        if epilogue is None:
            return Candidate(name, partial(self._taken, way, cut, launcher))
        compiled = way not in (self._product, self._direct)
        name = f"{name} {epilogue.kind}"
        return Candidate(name, partial(self._taken, way, cut, launcher), compiled)

    def _what(self, kernel: Kernel, plain: Cut) -> tuple[object, ...]:
        """What the choice of a way depends on."""
        laid = ((p.dtype, p.layout.shape, p.layout.strides) for p in (*plain.given, plain.out))
        ops = (self.plan.graph[n].op for n in kernel.nodes if n != kernel.name)
        return ("way", plain.node.op, *sorted(plain.node.attrs.items()), *laid, *ops)

    def _fused_ways(self, cut: Cut) -> tuple[Way, ...]:
        if cut.node.op == "matmul":
            return (self._product,)
        return next(self._ways(cut), ())

    def _ways(self, cut: Cut) -> Iterator[tuple[Way, ...]]:
        """Ways that compete, and then what is left where none of them works."""
        if cut.node.op in ("matmul", "gram"):
            yield (self._product,)
            yield (self._packed_product,)
            return
        if not convolution.supported((*cut.given, cut.out)):
            return
        image = {"conv2d": 0, "conv2d_wgrad": 1}.get(cut.node.op)
        thin = image is not None and _thin(cut.node, cut.given[image])
        padded = (self._with_channels, self._in_blocks) if thin else ()
        own = (self._direct,) if self._few_channels(cut) else ()
        yield (self._convolution, *padded, *own)
        yield (self._packed_convolution,)

    def _few_channels(self, cut: Cut) -> bool:
        shapes = [p.layout.shape for p in (*cut.given, cut.out)]
        image, result = {"conv2d_wgrad": (1, 0)}.get(cut.node.op, (0, 2))
        images = all(len(shape) == 4 for shape in shapes)
        return images and direct.offered(cut.node, shapes[image], shapes[result])

    def _product(self, cut: Cut, packing: Packing) -> Thunk:
        """Where values lie, as far as the library can read them there."""
        batch = 0 if cut.node.op == "gram" else len(cut.given[-1].layout.shape) - 2
        given = (
            p if product.mappable(p, batch) else packing.packed(name, p)
            for name, p in zip(cut.node.args, cut.given, strict=True)
        )
        fits = product.mappable(cut.out, batch, result=True)
        return self._multiplied(
            replace(cut, given=tuple(given), out=cut.out if fits else packing.unpacked(cut.out)),
            packing,
        )

    def _packed_product(self, cut: Cut, packing: Packing) -> Thunk:
        return self._multiplied(_packed(cut, packing), packing)

    def _multiplied(self, cut: Cut, packing: Packing) -> Thunk:
        (x, *_), w, out, e = cut.given, cut.given[-1], cut.out, cut.form.epilogue
        gram = cut.node.op == "gram"
        found = product.gram_of(x, out) if gram else product.product_of(x, w, out)
        at = product.Pointers(*(packing.pointer(p) for p in (w, x, out)))
        if e is not None:
            if e.mask is not None:
                raise Unmappable("no product takes a mask")
            places = self.plan.placements
            beside = places[e.beside] if e.beside else None
            bias = packing.vector(e.bias, places[e.bias], out.dtype) if e.bias else None
            found = product.finished(found, out, beside, bias, e.relu)
            added = (packing.pointer(p) if p else 0 for p in (beside, bias))
            at = product.Pointers(at.weight, at.rows, at.result, *added)
        return product.bound(self.device, found, at)

    def _convolution(self, cut: Cut, packing: Packing) -> Thunk:
        e = cut.form.epilogue
        beside = [self.plan.placements[o] for o in e.reads.values()] if e else []
        if any(len(p.layout.shape) != 4 for p in (*cut.given, cut.out)):
            raise Unmappable("a convolution gives an image, not a view of one")
        if any(cut.out.overlaps(p) for p in beside):
            raise Unmappable("a convolution may not write over what it reads")
        places = (*cut.given, *beside, cut.out)
        pointers = [packing.pointer(p) for p in places]
        return convolution.bound(self.device, convolution.Task(cut.node, places, e), pointers)

    def _direct(self, cut: Cut, packing: Packing) -> None:
        e, reads = cut.form.epilogue, cut.form.epilogue.reads if cut.form.epilogue else {}
        beside = {field: self.plan.placements[name] for field, name in reads.items()}
        multiprocessors, (first, second) = self.device.multiprocessors, cut.given
        packing.after += direct.launches(
            cut.node, (first, second), cut.out, multiprocessors, e, beside
        )

    def _packed_convolution(self, cut: Cut, packing: Packing) -> Thunk:
        return self._convolution(_packed(cut, packing), packing)

    def _with_channels(self, cut: Cut, packing: Packing) -> Thunk:
        """With channels of zeros, as many as the library likes."""
        first, second = cut.given
        if cut.node.op == "conv2d":
            wide = _wide(first)
            both = zip(cut.node.args, cut.given, strict=True)
            given = tuple(packing.packed(name, p, wide) for name, p in both)
            return self._convolution(replace(cut, given=given), packing)
        wide = _wide(second)
        image = packing.packed(cut.node.args[1], second, wide)
        out = packing.unpacked(cut.out, wide)
        return self._convolution(replace(cut, given=(first, image), out=out), packing)

    def _in_blocks(self, cut: Cut, packing: Packing) -> Thunk:
        """With blocks of pixels as channels, at stride 1."""
        forward = cut.node.op == "conv2d"
        first, second = cut.given
        image, weight, result = (first, second, cut.out) if forward else (second, cut.out, first)
        shapes = (p.layout.shape for p in (image, weight, result))
        blocks = space.blocks_of(cut.node, *shapes)
        if blocks is None:
            raise Unmappable("no gain by blocks of pixels")
        node = space.blocked(cut.node, blocks)
        image = packing.blocked_image(cut.node.args[0 if forward else 1], image, blocks)
        form = replace(cut.form, node=node)
        if forward:
            given = (image, packing.blocked_weight(weight, blocks))
            return self._convolution(Cut(form, given, result), packing)
        out = packing.unblocked_weight(weight, blocks)
        return self._convolution(Cut(form, (result, image), out), packing)


def _in_between(place: Placement) -> bool:
    """Whether nothing is lost where a value is written before its time."""
    return place.buffer in (ARENA, _RAW)


def _thin(node: Node, image: Placement) -> bool:
    small = image.itemsize == 2 and node.attrs["groups"] == 1
    return small and image.layout.shape[3] % _CHANNELS != 0


def _wide(image: Placement) -> int:
    return -(-image.layout.shape[3] // _CHANNELS) * _CHANNELS


def _packed(cut: Cut, packing: Packing) -> Cut:
    """Operands and result without gaps."""
    given = (packing.packed(n, p) for n, p in zip(cut.node.args, cut.given, strict=True))
    return replace(cut, given=tuple(given), out=packing.unpacked(cut.out))
