"""Products at their places: every way that a library offers is tried, the fastest one is bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from netdsl.plan.layout import make_contiguous
from netdsl.plan.placement import ARENA, Placement
from netdsl.plan.plan import Plan
from netdsl.types import Array, Node

Memory = Mapping[str, Array]
Launcher = Callable[[Launch, Memory], Thunk]
Way = Callable[["Cut", Packing], Thunk | None]
"""Gives a library's call; None where the launches that it has put into the packing are all."""
_ALIGNED = 16
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
    """A form of a kernel at its places: those of the product's operands, of what its epilogue reads
    (by its fields) and of what is written. `rest` are the launches for what is left; None where
    there is no kernel for it."""

    form: Form
    given: tuple[Placement, ...]
    beside: Mapping[str, Placement]
    out: Placement
    rest: tuple[Launch, ...] | None

    @property
    def node(self) -> Node:
        return self.form.node

    def at(self, *places: Placement) -> Cut:
        """With other places of the operands and, the last one, of what is written."""
        return replace(self, given=places[:-1], out=places[-1])


def cuts(plan: Plan, kernel: Kernel, multiprocessors: int) -> list[Cut]:
    """All ways to cut a product's kernel at its places, the product alone last."""
    found = []
    for form in forms(plan.graph, kernel):
        places, epilogue = plan.placements, form.epilogue
        given = tuple(places[a] for a in form.node.args)
        beside = {field: places[n] for field, n in epilogue.reads.items()} if epilogue else {}
        out = places[form.value] if form.value in kernel.outputs else _raw(plan, kernel)
        there, rest = {**places, form.value: out}, form.rest
        launches = generated(plan, rest, multiprocessors, there) if rest else ()
        found.append(Cut(form, given, beside, out, launches))
    return found


def _raw(plan: Plan, kernel: Kernel) -> Placement:
    """Where a product is written that only the rest of its kernel reads: where an output will
    be, if that is alike and nothing lies there yet, else in a buffer for all of them."""
    kind, places = plan.graph[kernel.name].type, plan.placements
    read = [places[i] for i in kernel.inputs]
    for name in kernel.outputs:
        p = places[name]
        alike = (p.dtype, p.layout.shape) == (kind.dtype, kind.shape) and p.padding is None
        if alike and _in_between(p) and not any(p.overlaps(r) for r in read):
            return p
    return Placement(_RAW, kind.dtype, make_contiguous(kind.shape))


def few_channels(cut: Cut) -> bool:
    """Whether a kernel of our own competes with the library's."""
    if cut.node.op not in ("conv2d", "conv2d_dgrad", "conv2d_wgrad"):
        return False
    shapes = [p.layout.shape for p in (*cut.given, cut.out)]
    image, result = {"conv2d_wgrad": (1, 0)}.get(cut.node.op, (0, 2))
    images = all(len(shape) == 4 for shape in shapes)
    return images and direct.offered(cut.node, shapes[image], shapes[result])


def own_launches(cut: Cut, multiprocessors: int) -> tuple[Launch, ...]:
    """That kernel. Raises Unmappable where there is none."""
    first, second = cut.given
    given = (first, second)
    return direct.launches(cut.node, given, cut.out, multiprocessors, cut.form.epilogue, cut.beside)


