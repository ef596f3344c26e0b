"""Layers without weights that join branches, and branches that compute nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from netdsl.errors import fail
from netdsl.layers.layer import Layer, Site, Widths, channel_count
from netdsl.parameter_types import Float, ListOf
from netdsl.signature import Param, Signature
from netdsl.types import Node, dims

_NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}


def _format_sizes(xs: Sequence[Node]) -> str:
    return " and ".join(dims(x.type.shape[1:]) for x in xs)


def _branch_mismatch_message(name: str, xs: Sequence[Node]) -> str:
    count = _NUMBER_WORDS.get(len(xs), str(len(xs)))
    return f"the {count} branches of `{name}` differ: {_format_sizes(xs)}"


def _add(site: Site, xs: Sequence[Node]) -> Node:
    if len({x.type.shape for x in xs}) > 1:
        raise fail(_branch_mismatch_message("add", xs), help=_branch_mismatch_help(xs))
    return reduce(site.b.add, xs)


def _mul(site: Site, xs: Sequence[Node]) -> Node:
    """Product; sizes of 1 are broadcast, such as those of a gate (Hu et al. 2018)."""
    _check_broadcast("mul", xs)
    return reduce(site.b.mul, xs)


def _sub(site: Site, xs: Sequence[Node]) -> Node:
    """Difference; branches are broadcast as those of `mul`."""
    if len(xs) != 2:
        count = "one" if len(xs) == 1 else _NUMBER_WORDS.get(len(xs), str(len(xs)))
        raise fail(
            f"`sub` needs two branches, not {count}",
            help="`sub { a | b }` is a - b; `sub { a | add { b | c } }` subtracts several",
        )
    _check_broadcast("sub", xs)
    return site.b.sub(*xs)


def _check_broadcast(name: str, xs: Sequence[Node]) -> None:
    if len({x.type.shape for x in xs}) > 1 and not _can_broadcast(xs):
        raise fail(_branch_mismatch_message(name, xs), help=_branch_mismatch_help(xs))


def _can_broadcast(xs: Sequence[Node]) -> bool:
    if any(x.type.rank != 4 for x in xs):
        return False
    return all(
        len({s for s in sizes if s != 1}) <= 1
        for sizes in zip(*(x.type.shape for x in xs), strict=True)
    )


def _branch_mismatch_help(xs: Sequence[Node]) -> str:
    ranks = {x.type.rank for x in xs}
    if len(ranks) > 1:
        return "`fc` flattens; `conv(channels, 1x1)` keeps an image of 1x1 pixels"
    if ranks == {2}:
        return "make their units equal, for example with `fc(units)` in one branch"
    sides = len({x.type.shape[1:-1] for x in xs}) > 1
    wide = len({x.type.shape[-1] for x in xs}) > 1
    if sides:
        return _size_mismatch_help(xs, wide)
    return "make the channels equal, for example with `conv(channels, 1x1)` in one branch"


def _size_mismatch_help(xs: Sequence[Node], has_other_channels: bool) -> str:
    """How to make heights and widths equal, and the channels if those differ too."""
    by_size = sorted((x.type.shape[1:] for x in xs), reverse=True)
    (h, w, _), (small_h, small_w, c) = by_size[0], by_size[-1]
    equal = "heights, widths and channels" if has_other_channels else "the heights and widths"
    stride = _fitting_stride((h, w), (small_h, small_w))
    if len({s[:2] for s in by_size}) == 2 and stride:
        large = dims((h, w))
        how = f"`stride={stride}`"
        if has_other_channels and len(xs) == 2:
            how = f"`conv({c}, 1x1, stride={stride})`"
        return f"make {equal} equal, for example with {how} in the branch of {large}"
    keep = "`pad=same` keeps the height and width of an image"
    if h >= 2 * small_h or w >= 2 * small_w:
        keep = "look at `stride` and `pad` of each branch"
    if has_other_channels:
        keep += f", `conv({max(x.type.shape[-1] for x in xs)}, 1x1)` changes its channels"
    return f"make {equal} equal: {keep}"


def _fitting_stride(large: tuple[int, int], small: tuple[int, int]) -> int | None:
    """The stride with which a padded window makes one size of the other; None if there is none."""
    stride = math.ceil(large[0] / small[0])
    fits = all(math.ceil(a / stride) == b for a, b in zip(large, small, strict=True))
    is_reduced = min(large[0] / small[0], large[1] / small[1]) > 1.6
    return stride if fits and is_reduced else None


def _concat(site: Site, xs: Sequence[Node]) -> Node:
    if len({x.type.shape[:-1] for x in xs}) > 1:
        mixed = len({x.type.rank for x in xs}) > 1
        help = (
            _branch_mismatch_help(xs)
            if mixed
            else f"channels may differ; {_size_mismatch_help(xs, has_other_channels=False)}"
        )
        raise fail(_branch_mismatch_message("concat", xs), help=help)
    return site.b.concat(*xs, axis=xs[0].type.rank - 1)


def _constant(site: Site, x: Node, value: tuple[float, ...]) -> Node:
    """A constant in the shape of `x`: a view that no memory holds."""
    c = channel_count(x)
    if len(value) not in (1, c):
        raise fail(
            f"`constant` has {len(value)} values, but the input has {c} channels",
            help="give one number, or a list with one for each channel",
        )
    constant = site.b.const(value if len(value) > 1 else value[0])
    return site.b.broadcast(constant, shape=x.type.shape)


def _narrow_constant(arguments: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """Keeps the values of the first channels."""
    value = arguments["value"]
    return {"value": value[: widths.narrowed]} if len(value) > 1 else {}


LAYERS = (
    Layer("add", Signature("add"), _add, "many", "sum of branches of the same shape"),
    Layer(
        "mul",
        Signature("mul"),
        _mul,
        "many",
        "product of branches; along each axis, sizes of 1 are stretched to those of the others: a "
        "gate of 1 x 1 x channels to the whole image, one of height x width x 1 to all channels",
    ),
    Layer(
        "sub",
        Signature("sub"),
        _sub,
        "many",
        "difference of two branches, the first minus the second; sizes of 1 stretch as in `mul`",
        can_join_one=False,
    ),
    Layer(
        "concat", Signature("concat"), _concat, "many", "concatenates branches along the channels"
    ),
    Layer("identity", Signature("identity"), lambda site, x: x, doc="the input, unchanged"),
    Layer(
        "constant",
        Signature(
            "constant",
            (
                Param(
                    "value",
                    ListOf(Float()),
                    doc="a number, or a list with one number per channel",
                ),
            ),
        ),
        _constant,
        doc="a constant with the shape of the input, for use as a branch: mul "
        "{ identity | constant(2) }",
        narrow=_narrow_constant,
    ),
)
