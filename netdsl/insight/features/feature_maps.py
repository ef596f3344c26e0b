"""The feature maps that layers compute for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netdsl.errors import fail
from netdsl.inference import Predictor
from netdsl.insight.color_scale import format_value, render_scale, render_text
from netdsl.insight.colormap import SEQUENTIAL, normalize
from netdsl.insight.features.filters import ScaleKind
from netdsl.insight.image_grid import fit_picture, make_sheet, stack
from netdsl.passes import pass_manager
from netdsl.runtime.executor import Executor
from netdsl.types import Array, Graph, dims

_TILE_SIDE = 120
_PICTURE_SIDE = 240


@dataclass(frozen=True)
class FeatureMaps:
    """The output of a place for one picture, [H,W,C]."""

    place: str
    maps: Array

    def strongest(self, top: int | None) -> list[int]:
        """The channels by their largest value, the largest first, at most `top`; all of them in
        their own order if it is None."""
        if top is None:
            return list(range(self.maps.shape[2]))
        order = np.argsort(-self.maps.max(axis=(0, 1)), kind="stable")
        return [int(c) for c in order[:top]]


def compute_feature_maps(
    trained: Predictor, picture_path: Path, places: Sequence[str]
) -> tuple[Array, list[FeatureMaps]]:
    """The picture as the net sees it, bytes [H,W,C], and the output of each place. Raises NetError
    if there is no such place, or if its output is a vector instead of maps."""
    network = trained.network(trained.recipe.settings(training=False, batch=1))
    nodes = {place: network.find_node(place) for place in places}
    for place, node in nodes.items():
        if node.type.rank != 4:
            message = f"`{place}` gives {dims(node.type.shape[1:])}, a vector, not feature maps"
            raise fail(message, help=f"`netdsl run WEIGHTS --input IMAGE --at {place}` prints it")
    outputs = {str(i): nodes[place].name for i, place in enumerate(places)}
    graph = Graph(network.graph.nodes, outputs, name=network.name)
    executor = Executor(
        pass_manager.run_passes(graph, pass_manager.FORWARD_PASSES), trained.backend, trained.state
    )
    picture = trained.load_picture(network, picture_path)
    out = executor.run({network.image_input: picture})
    maps = [np.array(trained.backend.download(out[str(i)])[0]) for i in range(len(places))]
    return picture[0], [FeatureMaps(p, m) for p, m in zip(places, maps, strict=True)]


def render_feature_maps(
    picture: Array, found: Sequence[FeatureMaps], top: int | None, scale: ScaleKind
) -> Array:
    """The picture, and beside it the maps of each place, with the channel and the range of each
    map. The colours of a map go from its own smallest to its own largest value (0 and 1 on the
    scale), or with the scale of the layer from those of all its maps."""
    parts = [_render_place(f, f.strongest(top), scale) for f in found]
    return stack((fit_picture(picture, _PICTURE_SIDE), stack(parts, "down")), "right")


def _render_place(found: FeatureMaps, channels: Sequence[int], scale: ScaleKind) -> Array:
    shown = found.maps[..., channels].transpose(2, 0, 1).astype(np.float64)
    lows, highs = shown.min(axis=(1, 2)), shown.max(axis=(1, 2))
    captions = [f"{c}: {_range(*r)}" for c, *r in zip(channels, lows, highs, strict=True)]
    low, high = float(found.maps.min()), float(found.maps.max())
    limits = [(low, high)] * len(shown) if scale == "layer" else list(zip(lows, highs, strict=True))
    colors = [SEQUENTIAL(normalize(m, *r)) for m, r in zip(shown, limits, strict=True)]
    columns = min(len(shown), max(6, round(1.5 * len(shown) ** 0.5)))
    tiles = [fit_picture(c, _TILE_SIDE) for c in colors]
    ends = (low, high) if scale == "layer" else (0.0, 1.0)
    bar = render_scale(SEQUENTIAL, *ends, _TILE_SIDE)
    body = stack((make_sheet(tiles, captions, columns), bar), "right")
    height, width, count = found.maps.shape
    ranked = f", the {len(channels)} strongest" if len(channels) < count else ""
    title = f"{found.place}: {count} maps of {height}x{width}{ranked}, {_range(low, high)}"
    return stack((render_text(title, max(body.shape[1], 420)), body), "down", gap=2)


def _range(low: float, high: float) -> str:
    return f"{format_value(low)} to {format_value(high)}"
