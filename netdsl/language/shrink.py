"""Shrinks a network: the same calls at the same paths, with fewer channels and smaller images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, gcd, lcm

import networkx as nx

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


Reduction = Callable[[int], int]
"""Maps a channel count of a network to that of the small one."""


class ShrinkError(NetError):
    """The channels of a net do not fit together when they are reduced."""


def shrink_network(builder: NetworkBuilder, name: str, main: ChainValue) -> Network:
    """Returns the small version of the network in `builder`, as its settings request.

    Every channel count c becomes ceil(c / divisor), rounded up to a multiple that layers need
    (`Layer.channel_multiple`), except the counts of inputs and outputs. If that does not fit, a
    count that a concatenation gives becomes the sum of its parts; if that does not fit either,
    counts of which one is made from another shrink in proportion. The text is not elaborated again:
    `in` and `if` keep the values of the full-size network. Images shrink to the smallest size that
    leaves every image of several pixels at least `MIN_SIDE` in each direction. Raises ShrinkError
    if the reduced channel counts do not fit together.
    """
    shrink_settings = builder.settings.shrink
    assert shrink_settings is not None
    inputs = [f for call, f in builder.call_results if isinstance(call, InputCall)]
    outputs = {channel_count(f.node) for f in (*inputs, main, *builder.outputs.values())}
    found = _narrow_network(builder, outputs, shrink_settings.divisor)
    if isinstance(found, NetError):
        raise _explain_misfit(builder, outputs, name, found)
    small_builder, reduce_channels = found
    if shrink_settings.shrink_images:
        small_builder = _minimize_images(builder, reduce_channels, inputs) or small_builder
    return small_builder.build_network(name, small_builder.call_results[main.call_index][1])


def _narrow_network(
    builder: NetworkBuilder, outputs: set[int], divisor: int
) -> tuple[NetworkBuilder, Reduction] | NetError:
    """The network with fewer channels, and how their counts were reduced; if they do not fit
    together, the error of the preferred way."""
    errors = []
    for reduce_channels in _find_reductions(builder, outputs, divisor):
        try:
            return _replay(builder, reduce_channels, Fraction(1)), reduce_channels
        except LimitError:
            raise
        except NetError as e:
            errors.append(e)
    return errors[0]


def _explain_misfit(
    builder: NetworkBuilder, outputs: set[int], name: str, error: NetError
) -> ShrinkError:
    """The error of a network that cannot be shrunk, with a smaller divisor that works, if any."""
    shrink_settings = builder.settings.shrink
    assert shrink_settings is not None
    divisor = shrink_settings.divisor
    powers = [2**k for k in range(1, (divisor - 1).bit_length())]
    works = (
        d
        for d in reversed(powers)
        if not isinstance(_narrow_network(builder, outputs, d), NetError)
    )
    smaller = next(works, None)
    help = (
        f"dividing them by {smaller} works"
        if smaller
        else "change the channel counts, or check the net at its full size"
    )
    note = f"in `{name}` with its channels divided by {divisor}"
    return ShrinkError(*(replace(d, notes=(*d.notes, note), help=help) for d in error.diagnostics))


def _find_reductions(
    builder: NetworkBuilder, outputs: set[int], divisor: int
) -> Iterator[Reduction]:
    """The ways to reduce channel counts, the preferred one first. `outputs` are the counts of
    inputs and outputs, which stay."""
    multiples, fixed = _find_multiples(builder, outputs)
    sums: dict[int, int] = {}

    def divide(count: int) -> int:
        multiple = multiples.get(count, 1)
        return count if count in fixed else -(-count // (divisor * multiple)) * multiple

    yield divide

    def add_parts(count: int) -> int:
        return sums.get(count) or divide(count)

    for count, parts in sorted(_find_concatenations(builder).items()):
        if count not in fixed:
            sums[count] = sum(map(add_parts, parts))
    yield add_parts

    proportional: dict[int, int] = {}
    for group in nx.connected_components(_tie_counts(builder)):
        unit = gcd(*group)
        small_unit = unit if group & fixed else -(-unit // divisor)
        proportional |= {count: count // unit * small_unit for count in group}
    yield lambda count: proportional.get(count) or divide(count)


def _tie_counts(builder: NetworkBuilder) -> nx.Graph[int]:
    """The channel counts, with an edge where a layer makes one from the other."""
    ties: nx.Graph[int] = nx.Graph()
    for call, value in builder.call_results:
        if isinstance(call, LayerCall):
            after = channel_count(value.node)
            before = [channel_count(f.node) for f in call.inputs]
            if not _takes_any_count(call, before[0], after):
                ties.add_edges_from((count, after) for count in before if count != after)
    return ties


def _takes_any_count(call: LayerCall, before: int, after: int) -> bool:
    """Whether an argument of a layer sets the channel count of its output."""
    requests: list[int] = []

    def record(count: int) -> int:
        requests.append(count)
        return count

    call.layer.narrow(call.bound_arguments, Widths(before, before, record))
    return after in requests


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
