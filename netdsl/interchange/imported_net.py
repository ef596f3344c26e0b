"""What an import reads, is asked for and reports: one form for all formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from netdsl.interchange.layer_graph import LayerGraph
from netdsl.types import Array


@dataclass(frozen=True)
class ImportOptions:
    """How weights are taken over. `normalize` is written as in a data section; `scale` is the
    largest value of the pixels that the weights expect, such as 255; with `is_bgr` they expect the
    channels in the order blue, green, red. With `is_rebuild` a .net in the file is ignored. `size`
    is the height and width of images where the file leaves them open. Layers of an
    existing net that match the globs `excluded` are drawn."""

    classes: Path | None = None
    normalize: str | None = None
    is_bgr: bool = False
    scale: float = 1.0
    is_rebuild: bool = False
    size: tuple[int, int] | None = None
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class PixelNormalization:
    """What a model does with its pixels before its first layer: those from 0 to 255 times a factor,
    plus an offset, for each channel. `top` is the largest pixel that the model itself takes; with
    `is_bytes` these are integers."""

    factors: tuple[float, ...]
    offsets: tuple[float, ...]
    top: float = 255.0
    is_bytes: bool = False


@dataclass(frozen=True)
class ImportedNet:
    """A foreign net as layer calls, with its weights: `states` contains float32 arrays in netdsl's
    layout by the keys of `graph.state_shapes`. `notes` say what was left out or assumed.
    `pixels` is what the model does with its pixels, if it takes bytes or normalises them itself.
    `classes` are the names of the classes, where the file contains them.
    `orders` contains the axes of each input, by its node, and of each output, in netdsl's order."""

    graph: LayerGraph
    states: Mapping[str, Array]
    notes: tuple[str, ...] = ()
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    pixels: PixelNormalization | None = None
