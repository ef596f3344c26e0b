"""The feature maps that a layer computes for a picture."""

from __future__ import annotations

from pathlib import Path

from netdsl.errors import fail
from netdsl.inference import Predictor
from netdsl.insight.image_grid import make_grid, scale_to_range
from netdsl.passes import pass_manager
from netdsl.runtime.executor import Executor
from netdsl.types import Array, Graph, dims


def compute_feature_maps(trained: Predictor, picture_path: Path, place: str) -> Array:
    """The output of a place for one picture, [H,W,C]. Raises NetError if there is no such place, or
    if its output is a vector instead of maps."""
    network = trained.network(trained.recipe.settings(training=False, batch=1))
    node = network.find_node(place)
    if node.type.rank != 4:
        raise fail(f"`{place}` gives {dims(node.type.shape[1:])}, a vector, not feature maps")
    graph = Graph(network.graph.nodes, {"maps": node.name}, name=network.name)
    executor = Executor(
        pass_manager.run_passes(graph, pass_manager.FORWARD_PASSES), trained.backend, trained.state
    )
    out = executor.run({network.image_input: trained.load_picture(network, picture_path)})
    maps: Array = trained.backend.download(out["maps"])[0]
    return maps


def render_feature_maps(maps: Array) -> Array:
    """Maps [H,W,C] side by side, each scaled from its own smallest (black) to its largest value."""
    return make_grid(scale_to_range(maps.transpose(2, 0, 1)[..., None]))
