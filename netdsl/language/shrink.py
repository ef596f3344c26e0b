"""A net made small: the same calls in their places, with fewer channels and smaller images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from netdsl.errors import NetError
from netdsl.language.budget import TooMuch
from netdsl.language.draft import Draft, InputCall, LayerCall
from netdsl.language.flow import Flow
from netdsl.language.network import Network
from netdsl.layers.layer import Widths, channel_count
from netdsl.types import TensorType
from netdsl.values import Argument

LEAST_SIDE = 2
"""Pixels that an image of several keeps each way: over one alone nothing is seen of a window, and
batch normalisation has too few values."""


def shrunk(draft: Draft, name: str, main: Flow) -> Network:
    """The small version of a net that a draft holds, as its settings ask for it.

    Every count c of channels becomes ceil(c / by), but those that an input or an output has. The
    text is not read again: what it asked with `in` and chose with `if` was settled in the net as
    it stands. Images become the smallest that leave `LEAST_SIDE` pixels of every image of several.
    Raises NetError where the fewer channels do not fit together.
    """
    shrink = draft.settings.shrink
    assert shrink is not None
    ends = [f for call, f in draft.made if isinstance(call, InputCall)]
    kept = {channel_count(f.node) for f in (*ends, main, *draft.outputs.values())}

    def fewer(count: int) -> int:
        return count if count in kept else -(-count // shrink.by)

    try:
        played = _played(draft, fewer, Fraction(1))
    except TooMuch:
        raise
    except NetError as e:
        note = f"in `{name}` with its channels divided by {shrink.by}"
        help = "a smaller number, or one that divides its channels evenly, may do"
        told = (replace(d, notes=(*d.notes, note), help=help) for d in e.diagnostics)
        raise NetError(*told) from None
    if shrink.images:
        played = _smallest(draft, fewer, ends) or played
    return played.network(name, played.made[main.index][1])


def _smallest(draft: Draft, fewer: Callable[[int], int], ends: Sequence[Flow]) -> Draft | None:
    """The draft with the smallest images that all its layers take; None where it needs its own.

    Sides are halved as long as that works, then tried one by one: not every size above one that
    works does so too (the skips of a U-Net want multiples).
    """
    sides = (s for f in ends if _is_image(f.node.type) for s in f.node.type.shape[1:3])
    longest = max(sides, default=1)

    def tried(side: int) -> Draft | None:
        try:
            return _played(draft, fewer, Fraction(side, longest))
        except TooMuch:
            raise
        except (NetError, _TooSmall):
            return None

    found, side = None, longest
    while side > 1 and (half := tried(side // 2)) is not None:
        found, side = half, side // 2
    between = (tried(s) for s in range(side // 2 + 1, side))
    return next((x for x in between if x is not None), found)


class _TooSmall(Exception):
    """An image has fewer pixels than it must keep."""


def _played(draft: Draft, fewer: Callable[[int], int], scale: Fraction) -> Draft:
    """The calls of a draft again, its images scaled. Raises NetError where a layer refuses."""
    small = Draft(draft.settings, draft.budget)
    for call, whole in draft.made:
        draft.budget.spend_steps(1, call.span)
        if isinstance(call, InputCall):
            flow = small.make(replace(call, shape=_scaled(call.shape, scale)))
        else:
            flow = small.make(_narrowed(call, small, fewer))
        if not _enough(flow.node.type, whole.node.type):
            raise _TooSmall
    small.places = {path: small.made[f.index][1] for path, f in draft.places.items()}
    small.outputs = {path: small.made[f.index][1] for path, f in draft.outputs.items()}
    small.weights = draft.weights
    return small


def _scaled(shape: tuple[int, ...], scale: Fraction) -> tuple[int, ...]:
    if len(shape) != 3:
        return shape
    return (*(ceil(side * scale) for side in shape[:2]), shape[2])


def _narrowed(call: LayerCall, small: Draft, fewer: Callable[[int], int]) -> LayerCall:
    """A call on what flows in the small net, with fewer channels where its arguments count them."""
    flows = tuple(small.made[f.index][1] for f in call.flows)
    widths = Widths(channel_count(call.flows[0].node), channel_count(flows[0].node), fewer)
    changed = call.layer.narrow(call.bound, widths)
    names = [p.name for p in call.layer.signature.params]
    given = {a.name or names[i]: a for i, a in enumerate(call.given)}
    for name, value in changed.items():
        if value != call.bound[name]:
            given[name] = replace(given.get(name) or Argument(name, value), value=value)
    return replace(call, given=tuple(given.values()), bound={**call.bound, **changed}, flows=flows)


def _is_image(kind: TensorType) -> bool:
    return kind.rank == 4


def _enough(small: TensorType, whole: TensorType) -> bool:
    if not _is_image(whole):
        return True
    pairs = zip(small.shape[1:3], whole.shape[1:3], strict=True)
    return all(now >= min(was, LEAST_SIDE) for now, was in pairs)
