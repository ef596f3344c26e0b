"""Image augmentations on bytes, each determined by seed, epoch and image: their table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from netdsl.backends.lazy_batch import Size, SpatialTransforms
from netdsl.data import colour, spatial_ops
from netdsl.data.revisions import LONG_SIDE_ROUNDING, Revision, Revisions
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


def _same_size(image_size: Size, window: Size, **arguments: Any) -> Size:
    return image_size


def _window_size(image_size: Size, window: Size, **arguments: Any) -> Size:
    return window


@dataclass(frozen=True)
class SpatialAugmentation:
    """An augmentation that only moves pixels: `transform(transforms, draws, window, **arguments)`
    adds it to the `transforms` that the images have so far.

    `is_large_enough(image_size, window, **arguments)` says whether the images are large enough;
    smaller ones are first resized to cover the window. `resolve_arguments` computes the arguments
    that depend on the size before that. If `is_crop`, the result has the window's size.
    """

    transform: Callable[..., SpatialTransforms]
    is_large_enough: Callable[..., bool] = lambda image_size, window, **arguments: True
    resolve_arguments: Callable[..., dict[str, Any]] = lambda image_size, window, **arguments: (
        arguments
    )
    is_crop: bool = False

    def intermediate_sizes(
        self, image_size: Size, window: Size, **arguments: Any
    ) -> tuple[Size, ...]:
        """The sizes that images of that size go through, in order."""
        if not self.is_large_enough(
            image_size, window, **self.resolve_arguments(image_size, window, **arguments)
        ):
            image_size = spatial_ops.covering_size(image_size, window)
        return (image_size, window) if self.is_crop else (image_size,)

    def compose(
        self, transforms: SpatialTransforms, draws: Array, window: Size, **arguments: Any
    ) -> SpatialTransforms | None:
        """Adds this augmentation to the transforms. Returns None if the images must be enlarged
        first."""
        resolved = self.resolve_arguments(transforms.size, window, **arguments)
        is_large_enough = self.is_large_enough(transforms.size, window, **resolved)
        return self.transform(transforms, draws, window, **resolved) if is_large_enough else None

    def apply(self, images: Array, draws: Array, window: Size, **arguments: Any) -> Array:
        resolved = self.resolve_arguments(images.shape[1:3], window, **arguments)
        if not self.is_large_enough(images.shape[1:3], window, **resolved):
            images = spatial_ops.resize_to_cover(images, window)
        identity = SpatialTransforms.identity(len(images), images.shape[1:3])
        return self.transform(identity, draws, window, **resolved).apply(images)


@dataclass(frozen=True)
class Augmentation:
    """`apply(images, draws, window, **arguments)` augments a batch. `draws` holds `draw_count`
    random numbers in [0, 1) per image, `window` is the height and width of the net's input.

    If it `has_variable_size`, each image gets a size of its own, so images are passed one at a
    time. An augmentation that only moves pixels has `spatial`; for others `output_size` computes
    the resulting size. `revisions` lists the changes in the images that it makes from the same
    draws. One that `mixes_labels` makes images of several classes.
    """

    signature: Signature
    apply: Callable[..., Array]
    draw_count: int
    doc: str = ""
    has_variable_size: bool = False
    spatial: SpatialAugmentation | None = None
    revisions: Revisions = ()
    output_size: Callable[..., Size] = _same_size
    mixes_labels: bool = False

    @property
    def is_random(self) -> bool:
        return self.draw_count > 0

    def intermediate_sizes(
        self, image_size: Size, window: Size, **arguments: Any
    ) -> tuple[Size, ...]:
        """The sizes that images of that size go through, in order; where a size is random, the
        largest. Computes sizes only."""
        if self.spatial is not None:
            return self.spatial.intermediate_sizes(image_size, window, **arguments)
        return (self.output_size(image_size, window, **arguments),)


@dataclass(frozen=True)
class _Interval:
    """The two ends of an interval, the smaller first."""

    item: ParameterType

    def accept(self, value: Value) -> tuple[Any, ...]:
        ends = ListOf(self.item, length=2).accept(value)
        if ends[0] > ends[1]:
            raise TypeMismatch("a list of two numbers, the smaller first")
        return ends


def _make_augmentation(
    name: str,
    apply: Any,
    draw_count: int,
    doc: str,
    *params: Param,
    has_variable_size: bool = False,
    revisions: Revisions = (),
    output_size: Callable[..., Size] = _same_size,
) -> Augmentation:
    signature = Signature(name, params)
    return Augmentation(
        signature,
        apply,
        draw_count,
        doc,
        has_variable_size,
        revisions=revisions,
        output_size=output_size,
    )


def _make_spatial_augmentation(
    name: str,
    spatial: SpatialAugmentation,
    draw_count: int,
    doc: str,
    *params: Param,
    revisions: Revisions = (),
) -> Augmentation:
    signature = Signature(name, params)
    return Augmentation(
        signature, spatial.apply, draw_count, doc, spatial=spatial, revisions=revisions
    )


_SIDE = Integer(1, 16384)
_WIDTH = Float(0, 1)

AUGMENTATIONS: dict[str, Augmentation] = {
    a.signature.name: a
    for a in (
        _make_augmentation(
            "resize",
            spatial_ops.resize,
            0,
            "`resize(256)` sets the short side, `resize(224x224)` both sides; without a size, "
            "the image just covers the net's input",
            Param("size", OneOf((NoneLiteral(), _SIDE, Extent())), None),
            revisions=(
                replace(LONG_SIDE_ROUNDING, affects=lambda size: not isinstance(size, tuple)),
            ),
            output_size=spatial_ops.resize_output_size,
        ),
        _make_spatial_augmentation(
            "center_crop",
            SpatialAugmentation(spatial_ops.center_crop, is_crop=True),
            0,
            "crops the centre to the net's input size; adds black pixels around a smaller picture",
            revisions=(
                Revision("half a pixel of the corner is rounded to even, not down"),
                Revision("a smaller picture gets black around it; before, it was enlarged"),
            ),
        ),
        _make_spatial_augmentation(
            "hflip",
            SpatialAugmentation(spatial_ops.hflip),
            1,
            "swaps left and right with probability `p`",
            Param("p", Float(0, 1), 0.5),
        ),
        _make_spatial_augmentation(
            "random_crop",
            SpatialAugmentation(
                spatial_ops.random_crop,
                spatial_ops.is_large_enough,
                spatial_ops.resolve_padding,
                is_crop=True,
            ),
            2,
            "a random crop of the net's input size, from a picture with `pad` black pixels "
            "around it; default: 4 if the picture is no larger than the input (He et al. 2016)",
            Param("pad", OneOf((NoneLiteral(), Integer(0, 1024))), None),
        ),
        _make_augmentation(
            "random_resized_crop",
            spatial_ops.random_resized_crop,
            1,
            "a crop with a share `scale` of the area and a `ratio` of width to height, resized to "
            "the net's size (Szegedy et al. 2015)",
            Param("scale", _Interval(Float(above=0, high=1)), (0.08, 1.0)),
            Param("ratio", _Interval(Float(0.01, 100)), (0.75, 1.33333333)),
            revisions=(
                Revision(
                    "a box that does not fit is drawn again, and pixels outside it are ignored"
                ),
            ),
            output_size=_window_size,
        ),
        _make_augmentation(
            "scale_jitter",
            spatial_ops.scale_jitter,
            1,
            "a random short side between two lengths (Simonyan & Zisserman 2015)",
            Param("sides", _Interval(_SIDE), (256, 512)),
            has_variable_size=True,
            revisions=(LONG_SIDE_ROUNDING,),
            output_size=spatial_ops.max_jitter_size,
        ),
        _make_augmentation(
            "color_jitter",
            colour.color_jitter,
            4,
            "multiplies each property by a random factor within 1 +- its value, in random order "
            "(Howard 2014)",
            Param("brightness", _WIDTH, 0.4),
            Param("contrast", _WIDTH, 0.4),
            Param("saturation", _WIDTH, 0.4),
        ),
        _make_augmentation(
            "lighting",
            colour.lighting,
            3,
            "adds a colour along ImageNet's principal components (Krizhevsky et al. 2012)",
            Param("std", Float(0, 10), 0.1),
        ),
        _make_spatial_augmentation(
            "cutout",
            SpatialAugmentation(spatial_ops.cutout),
            2,
            "a grey square at a random place (DeVries & Taylor 2017)",
            Param("size", Integer(1, 1024), 8),
        ),
    )
}


def bind_augmentation(name: str, **arguments: Any) -> BoundCall:
    """An augmentation with some of its arguments bound."""
    record = AUGMENTATIONS[name]
    return BoundCall(
        name, record, record.signature.bind([Argument(k, v) for k, v in arguments.items()], None)
    )
