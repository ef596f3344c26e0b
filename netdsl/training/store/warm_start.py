"""Reads the initial weights of a run from the checkpoint of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.data.inventory import abbreviate
from netdsl.data.path_lookup import PathLookup
from netdsl.errors import NetError, fail
from netdsl.globs import match_globs, matches_any_glob
from netdsl.language.network import Network
from netdsl.runtime.state import State
from netdsl.text_escaping import escape_line
from netdsl.training.recipe.initial_weights import find_weights, match_states, shapes_of
from netdsl.training.recipe.recipe import Recipe, recipe_of_weights
from netdsl.training.recipe.score_layers import shrink_score_weights
from netdsl.training.store.checkpoint import Checkpoint, inference_states, load_best, suggest_runs
from netdsl.types import Array, Node
from netdsl.values import format_value


def load_initial_weights(
    recipe: Recipe, states: Sequence[Node]
) -> tuple[dict[str, Array], list[Node]]:
    """Returns the weights that a recipe's `weights(...)` names and the states that take their
    values from them. Raises NetError if they do not fit."""
    init, span = recipe.init, recipe.spans.get("init")
    assert init is not None
    try:
        found = _load(init.arguments["file"])
    except NetError as e:
        raise e.with_default_span(span) from None
    given = inference_states(found.states)
    left_out = init.arguments["except"]
    match_globs(left_out, [n.name for n in states], "except", span)
    wanted = [n.name for n in states if not matches_any_glob(n.name, left_out)]
    missing = [name for name in wanted if name not in given]
    if 2 * len(missing) > len(wanted):
        raise _make_naming_error(recipe, found, missing[0], next(iter(given), None))
    help = '`weights("FILE", except="head.*")` leaves weights out'
    if left_out:
        help = f"`except` leaves weights out; it has {format_value(left_out)}"
    return given, match_states(states, shapes_of(given), left_out, found.origin, span, help)


def _make_naming_error(recipe: Recipe, found: Checkpoint, here: str, there: str | None) -> NetError:
    """The error for weights of a net with other names: most likely the same layers, written
    differently. `here` is a name that is missing, `there` one of the file's."""
    assert recipe.init is not None
    span = recipe.spans.get("init")
    net, file = recipe_of_weights(found.program()).net, recipe.init.arguments["file"]
    example = f", such as `{escape_line(there)}`" if there is not None else ""
    target = span.source.name if span and span.source.folder is not None else "FILE.net"
    globs = "".join(f' --except "{glob}"' for glob in recipe.init.arguments["except"])
    return fail(
        f"{found.origin} has weights of the net `{net}` under other names{example}: "
        f"`{here}` is missing",
        span,
        help=f"`netdsl import {file} --into {target}:{recipe.net} -o fitted.safetensors{globs}` "
        "fits them to this net by its structure; then name that file in `weights(...)`",
    )


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
    given, wanted = load_initial_weights(recipe, states)
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
