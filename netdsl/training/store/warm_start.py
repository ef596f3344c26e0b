"""Reads the initial weights of a run from the checkpoint of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netdsl.data.inventory import abbreviate
from netdsl.errors import NetError, Span
from netdsl.runtime.state import State
from netdsl.signature import BoundCall
from netdsl.text_escaping import escape_line
from netdsl.training.recipe.initial_weights import match_states, shapes_of
from netdsl.training.store.checkpoint import inference_states, load_best
from netdsl.types import Array, Node


def load_initial_weights(
    init: BoundCall, states: Sequence[Node], span: Span | None = None
) -> tuple[dict[str, Array], list[Node]]:
    """Returns the weights that `weights(...)` names and the states that take their values from
    them. Raises NetError if they do not fit."""

    try:
        found = load_best(Path(init.arguments["file"]))
    except NetError as e:
        raise e.with_default_span(span) from None
    given, help = (
        inference_states(found.states),
        '`weights("FILE", except="head.*")` leaves weights out',
    )
    left_out = init.arguments["except"]
    return given, match_states(states, shapes_of(given), left_out, found.origin, span, help)


@dataclass(frozen=True)
class WarmStart:
    """Which layers with weights a run took from `source`, and which were drawn."""

    source: str
    taken: tuple[str, ...]
    drawn: tuple[str, ...]

    def lines(self) -> tuple[str, ...]:
        """What `except` left to be drawn, as a line of text; nothing if that is no layer."""
        if not self.drawn:
            return ()
        total = len(self.taken) + len(self.drawn)
        count = f"{len(self.taken):,} of {total:,} layers from {escape_line(self.source)}"
        return (f"weights: {count}, {len(self.drawn):,} drawn: {abbreviate(self.drawn)}",)


def initialise_weights(
    state: State, states: Sequence[Node], init: BoundCall | None, span: Span | None = None
) -> WarmStart | None:
    """Loads the weights that a recipe's `init` names, if any, into `state`."""
    if init is None:
        return None
    given, wanted = load_initial_weights(init, states, span)
    state.load(given, wanted, str(init))
    is_taken = {n.name for n in wanted}
    layers = dict.fromkeys(_layer_of(n) for n in states)
    drawn = {_layer_of(n) for n in states if n.name not in is_taken}
    return WarmStart(
        init.arguments["file"],
        tuple(name for name in layers if name not in drawn),
        tuple(name for name in layers if name in drawn),
    )


def _layer_of(state: Node) -> str:
    return state.name.rpartition(".")[0] or state.name
