"""Groups: what belongs together in a chain, and how long and how nested chains are."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

from netdsl.interchange.structure.tree import CallItem, IfItem, Item, LoopItem, RepeatItem, Sequence
from netdsl.layers import LAYERS, activation, convolution, normalization
from netdsl.layers.layer import Layer
from netdsl.ops import OPS


def _names(*families: SequenceOf[Layer]) -> frozenset[str]:
    return frozenset(layer.name for family in families for layer in family)


PRODUCTS = _names(convolution.LAYERS) | {"fc"}
_NORMS = _names(normalization.LAYERS) - {"scale"}
_OPERATORS = frozenset(op.name for op in OPS.values() if op.is_layer)
_TRAILERS = _names(activation.LAYERS) | _OPERATORS | {"shuffle", "pixel_shuffle"}
"""Layers that belong to what stands before them."""
_LATE = frozenset(("dropout", "drop_path", "scale"))
"""Layers that belong to a layer before them."""
_POSITIONAL = ("channels", "units", "kernel")


def is_unit_layer(name: object) -> bool:
    """Whether a layer computes, as opposed to pooling and moving values."""
    return any(name in names for names in (PRODUCTS, _NORMS, _TRAILERS, _LATE))


def layer_name(item: Item) -> str | None:
    """The name of a layer without branches; None for any other item."""
    if isinstance(item, CallItem) and item.branches is None and item.name in LAYERS:
        return item.name
    return None


def group_starts(sequence: Sequence) -> list[int]:
    """Where the groups of a sequence begin, and its end. An activation belongs to what stands
    before it, a normalisation to a product before it."""
    starts = []
    for i, item in enumerate(sequence):
        name = layer_name(item)
        before = layer_name(sequence[i - 1]) if i else None
        is_trailer = (
            (name in _TRAILERS and name != before)
            or (name in _NORMS and before in PRODUCTS)
            or (name in _LATE and is_unit_layer(before))
        )
        if i == 0 or not is_trailer:
            starts.append(i)
    return [*starts, len(sequence)]


def is_pool(item: Item) -> bool:
    """Whether an item ends a part rather than begins one."""
    return isinstance(item, CallItem) and item.name in ("maxpool", "avgpool")


def spans_of(sequence: Sequence, lengths: SequenceOf[int]) -> Iterator[tuple[int, int]]:
    """The places in a sequence of parts that have one of some lengths and consist of groups."""
    starts = group_starts(sequence)
    ends = frozenset(starts)
    for start in starts[:-1]:
        yield from ((start, start + n) for n in lengths if start + n in ends)


def height(items: Sequence) -> int:
    """How deeply joins are nested."""
    inner = [height(b) for i in items if isinstance(i, CallItem) for b in i.branches or ()]
    repeated = [height(i.body) for i in items if isinstance(i, RepeatItem)]
    return max((*(1 + h for h in inner), *repeated), default=0)


def size(items: Sequence) -> int:
    """The words of a chain."""
    return sum(map(_item_size, items))


def _item_size(item: Item) -> int:
    match item:
        case CallItem(args=args, branches=branches):
            words = sum(1 if name in _POSITIONAL else 2 for name, _ in args)
            return 2 + words + sum(size(b) + 1 for b in branches or ())
        case RepeatItem(body=body):
            return size(body) + 2
        case IfItem(body=body):
            return size(body) + 6
        case LoopItem(body=body, rows=rows):
            return size(body) + 3 + sum(len(r) + 1 for r in rows)
    return 2
