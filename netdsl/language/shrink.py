"""Shrinks a network: the same calls at the same paths, with fewer channels and smaller images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, lcm

from netdsl.errors import NetError
from netdsl.language.budget import LimitError
from netdsl.language.frame import ChainValue
from netdsl.language.network import Network
from netdsl.language.network_builder import InputCall, LayerCall, NetworkBuilder
from netdsl.layers.layer import Widths, channel_count
from netdsl.types import TensorType
from netdsl.values import Argument

MIN_SIDE = 2
"""Minimum height and width of an image with more than one pixel: a single pixel does not exercise
windows, and leaves batch normalisation too few values."""


class ShrinkError(NetError):
    """The channels of a net do not fit together when they are reduced."""


def shrink_network(builder: NetworkBuilder, name: str, main: ChainValue) -> Network:
    """Returns the small version of the network in `builder`, as its settings request.

    Every channel count c becomes ceil(c / divisor), rounded up to a multiple that layers need
    (`Layer.channel_multiple`), except the counts of inputs and outputs. If that does not fit, a
    count that a concatenation gives becomes the sum of its parts. The text is not elaborated again:
    `in` and `if` keep the values of the full-size network. Images shrink to the smallest size that
    leaves every image of several pixels at least `MIN_SIDE` in each direction. Raises ShrinkError
    if the reduced channel counts do not fit together.
    """
    shrink_settings = builder.settings.shrink
    assert shrink_settings is not None
    inputs = [f for call, f in builder.call_results if isinstance(call, InputCall)]
    outputs = {channel_count(f.node) for f in (*inputs, main, *builder.outputs.values())}
    errors = []
    for reduce_channels in _find_reductions(builder, outputs, shrink_settings.divisor):
        try:
            small_builder = _replay(builder, reduce_channels, Fraction(1))
            break
        except LimitError:
            raise
        except NetError as e:
            errors.append(e)
    else:
        note = f"in `{name}` with its channels divided by {shrink_settings.divisor}"
        help = "a smaller number, or one that divides its channels evenly, may work"
        diagnostics = errors[0].diagnostics
        raise ShrinkError(*(replace(d, notes=(*d.notes, note), help=help) for d in diagnostics))
    if shrink_settings.shrink_images:
        small_builder = _minimize_images(builder, reduce_channels, inputs) or small_builder
    return small_builder.build_network(name, small_builder.call_results[main.call_index][1])


Reduction = Callable[[int], int]
"""Maps a channel count of a network to that of the small one."""


def _find_reductions(
    builder: NetworkBuilder, outputs: set[int], divisor: int
) -> tuple[Reduction, Reduction]:
    """The ways to reduce channel counts, the preferred one first. `outputs` are the counts of
    inputs and outputs, which stay."""
    multiples, fixed = _find_multiples(builder, outputs)
    sums: dict[int, int] = {}

    def divide(count: int) -> int:
        multiple = multiples.get(count, 1)
        return count if count in fixed else -(-count // (divisor * multiple)) * multiple

    def add_parts(count: int) -> int:
        return sums.get(count) or divide(count)

    for count, parts in sorted(_find_concatenations(builder).items()):
        if count not in fixed:
            sums[count] = sum(map(add_parts, parts))
    return divide, add_parts


def _find_multiples(builder: NetworkBuilder, outputs: set[int]) -> tuple[dict[int, int], set[int]]:
    """Of which of its divisors each channel count must stay a multiple, if of any, and the counts
    that stay as they are: those of inputs and outputs, and what such layers make them from."""
    multiples: dict[int, int] = {}
    fixed = set(outputs)
    for call, value in reversed(builder.call_results):
        if isinstance(call, InputCall):
            continue
        before, after = channel_count(call.inputs[0].node), channel_count(value.node)
        multiple = call.layer.channel_multiple(call.bound_arguments, before)
        if multiple > 1:
            needed = lcm(multiples.get(before, 1), multiple * multiples.get(after, 1))
            multiples[before] = needed if before % needed == 0 else before
            fixed |= {before} if after in fixed else set()
    return multiples, fixed


def _find_concatenations(builder: NetworkBuilder) -> dict[int, tuple[int, ...]]:
    """The channel counts that are sums of those of branches, each with the first such branches."""
    found: dict[int, tuple[int, ...]] = {}
    for call, value in builder.call_results:
        if isinstance(call, LayerCall) and len(call.inputs) > 1:
            parts = tuple(channel_count(f.node) for f in call.inputs)
            if channel_count(value.node) == sum(parts):
                found.setdefault(sum(parts), parts)
    return found


def _minimize_images(
    builder: NetworkBuilder, reduce_channels: Reduction, inputs: Sequence[ChainValue]
) -> NetworkBuilder | None:
    """Returns the network with the smallest images that all layers accept; None if only the
    original size works.

    Halves the sides as long as that works. Between the last size that works and its half it tries
    multiples of a power of two, about 16 of them, then the sizes below the smallest that works one
    by one: not every size above a working one works too (the skip connections of a U-Net need
    multiples of such a power).
    """
    sides = (s for f in inputs if _is_image(f.node.type) for s in f.node.type.shape[1:3])
    longest = max(sides, default=1)

    def try_side(side: int) -> NetworkBuilder | None:
        try:
            return _replay(builder, reduce_channels, Fraction(side, longest))
        except LimitError:
            raise
        except (NetError, _ImageTooSmallError):
            return None

    found, side = None, longest
    while side > 1 and (half := try_side(side // 2)) is not None:
        found, side = half, side // 2
    low = side // 2
    for step in (2 ** max(0, (side - low).bit_length() - 4), 1):
        for candidate in range(low - low % step + step, side, step):
            if (smaller := try_side(candidate)) is not None:
                found, side = smaller, candidate
                break
            low = candidate
    return found


class _ImageTooSmallError(Exception):
    """An image is smaller than `MIN_SIDE` permits."""


def _replay(builder: NetworkBuilder, reduce_channels: Reduction, scale: Fraction) -> NetworkBuilder:
    """Replays the calls of `builder` on scaled images. Raises NetError if a layer rejects them."""
    small = NetworkBuilder(builder.settings, builder.budget)
    for call, original in builder.call_results:
        builder.budget.spend_steps(1, call.span)
        if isinstance(call, InputCall):
            value = small.add_call(replace(call, shape=_scale_shape(call.shape, scale)))
        else:
            value = small.add_call(_narrow_call(call, small, reduce_channels))
        if not _has_min_side(value.node.type, original.node.type):
            raise _ImageTooSmallError
    small.values_by_path = {
        path: small.call_results[f.call_index][1] for path, f in builder.values_by_path.items()
    }
    small.outputs = {
        path: small.call_results[f.call_index][1] for path, f in builder.outputs.items()
    }
    small.loss_weights = builder.loss_weights
    return small


def _scale_shape(shape: tuple[int, ...], scale: Fraction) -> tuple[int, ...]:
    if len(shape) != 3:
        return shape
    return (*(ceil(side * scale) for side in shape[:2]), shape[2])


def _narrow_call(call: LayerCall, small: NetworkBuilder, reduce_channels: Reduction) -> LayerCall:
    """The same call on values of the small network, with its channel arguments reduced."""
    inputs = tuple(small.call_results[f.call_index][1] for f in call.inputs)
    widths = Widths(
        channel_count(call.inputs[0].node), channel_count(inputs[0].node), reduce_channels
    )
    narrowed_arguments = call.layer.narrow(call.bound_arguments, widths)
    names = [p.name for p in call.layer.signature.params]
    arguments = {a.name or names[i]: a for i, a in enumerate(call.arguments)}
    for name, value in narrowed_arguments.items():
        if value != call.bound_arguments[name]:
            arguments[name] = replace(arguments.get(name) or Argument(name, value), value=value)
    return replace(
        call,
        arguments=tuple(arguments.values()),
        bound_arguments={**call.bound_arguments, **narrowed_arguments},
        inputs=inputs,
    )


def _is_image(kind: TensorType) -> bool:
    return kind.rank == 4


def _has_min_side(small: TensorType, original: TensorType) -> bool:
    if not _is_image(original):
        return True
    pairs = zip(small.shape[1:3], original.shape[1:3], strict=True)
    return all(side >= min(original_side, MIN_SIDE) for side, original_side in pairs)
