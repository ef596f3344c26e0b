"""Changes of images, on bytes, each determined by seed, epoch and image: the table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from netdsl.backends.picked import Moves, Size
from netdsl.data import colour, geometry
from netdsl.data.changes import LONG_SIDE, Change, Changes
from netdsl.parameter_types import (
    Extent,
    Float,
    Integer,
    ListOf,
    NoneLiteral,
    OneOf,
    ParameterType,
    TypeMismatch,
)
from netdsl.signature import BoundCall, Param, Signature
from netdsl.types import Array
from netdsl.values import Argument, Value


def _unchanged(there: Size, window: Size, **arguments: Any) -> Size:
    return there


def _window(there: Size, window: Size, **arguments: Any) -> Size:
    return window


@dataclass(frozen=True)
class Moving:
    """`move(moves, draws, window, **arguments)` moves the pixels of images that `moves` have moved
    already, where these are large enough: `fits(there, window, **arguments)`. Smaller ones are
    brought to cover the window first. Arguments that depend on the size that images have before
    that are `settled`. One that `cuts` gives the size of the window."""

    move: Callable[..., Moves]
    fits: Callable[..., bool] = lambda there, window, **arguments: True
    settled: Callable[..., dict[str, Any]] = lambda there, window, **arguments: arguments
    cuts: bool = False

    def sizes(self, there: Size, window: Size, **arguments: Any) -> tuple[Size, ...]:
        """The sizes that images of that size are given, one after the other."""
        if not self.fits(there, window, **self.settled(there, window, **arguments)):
            there = geometry.covering_size(there, window)
        return (there, window) if self.cuts else (there,)

    def moved(self, moves: Moves, draws: Array, window: Size, **arguments: Any) -> Moves | None:
        """The pixels moved once more; None where the images have to be enlarged for it."""
        given = self.settled(moves.size, window, **arguments)
        fits = self.fits(moves.size, window, **given)
        return self.move(moves, draws, window, **given) if fits else None

    def apply(self, images: Array, draws: Array, window: Size, **arguments: Any) -> Array:
        given = self.settled(images.shape[1:3], window, **arguments)
        if not self.fits(images.shape[1:3], window, **given):
            images = geometry.covering(images, window)
        plain = Moves.none(len(images), images.shape[1:3])
        return self.move(plain, draws, window, **given).applied(images)


@dataclass(frozen=True)
class Augmentation:
    """`apply(images, draws, window, **arguments)` changes a batch; `draws` are `uses` numbers in
    [0, 1) for each of its images, `window` is the height and width that the net takes. One that
    `varies` gives every image a size of its own, so it is given one at a time. One that only moves
    pixels has `moves`; of another `size` says which size it gives. `changes` are those of the
    images that it makes of the same draws."""

    signature: Signature
    apply: Callable[..., Array]
    uses: int
    doc: str = ""
    varies: bool = False
    moves: Moving | None = None
    changes: Changes = ()
    size: Callable[..., Size] = _unchanged

    def sizes(self, there: Size, window: Size, **arguments: Any) -> tuple[Size, ...]:
        """The sizes that images of that size are given, one after the other: the largest where
        they are drawn. Nothing is computed but the sizes."""
        if self.moves is not None:
            return self.moves.sizes(there, window, **arguments)
        return (self.size(there, window, **arguments),)


@dataclass(frozen=True)
class _Ends:
    """The two ends of an interval, the smaller one first."""

    item: ParameterType

    def accept(self, value: Value) -> tuple[Any, ...]:
        ends = ListOf(self.item, length=2).accept(value)
        if ends[0] > ends[1]:
            raise TypeMismatch("a list of two, the smaller one first")
        return ends


def _entry(
    name: str,
    apply: Any,
    uses: int,
    doc: str,
    *params: Param,
    varies: bool = False,
    changes: Changes = (),
    size: Callable[..., Size] = _unchanged,
) -> Augmentation:
    signature = Signature(name, params)
    return Augmentation(signature, apply, uses, doc, varies, changes=changes, size=size)


def _mover(
    name: str, moving: Moving, uses: int, doc: str, *params: Param, changes: Changes = ()
) -> Augmentation:
    signature = Signature(name, params)
    return Augmentation(signature, moving.apply, uses, doc, moves=moving, changes=changes)


_SIDE = Integer(1, 16384)
_WIDTH = Float(0, 1)

AUGMENTATIONS: dict[str, Augmentation] = {
    a.signature.name: a
    for a in (
        _entry(
            "resize",
            geometry.resize,
            0,
            "short side of 256 by `resize(256)`, both by `resize(224x224)`; else what just covers "
            "the net's input",
            Param("size", OneOf((NoneLiteral(), _SIDE, Extent())), None),
            changes=(replace(LONG_SIDE, affects=lambda size: not isinstance(size, tuple)),),
            size=geometry.resize_size,
        ),
        _mover(
            "center_crop",
            Moving(geometry.center_crop, cuts=True),
            0,
            "the middle, of the size of the net's input; black around a smaller picture",
            changes=(
                Change("half a pixel of the corner is rounded to the even number, not down"),
                Change("there is black around a smaller picture, which was enlarged before"),
            ),
        ),
        _mover(
            "hflip",
            Moving(geometry.hflip),
            1,
            "left and right changed over, with probability `p`",
            Param("p", Float(0, 1), 0.5),
        ),
        _mover(
            "random_crop",
            Moving(geometry.random_crop, geometry.covers, geometry.padded, cuts=True),
            2,
            "a part of the size of the net's input, from a picture with `pad` black pixels around "
            "it: 4 where it is no larger itself (He et al. 2016)",
            Param("pad", OneOf((NoneLiteral(), Integer(0, 1024))), None),
        ),
        _entry(
            "random_resized_crop",
            geometry.random_resized_crop,
            1,
            "a part with a share `scale` of the area and a `ratio` of width to height, brought to "
            "the net's size (Szegedy et al. 2015)",
            Param("scale", _Ends(Float(above=0, high=1)), (0.08, 1.0)),
            Param("ratio", _Ends(Float(0.01, 100)), (0.75, 1.33333333)),
            changes=(
                Change("a box that does not fit is drawn anew, and pixels outside it do not count"),
            ),
            size=_window,
        ),
        _entry(
            "scale_jitter",
            geometry.scale_jitter,
            1,
            "short side of any length between two (Simonyan & Zisserman 2015)",
            Param("sides", _Ends(_SIDE), (256, 512)),
            varies=True,
            changes=(LONG_SIDE,),
            size=geometry.widest_jitter,
        ),
        _entry(
            "color_jitter",
            colour.color_jitter,
            4,
            "each multiplied by 1 +- as much, in any order (Howard 2014)",
            Param("brightness", _WIDTH, 0.4),
            Param("contrast", _WIDTH, 0.4),
            Param("saturation", _WIDTH, 0.4),
        ),
        _entry(
            "lighting",
            colour.lighting,
            3,
            "a colour added along the principal components of ImageNet's (Krizhevsky et al. 2012)",
            Param("std", Float(0, 10), 0.1),
        ),
        _mover(
            "cutout",
            Moving(geometry.cutout),
            2,
            "a grey square somewhere (DeVries & Taylor 2017)",
            Param("size", Integer(1, 1024), 8),
        ),
    )
}


def chosen_of(name: str, **given: Any) -> BoundCall:
    """An augmentation with some of its arguments."""
    record = AUGMENTATIONS[name]
    return BoundCall(
        name, record, record.signature.bind([Argument(k, v) for k, v in given.items()], None)
    )
