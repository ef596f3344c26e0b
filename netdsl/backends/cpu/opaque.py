"""Opaque operators and copies as tasks: pooling, LRN, scores, concatenation."""

from __future__ import annotations

import math
from typing import Any

from netdsl.backends.cpu import scores as rows_of_scores
from netdsl.backends.cpu.domain import walk
from netdsl.backends.cpu.expression import Expr, Operand, Place, Unsupported
from netdsl.backends.cpu.launch import Task, shared, threads
from netdsl.backends.cpu.maps import Launch, Memory, border_task, border_tasks
from netdsl.backends.cpu.record import Table
from netdsl.backends.cpu.room import floats
from netdsl.backends.cpu.rows import build
from netdsl.backends.cpu.scores import ScoresArgs, scores
from netdsl.backends.cpu.windows import LrnArgs, PoolArgs, lrn, pool, pool_grad
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout, compute_view_layout
from netdsl.plan.placement import Placement
from netdsl.types import Attrs, Node, TensorType

_SCORES = {
    "softmax": rows_of_scores.SOFTMAX,
    "log_softmax": rows_of_scores.LOG_SOFTMAX,
    "cross_entropy": rows_of_scores.CROSS_ENTROPY,
    "one_hot": rows_of_scores.ONE_HOT,
    "top_hit": rows_of_scores.TOP_HIT,
}
_POOLS = ("max_pool", "avg_pool", "max_pool_grad", "avg_pool_grad")


def opaque_launch(memory: Memory, kernel: Kernel) -> Launch:
    """The tasks of a kernel of one node. Raises Unsupported where there is no code for it."""
    if not kernel.nodes:
        (source,), (target,) = kernel.inputs, kernel.outputs
        return _copy(memory, source, memory.plan.placements[target])
    node = memory.plan.graph[kernel.nodes[-1]]
    if node.op == "concat":
        whole = Launch()
        for piece in memory.plan.find_concat_copies(kernel.name):
            whole.beside(_copy(memory, piece.source, piece.target))
        return whole
    if node.op == "reshape":
        return _reshaped(memory, node)
    if len(kernel.nodes) != 1 or node.type.dtype != "float32":
        raise Unsupported(node.op)
    launch = Launch()
    if node.op in _POOLS:
        stage = _pool(memory, node, launch)
    elif node.op in ("lrn", "lrn_grad"):
        stage = _lrn(memory, node, launch)
    elif node.op in _SCORES:
        stage = _scores(memory, node, launch)
    else:
        raise Unsupported(node.op)
    launch.stages.append(stage + border_tasks(memory, kernel.outputs, launch.kept))
    return launch


