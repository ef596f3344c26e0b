"""ONNX operators that move values as layers, or as nothing where only names of axes change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from netdsl.interchange.onnx_import.axis_views import (
    IMAGE_ORDER,
    View,
    ViewError,
    atoms_of,
    flat,
    row_view,
)
from netdsl.interchange.onnx_import.call import OnnxCall, Rule, UnsupportedError
from netdsl.interchange.onnx_import.constant_folding import resolve_shape
from netdsl.interchange.onnx_import.elementwise_rules import ordered_view
from netdsl.interchange.padding_text import pair
from netdsl.limits import MAX_AXES
from netdsl.types import Array
from netdsl.values import Size, Symbol, Value

_AXIS_NAMES = ("height", "width", "channels")


def _reshape(call: OnnxCall) -> View:
    view = call.view()
    wanted = call.integers("shape", 1)
    try:
        shape = resolve_shape(view.shape, wanted or (), call.integer("allowzero", 0))
    except (ValueError, IndexError):
        raise UnsupportedError("its shape does not fit") from None
    return reshape(call, view, shape)


def reshape(call: OnnxCall, view: View, shape: Sequence[int]) -> View:
    """The view under another shape: another name of its axes, or a layer where that is not
    enough."""
    if len(shape) > MAX_AXES:
        raise UnsupportedError(f"it makes {len(shape)} axes")
    try:
        return view.reshape(shape)
    except ViewError:
        is_row_major = flat(view.axes) == flat(view.base)
        if not is_row_major or not 2 <= len(shape) <= 5 or shape[0] != view.shape[0]:
            raise UnsupportedError(f"it makes {shape} of {view.shape}") from None
        node = call.emit("reshape", [call.records.use(view)], {"shape": Size(tuple(shape[1:]))})
        return row_view(node, shape)


def _flatten(call: OnnxCall) -> View:
    view = call.view()
    axis = call.integer("axis", 1)
    axis = axis if axis == view.rank else call.axis(axis, view.rank)
    sizes = math.prod(view.shape[:axis]), math.prod(view.shape[axis:])
    return reshape(call, view, sizes)


def _squeeze(call: OnnxCall) -> View:
    view, axes = call.view(), call.integers("axes", 1)
    if axes is None:
        axes = tuple(i for i, axis in enumerate(view.axes) if not axis)
    gone = {call.axis(a, view.rank) for a in axes}
    if any(view.axes[i] for i in gone):
        raise UnsupportedError("it removes an axis that is larger than 1")
    return replace(view, axes=tuple(a for i, a in enumerate(view.axes) if i not in gone))


def _unsqueeze(call: OnnxCall) -> View:
    view, axes = call.view(), call.integers("axes", 1) or ()
    rank = view.rank + len(axes)
    if rank > MAX_AXES:
        raise UnsupportedError(f"it makes {rank} axes")
    new = {call.axis(a, rank) for a in axes}
    rest = iter(view.axes)
    return replace(view, axes=tuple(() if i in new else next(rest) for i in range(rank)))


def _transpose(call: OnnxCall) -> View:
    view = call.view()
    perm = call.integers("perm") or tuple(range(view.rank))[::-1]
    if sorted(perm) != list(range(view.rank)):
        raise UnsupportedError("its `perm` is not a permutation of its axes")
    return view.transpose(perm)


def _shape(call: OnnxCall) -> Array:
    shape = call.view().shape
    stop = call.integer("end", len(shape))
    return np.array(shape[call.integer("start", 0) : stop], np.int64)


def _size(call: OnnxCall) -> Array:
    return np.array(math.prod(call.view().shape), np.int64)


def _expand(call: OnnxCall) -> View:
    view, shape = call.view(), call.integers("shape", 1) or ()
    if np.broadcast_shapes(view.shape, shape) != view.shape:
        raise UnsupportedError("it repeats values")
    return view


def _concat(call: OnnxCall) -> View:
    """Along channels, which must be the last axis here."""
    views = [call.view(i) for i in range(len(call.operands))]
    rank = views[0].rank
    axis = call.axis(call.integer("axis", 1), rank)
    if any(v.rank != rank for v in views):
        raise UnsupportedError("its operands have different numbers of axes")
    if len(views) == 1:
        return views[0]
    rest = tuple(i for i in range(rank) if i != axis)
    orders = [v.order() for v in views]
    usual = IMAGE_ORDER if rank == 4 else (*rest, axis)
    for order in dict.fromkeys((*filter(None, orders), usual)):
        if order[-1] != axis or order[0] == axis:
            continue
        try:
            nodes = [call.arrange(v, [v.axes[i] for i in order]) for v in views]
        except ViewError:
            continue
        node = call.emit("concat", nodes)
        return ordered_view(call, node, order)
    raise UnsupportedError(f"it is along axis {axis}, but `concat` joins channels")


def _plain(call: OnnxCall, view: View) -> View:
    """The values as an image each of whose axes is one of ONNX."""
    order = view.order()
    if order is not None and len(view.base) == 4 and order[0] == 0:
        return view
    if view.rank == 4:
        return call.image_sized(view)
    if view.rank == 3:
        wanted = (view.axes[0], view.axes[2], (), view.axes[1])
    elif view.rank == 2:
        wanted = (view.axes[0], (), (), view.axes[1])
    else:
        raise UnsupportedError(f"its input has {view.rank} axes")
    return replace(view, node=call.arrange(view, wanted), base=wanted, pixels=None)


def _place(view: View, axis: int) -> int:
    """Which axis of the base, after the batch, an axis of ONNX is."""
    wanted = view.axes[axis]
    order = view.order()
    if order is not None:
        found = order.index(axis)
    else:
        found = max(i for i, other in enumerate(view.base) if other == wanted)
    if found == 0:
        raise UnsupportedError("it is along the batch")
    return found - 1


def cut(call: OnnxCall, view: View, axis: int, start: int, stop: int, step: int = 1) -> View:
    """Part of an axis: a `slice`."""
    size = view.shape[axis]
    if (start, stop, step) == (0, size, 1):
        return view
    if not 0 <= start < stop <= size or step < 1:
        raise UnsupportedError(f"it takes {start}:{stop}:{step} of an axis of {size}")
    view = _plain(call, view)
    place = _place(view, axis)
    arguments: dict[str, Value] = {}
    if (start, stop) != (0, size):
        arguments[_AXIS_NAMES[place]] = (start, stop)
    if step > 1:
        if place == 2:
            raise UnsupportedError("it takes every n-th channel")
        arguments["step"] = Size((step, 1) if place == 0 else (1, step))
    node = call.emit("slice", [call.records.use(view)], arguments)
    return _resized(call, view, node, axis)


def _resized(call: OnnxCall, view: View, node: str, *axes: int) -> View:
    """The view of a node like that of `view`, except for the sizes of some axes."""
    base, names = list(view.base), list(view.axes)
    shape = call.records.shape(node)
    for axis in axes:
        place = _place(view, axis) + 1
        base[place] = names[axis] = atoms_of(shape[place])
    return View(node, tuple(base), tuple(names))


def _slice(call: OnnxCall) -> View:
    view = call.view()
    starts, ends = call.integers("starts", 1) or (), call.integers("ends", 2) or ()
    axes = call.integers("axes", 3) or tuple(range(len(starts)))
    steps = call.integers("steps", 4) or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise UnsupportedError("its bounds do not fit each other")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = call.axis(axis, view.rank)
        first, last, _ = slice(start, end, step or 1).indices(view.shape[axis])
        view = cut(call, view, axis, first, last, step)
    return view


def _split(call: OnnxCall) -> tuple[View, ...]:
    view = call.view()
    axis = call.axis(call.integer("axis", 0), view.rank)
    size, count = view.shape[axis], len(call.node.outputs)
    given = call.integers("split", 1)
    part = -(-size // max(1, call.integer("num_outputs", count)))
    sizes = given or tuple(min(part, size - i * part) for i in range(count))
    if sum(sizes) != size or len(sizes) != count:
        raise UnsupportedError("its parts do not fit the axis")
    edges = np.cumsum((0, *sizes)).tolist()
    return tuple(cut(call, view, axis, a, b) for a, b in pairwise(edges))


def _gather(call: OnnxCall) -> View:
    """Neighbouring entries of an axis."""
    view, index = call.view(), call.required(1)
    axis = call.axis(call.integer("axis", 0), view.rank)
    places = [int(i) % view.shape[axis] for i in index.reshape(-1)]
    if not places or any(b - a != 1 for a, b in pairwise(places)):
        raise UnsupportedError("it takes entries that are not neighbours")
    found = cut(call, view, axis, places[0], places[-1] + 1)
    shape = found.shape
    return reshape(call, found, (*shape[:axis], *index.shape, *shape[axis + 1 :]))


def _pad(call: OnnxCall) -> View:
    view, mode = call.view(), call.text("mode", "constant")
    pads = call.integers("pads", 1) or call.integers("paddings") or ()
    axes = call.integers("axes", 3) or tuple(range(view.rank))
    value = call.scalar("value", 2) or 0.0
    if len(pads) != 2 * len(axes) or min(pads, default=0) < 0:
        raise UnsupportedError("its border is negative, or does not fit its axes")
    if not any(pads):
        return view
    if mode not in ("constant", "reflect", "edge"):
        raise UnsupportedError(f"the mode `{mode}`")
    view = _plain(call, view)
    arguments: dict[str, Value] = {"mode": Symbol(mode)}
    if mode == "constant":
        arguments["value"] = value
    changed = []
    for i, axis in enumerate(call.axis(a, view.rank) for a in axes):
        low, high = pads[i], pads[i + len(axes)]
        if low or high:
            arguments[_AXIS_NAMES[_place(view, axis)]] = low if low == high else (low, high)
            changed.append(axis)
    node = call.emit("pad", [call.records.use(view)], arguments)
    return _resized(call, view, node, *changed)


def _depth_to_space(call: OnnxCall) -> View:
    view, block = call.view(), call.integer("blocksize", 1)
    if view.rank != 4 or block < 1 or view.shape[1] % block**2:
        raise UnsupportedError("its blocks do not fit")
    n, c, h, w = view.shape
    if call.text("mode", "DCR") == "DCR":
        split, perm = (n, block, block, c // block**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, perm = (n, c // block**2, block, block, h, w), (0, 1, 4, 2, 5, 3)
    moved = view.reshape(split).transpose(perm)
    return call.image_sized(moved.reshape((n, c // block**2, h * block, w * block)))


def _space_to_depth(call: OnnxCall) -> View:
    view, block = call.view(), call.integer("blocksize", 1)
    if view.rank != 4 or block < 1 or view.shape[2] % block or view.shape[3] % block:
        raise UnsupportedError("its blocks do not fit")
    n, c, h, w = view.shape
    perm = (0, 3, 5, 1, 2, 4) if call.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    moved = view.reshape((n, c, h // block, block, w // block, block)).transpose(perm)
    return call.image_sized(moved.reshape((n, c * block**2, h // block, w // block)))


_COORDINATES: dict[str, Callable[[Array, float, int, int], Array]] = {
    "half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, size, out: (i + 0.5) / scale - 0.5 if out > 1 else 0 * i,
    "asymmetric": lambda i, scale, size, out: i / scale,
    "align_corners": lambda i, scale, size, out: i * (size - 1) / max(1, out - 1),
}
"""Where in the image a pixel of the result lies: https://onnx.ai/onnx/operators/onnx__Resize.html"""
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _resize(call: OnnxCall) -> View:
    """Enlarged by whole factors; `nearest` also made smaller by every n-th pixel."""
    view, mode = call.view(), call.text("mode", "nearest")
    if (
        call.integer("antialias", 0)
        or call.text("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        raise UnsupportedError("it smooths, or keeps the ratio of the sides")
    if mode not in ("nearest", "linear", "bilinear"):
        raise UnsupportedError(f"the mode `{mode}`")
    scales, sizes = _resize_sizes(call, view)
    changed = [i for i, (a, b) in enumerate(zip(view.shape, sizes, strict=True)) if a != b]
    if not changed:
        return view
    view = _plain(call, view)
    factors: dict[int, int] = {}
    steps: dict[int, int] = {}
    for axis in changed:
        factor, step = _resize_axis(call, mode, view.shape[axis], sizes[axis], scales[axis])
        place = _place(view, axis)
        if place == 2:
            raise UnsupportedError("it resizes the channels")
        (factors if step == 1 else steps)[place] = factor if step == 1 else step
    if factors and steps:
        raise UnsupportedError("it makes one side larger and one smaller")
    found = (factors or steps).get
    both = pair((found(0, 1), found(1, 1)))
    if steps:
        node = call.emit("slice", [call.records.use(view)], {"step": both})
    else:
        smooth: dict[str, Value] = {} if mode == "nearest" else {"mode": Symbol("bilinear")}
        node = call.emit("upsample", [call.records.use(view)], {"factor": both, **smooth})
    return _resized(call, view, node, *changed)


def _resize_sizes(call: OnnxCall, view: View) -> tuple[list[float], list[int]]:
    """Factors and sizes of all axes."""
    is_old = call.node.operator == "Upsample" or call.opset < 11
    axes = call.integers("axes") or tuple(range(view.rank))
    scales: list[float] = [1.0] * view.rank
    sizes = list(view.shape)
    given = call.node.attributes.get("scales")
    factors = np.asarray(given) if given is not None else call.constant(1 if is_old else 2)
    wanted = None if is_old else call.constant(3)
    chosen = wanted if wanted is not None and wanted.size else factors
    if chosen is None or chosen.size != len(axes):
        raise UnsupportedError("its sizes do not fit its axes")
    for axis, value in zip(axes, chosen.reshape(-1), strict=True):
        axis = call.axis(axis, view.rank)
        if chosen is wanted:
            sizes[axis], scales[axis] = int(value), int(value) / view.shape[axis]
        else:
            sizes[axis], scales[axis] = int(np.floor(view.shape[axis] * value)), float(value)
    if min(sizes) < 1 or max(sizes) > 65536:
        raise UnsupportedError("its result has no pixels, or too many")
    return scales, sizes


def _resize_axis(call: OnnxCall, mode: str, size: int, out: int, scale: float) -> tuple[int, int]:
    """The factor of an axis, or 1 and the step of what is taken of it."""
    is_old = call.node.operator == "Upsample" or call.opset < 11
    how = "asymmetric" if is_old else call.text("coordinate_transformation_mode", "half_pixel")
    if how not in _COORDINATES:
        raise UnsupportedError(f"the mode of coordinates `{how}`")
    index = np.arange(out)
    at = _COORDINATES[how](index.astype(np.float64), scale, size, out)
    if mode != "nearest":
        usual = np.clip((index + 0.5) * size / out - 0.5, 0, size - 1)
        if out % size or not np.allclose(np.clip(at, 0, size - 1), usual, atol=1e-4):
            raise UnsupportedError(f"`{how}` from {size} to {out} pixels")
        return out // size, 1
    rounding = "floor" if is_old else call.text("nearest_mode", "round_prefer_floor")
    if rounding not in _ROUNDINGS:
        raise UnsupportedError(f"the mode `{rounding}`")
    source = np.clip(_ROUNDINGS[rounding](at), 0, size - 1).astype(int)
    if out % size == 0 and (source == index // (out // size)).all():
        return out // size, 1
    step = -(-size // out)
    if step > 1 and -(-size // step) == out and (source == index * step).all():
        return 1, step
    raise UnsupportedError(f"`{how}` from {size} to {out} pixels")


SHAPE_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda call: call.view(),
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
