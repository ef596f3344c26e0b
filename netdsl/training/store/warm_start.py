"""Reads the initial weights of a run from the checkpoint of another run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from netdsl.errors import NetError, Span
from netdsl.runtime.state import State
from netdsl.signature import BoundCall
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


def initialise_weights(
    state: State, states: Sequence[Node], init: BoundCall | None, span: Span | None = None
) -> None:
    """Loads the weights that a recipe's `init` names, if any, into `state`."""
    if init is not None:
        given, wanted = load_initial_weights(init, states, span)
        state.load(given, wanted, str(init))