def copied(source: Operand, layout: Layout, address: int) -> Launch:
    """The tasks that copy an operand to a layout that begins at an address."""
    if source.dtype != "float32":
        raise Unsupported(f"copies of {source.dtype}")
    given = Place(source.address + 4 * source.layout.offset, source.layout.strides)
    target = Place(address, layout.strides)
    found = walk(layout.shape, [given, target])
    rows = build(found, [(Expr("load", place=given), target)], [], 1)
    if found.rows > 1:
        chunks = [(a, b, 0, found.run) for a, b in shared(found.rows, 4 * threads())]
    else:
        chunks = [(0, 1, a, b) for a, b in shared(found.run, 1 + found.run // 16384)]
    return Launch([[(rows.function, rows.args, *c, 0) for c in chunks]], [rows])


def _copy(memory: Memory, name: str, target: Placement) -> Launch:
    source = memory.operand(name)
    if math.prod(source.layout.shape) == 0 or source.layout.shape != target.layout.shape:
        raise Unsupported("copies that reshape")
    address = memory.address(target) + 4 * target.layout.offset
    launch = copied(source, target.layout, address)
    launch.stages[0] += border_task(memory.address(target), target, launch.kept)
    return launch


def _reshaped(memory: Memory, node: Node) -> Launch:
    """A view that its operand's strides do not express, as a copy."""
    source, place = memory.operand(node.args[0]), memory.plan.placements[node.name]
    shape = source.layout.shape
    back = Node("", "reshape", (), Attrs({"shape": shape}), TensorType(shape))
    layout = compute_view_layout(place.layout, back)
    if layout is None or place.padding is not None:
        raise Unsupported("copies that reshape")
    return copied(source, layout, memory.address(place) + 4 * layout.offset)


def _image(operand: Operand) -> tuple[int, int, int, int]:
    """Where an image begins, and bytes to the next image, row and pixel."""
    layout = operand.layout
    if layout.strides[3] != 1 and layout.shape[3] > 1:
        raise Unsupported("an image whose channels lie apart")
    n, h, w, _ = (4 * s for s in layout.strides)
    return operand.address + 4 * layout.offset, n, h, w


def _pool(memory: Memory, node: Node, launch: Launch) -> list[Task]:
    a = node.attrs
    gradient = node.op.endswith("_grad")
    own = memory.operand(node.name)
    if gradient:
        y, d = memory.operand(node.args[0]), own
        x = memory.operand(node.args[1]) if len(node.args) > 1 else d
    else:
        x, y = memory.operand(node.args[0]), own
        d = x
    n, height, wide, channels = x.layout.shape
    (top, _), (left, _) = a["pad"]
    counted = a.get("counted", ((0, 0), (0, 0)))
    (x_at, x_n, x_row, x_pixel), (y_at, y_n, y_row, y_pixel), (d_at, d_n, d_row, d_pixel) = (
        _image(o) for o in (x, y, d)
    )
    args = Table(launch.kept).add(
        PoolArgs(
            x=x_at,
            x_n=x_n,
            x_row=x_row,
            x_pixel=x_pixel,
            y=y_at,
            y_n=y_n,
            y_row=y_row,
            y_pixel=y_pixel,
            d=d_at,
            d_n=d_n,
            d_row=d_row,
            d_pixel=d_pixel,
            height=height,
            width=wide,
            rows=y.layout.shape[1],
            columns=y.layout.shape[2],
            kh=a["kernel"][0],
            kw=a["kernel"][1],
            sh=a["stride"][0],
            sw=a["stride"][1],
            top=top,
            left=left,
            c_top=counted[0][0],
            c_bottom=counted[0][1],
            c_left=counted[1][0],
            c_right=counted[1][1],
            channels=channels,
        )
    )
    if gradient:
        return [(pool_grad(node.op), args, *r) for r in shared(n, 8 * threads())]
    rows = n * y.layout.shape[1]
    return [(pool(node.op), args, *r) for r in shared(rows, 8 * threads())]


def _dense(operand: Operand) -> int:
    """The address of a value without gaps."""
    step = 1
    for size, stride in zip(
        reversed(operand.layout.shape), reversed(operand.layout.strides), strict=True
    ):
        if size > 1 and stride != step:
            raise Unsupported("rows with gaps")
        step *= size
    return operand.address + 4 * operand.layout.offset


def _lrn(memory: Memory, node: Node, launch: Launch) -> list[Task]:
    a = node.attrs
    gradient = node.op == "lrn_grad"
    x = _dense(memory.operand(node.args[-1]))
    g = _dense(memory.operand(node.args[0]))
    channels = node.type.shape[-1]
    ranges = shared(node.type.size // channels, 8 * threads())
    spare = floats(len(ranges) * channels)
    y = _dense(memory.operand(node.name))
    launch.kept.append(spare)
    args = Table(launch.kept).add(
        LrnArgs(x=x, y=y, g=g, spare=spare.ctypes.data, row=4 * channels, channels=channels)
    )
    function = lrn(a["size"], a["alpha"], a["beta"], a["k"], gradient)
    return [(function, args, *r, i) for i, r in enumerate(ranges)]


def _scores(memory: Memory, node: Node, launch: Launch) -> list[Task]:
    how = _SCORES[node.op]
    operands = [memory.operand(v) for v in node.args]
    labels = operands[-1] if how >= rows_of_scores.CROSS_ENTROPY else None
    if labels is not None and labels.dtype != "int32":
        raise Unsupported(f"labels of {labels.dtype}")
    given: Any = operands[0].layout.shape
    classes = node.attrs["classes"] if node.op == "one_hot" else given[-1]
    many = math.prod(given) // (1 if node.op == "one_hot" else classes)
    smoothing = node.attrs.get("smoothing", 0.0)
    wide = how in (rows_of_scores.SOFTMAX, rows_of_scores.LOG_SOFTMAX, rows_of_scores.ONE_HOT)
    args = Table(launch.kept).add(
        ScoresArgs(
            kind=how,
            scores=_dense(operands[0]),
            row=4 * classes,
            labels=_dense(labels) if labels else 0,
            result=_dense(memory.operand(node.name)),
            result_row=4 * classes if wide else 4,
            classes=classes,
            k=node.attrs.get("k", 0),
            label_share=1 - smoothing,
            class_share=smoothing / classes,
        )
    )
    most = 1 + many * classes // 4096
    return [(scores.address, args, *r) for r in shared(many, most)]
