"""Reads the initial weights of a run from the checkpoint of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.data.inventory import abbreviate
from netdsl.data.path_lookup import PathLookup
from netdsl.errors import NetError, Span, fail
from netdsl.language.network import Network
from netdsl.runtime.state import State
from netdsl.signature import BoundCall
from netdsl.text_escaping import escape_line
from netdsl.training.recipe.initial_weights import find_weights, match_states, shapes_of
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.recipe.score_layers import shrink_score_weights
from netdsl.training.store.checkpoint import Checkpoint, inference_states, load_best, suggest_runs
from netdsl.types import Array, Node
from netdsl.values import format_value


def load_initial_weights(
    init: BoundCall, states: Sequence[Node], span: Span | None = None
) -> tuple[dict[str, Array], list[Node]]:
    """Returns the weights that `weights(...)` names and the states that take their values from
    them. Raises NetError if they do not fit."""

    try:
        found = _load(init.arguments["file"])
    except NetError as e:
        raise e.with_default_span(span) from None
    given, help = (
        inference_states(found.states),
        '`weights("FILE", except="head.*")` leaves weights out',
    )
    left_out = init.arguments["except"]
    return given, match_states(states, shapes_of(given), left_out, found.origin, span, help)


def _load(file: str) -> Checkpoint:
    """The checkpoint that `weights(...)` names. Raises NetError where there is none, with what runs
    there are instead."""
    path = find_weights(file)
    if path is not None:
        return load_best(path)
    lookup = PathLookup(file)
    runs = suggest_runs(lookup.candidates)
    raise fail(lookup.describe("checkpoint"), help=lookup.advise() or runs)


@dataclass(frozen=True)
class WarmStart:
    """Which layers with weights a run took from `source`, and which were drawn; of these, `small`
    are the layers of class scores whose weights were multiplied by `score_scale`."""

    source: str
    taken: tuple[str, ...]
    drawn: tuple[str, ...]
    small: tuple[str, ...] = ()
    score_scale: float = 1.0

    def lines(self) -> tuple[str, ...]:
        """What `except` left to be drawn, as lines of text; nothing if that is no layer."""
        if not self.drawn:
            return ()
        total = len(self.taken) + len(self.drawn)
        count = f"{len(self.taken):,} of {total:,} layers from {escape_line(self.source)}"
        first = f"weights: {count}, {len(self.drawn):,} drawn: {abbreviate(self.drawn)}"
        if not self.small:
            return (first,)
        factor = f"drawn {format_value(self.score_scale)} times as large as usual (`score_scale`)"
        return first, f"  scores near 0 at first: {abbreviate(self.small)} is {factor}"


def initialise_weights(state: State, network: Network, recipe: Recipe) -> WarmStart | None:
    """Loads the weights that a recipe's `init` names, if any, into `state`, and draws those of new
    layers of class scores, which begin small."""
    init = recipe.init
    if init is None:
        return None
    states = network.graph.states
    given, wanted = load_initial_weights(init, states, recipe.spans.get("init"))
    state.load(given, wanted, str(init))
    is_taken = {n.name for n in wanted}
    new = [n.name for n in states if n.name not in is_taken]
    factor = init.arguments["score_scale"]
    small = shrink_score_weights(network, new, factor) if factor != 1 else ()
    state.initialise(small, recipe.seed)
    layers = dict.fromkeys(map(_layer_of, (n.name for n in states)))
    drawn = set(map(_layer_of, new))
    return WarmStart(
        init.arguments["file"],
        tuple(name for name in layers if name not in drawn),
        tuple(name for name in layers if name in drawn),
        tuple(_layer_of(n.name) for n in small),
        factor,
    )


def _layer_of(state: str) -> str:
    return state.rpartition(".")[0] or state