class Anchors:
    """Binds the products of one plan over one memory, to which it adds buffers."""

    def __init__(self, device: Device, plan: Plan, memory: Memory) -> None:
        self.device = device
        self.plan = plan
        self.memory = dict(memory)
        self._packed: dict[tuple[str, int], Placement] = {}
        self._cuts = {k.name: self._ways_to_cut(k) for k in plan.kernels if k.kind == "anchor"}

    def _ways_to_cut(self, kernel: Kernel) -> list[Cut]:
        """What may follow a product begins to be compiled, so that timing does not wait for one
        kernel after the other."""
        found = cuts(self.plan, kernel, self.device.multiprocessors)
        for launch in (launch for cut in found for launch in cut.rest or ()):
            self.device.compiled(launch)
        return found

    def bound(self, kernel: Kernel, launcher: Launcher) -> list[Thunk]:
        """The launches of a product's kernel. Raises Unmappable where no library computes it."""
        *fused, plain = self._cuts[kernel.name]
        if any(p.padding is not None for p in (*plain.given, plain.out)):
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

    def _most(self) -> int:
        """Bytes of the largest product that is not written itself."""
        inner = (k for k in self.plan.kernels if k.kind == "anchor" and k.name not in k.outputs)
        return max(self.plan.graph[k.name].type.nbytes for k in inner)

    def _taken(self, way: Way, cut: Cut, launcher: Launcher) -> Bound:
        if cut.rest is None:
            raise Unmappable(f"no kernel computes what follows {cut.form.value}")
        if cut.out.buffer == _RAW and _RAW not in self.memory:
            self.memory[_RAW] = self.device.cupy.zeros(self._most(), dtype="uint8")
        packing = Packing(self.device, dict(self.memory), self._packed)
        run = way(cut, packing)
        first, last, rest = (
            [launcher(x, packing.memory) for x in some]
            for some in (packing.before, packing.after, cut.rest)
        )
        product = [*first, *([run] if run else []), *last]
        after = cut.form.rest.outputs if cut.form.rest else ()
        states = not all(_in_between(self.plan.placements[o]) for o in after)
        return Bound([*product, *rest], product if states else [*product, *rest], packing)

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
        own = (self._direct,) if few_channels(cut) else ()
        yield (self._convolution, *padded, *own)
        yield (self._packed_convolution,)

    def _product(self, cut: Cut, packing: Packing) -> Thunk:
        """Where values lie, as far as the library can read them there."""
        batch = 0 if cut.node.op == "gram" else len(cut.given[-1].layout.shape) - 2
        given = (
            p if product.mappable(p, batch) else packing.packed(name, p)
            for name, p in zip(cut.node.args, cut.given, strict=True)
        )
        fits = product.mappable(cut.out, batch, result=True)
        out = cut.out if fits else packing.unpacked(cut.out)
        return self._multiplied(cut.at(*given, out), packing)

    def _packed_product(self, cut: Cut, packing: Packing) -> Thunk:
        return self._multiplied(_packed(cut, packing), packing)

    def _multiplied(self, cut: Cut, packing: Packing) -> Thunk:
        x, w, out = cut.given[0], cut.given[-1], cut.out
        gram, e = cut.node.op == "gram", cut.form.epilogue
        found = product.gram_of(x, out) if gram else product.product_of(x, w, out)
        beside, bias = cut.beside.get("beside"), cut.beside.get("bias")
        if e is not None:
            if e.mask is not None:
                raise Unmappable("no product takes a mask")
            if bias and e.bias:
                bias = packing.vector(e.bias, bias, out.dtype)
            found = product.finished(found, out, beside, bias, e.relu)
        places = (w, x, out, beside, bias)
        at = product.Pointers(*(packing.pointer(p) if p else 0 for p in places))
        return product.bound(self.device, found, at)

    def _convolution(self, cut: Cut, packing: Packing) -> Thunk:
        images = [p for field, p in cut.beside.items() if field != "bias"]
        if any(len(p.layout.shape) != 4 for p in (*cut.given, *images, cut.out)):
            raise Unmappable("a convolution reads and gives images, not views of them")
        if any(cut.out.overlaps(p) for p in cut.beside.values()):
            raise Unmappable("a convolution may not write over what it reads")
        task = convolution.Task(
            cut.node, (*cut.given, *cut.beside.values(), cut.out), cut.form.epilogue
        )
        pointers = [packing.pointer(p) for p in task.places]
        if any(pointer % _ALIGNED for pointer in pointers):
            raise Unmappable("cuDNN takes every tensor to begin at a multiple of 16 bytes")
        return convolution.bound(self.device, task, pointers)

    def _direct(self, cut: Cut, packing: Packing) -> None:
        packing.after += own_launches(cut, self.device.multiprocessors)

    def _packed_convolution(self, cut: Cut, packing: Packing) -> Thunk:
        return self._convolution(_packed(cut, packing), packing)

    def _with_channels(self, cut: Cut, packing: Packing) -> Thunk:
        """With channels of zeros, as many as the library likes."""
        node, places = cut.node, [*cut.given, cut.out]
        image = 0 if node.op == "conv2d" else 1
        wide = -(-places[image].layout.shape[3] // _CHANNELS) * _CHANNELS
        places[image] = packing.packed(node.args[image], places[image], wide)
        if node.op == "conv2d":
            places[1] = packing.packed(node.args[1], places[1], wide)
        else:
            places[2] = packing.unpacked(places[2], wide)
        return self._convolution(cut.at(*places), packing)

    def _in_blocks(self, cut: Cut, packing: Packing) -> Thunk:
        """With blocks of pixels as channels, at stride 1."""
        node, places = cut.node, [*cut.given, cut.out]
        image, weight, result = (0, 1, 2) if node.op == "conv2d" else (1, 2, 0)
        shapes = (places[i].layout.shape for i in (image, weight, result))
        blocks = space.blocks_of(node, *shapes)
        if blocks is None:
            raise Unmappable("no gain by blocks of pixels")
        places[image] = packing.blocked_image(node.args[image], places[image], blocks)
        into = packing.blocked_weight if node.op == "conv2d" else packing.unblocked_weight
        places[weight] = into(places[weight], blocks)
        form = replace(cut.form, node=space.blocked(node, blocks))
        return self._convolution(replace(cut, form=form).at(*places), packing)


def _in_between(place: Placement) -> bool:
    """Whether nothing is lost where a value is written before its time."""
    return place.buffer in (ARENA, _RAW)


def _thin(node: Node, image: Placement) -> bool:
    small = image.itemsize == 2 and node.attrs["groups"] == 1
    return small and image.layout.shape[3] % _CHANNELS != 0


def _packed(cut: Cut, packing: Packing) -> Cut:
    """Operands and result without gaps."""
    given = (packing.packed(n, p) for n, p in zip(cut.node.args, cut.given, strict=True))
    return cut.at(*given, packing.unpacked(cut.out))
