"""Layers of a net that take no weights from a file, but are drawn: `--except`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from netdsl.errors import fail
from netdsl.globs import match_globs
from netdsl.language.network import Network
from netdsl.runtime.state import draw_initial_value
from netdsl.training.recipe.score_layers import SCORE_SCALE, shrink_score_weights
from netdsl.types import Array

SEED = 1
"""That of a recipe which names none."""


def layer_path(state: str) -> str:
    """What the names of a layer's states begin with."""
    return state.rpartition(".")[0]


def find_drawn_layers(network: Network, globs: Sequence[str]) -> frozenset[str]:
    """The paths of the layers whose states all match a glob. Raises NetError if a glob matches
    nothing, a layer only in part, or together they match every layer."""
    states = [n.name for n in network.graph.states]
    found = match_globs(globs, states, "--except")
    matching = {name for names in found.values() for name in names}
    drawn = {layer_path(name) for name in matching}
    rest = [name for name in states if layer_path(name) in drawn and name not in matching]
    if rest:
        raise fail(
            f"`--except` leaves out whole layers, but its globs do not match `{rest[0]}`",
            help=f'`--except "{layer_path(rest[0])}.*"` leaves out this one',
        )
    if states and len(matching) == len(states):
        raise fail("`--except` matches every layer with weights", help="then no file is needed")
    return frozenset(drawn)


def draw_layers(network: Network, paths: Collection[str]) -> dict[str, Array]:
    """The initial values of the states of some layers, as a training run draws them for
    `init = weights(..., except=...)`."""
    drawn = {n.name: n for n in network.graph.states if layer_path(n.name) in paths}
    drawn |= {n.name: n for n in shrink_score_weights(network, drawn, SCORE_SCALE)}
    return {name: draw_initial_value(node, SEED) for name, node in drawn.items()}
