"""Initial weights from another run, matched by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netdsl.errors import Span, fail
from netdsl.globs import match_globs, matches_any_glob
from netdsl.parameter_types import GLOB_LIST, Float, QuotedText
from netdsl.signature import Param, Signature
from netdsl.training.recipe.score_layers import SCORE_SCALE
from netdsl.types import Array, Node, dims

Shape = tuple[int, ...]
MAX_MISMATCHES = 8


@dataclass(frozen=True)
class InitialWeights:
    """A source of initial weights."""

    signature: Signature
    doc: str = ""


INITIAL_WEIGHTS: dict[str, InitialWeights] = {
    "weights": InitialWeights(
        Signature(
            "weights",
            (
                Param("file", QuotedText(), doc="a checkpoint, or the directory of a run"),
                Param("except", GLOB_LIST, (), "globs of weights that are drawn at random instead"),
                Param(
                    "score_scale",
                    Float(0, 1),
                    SCORE_SCALE,
                    "factor of the weights that are drawn for a layer of class scores, unless the "
                    "layer has an initialiser of its own",
                ),
            ),
        ),
        "weights of another run, matched by name",
    )
}


def shape_mismatches(states: Iterable[Node], given: Mapping[str, Shape]) -> list[str]:
    """Returns one line for each state that is missing from `given` or has another shape there."""
    found = []
    for node in states:
        there = given.get(node.name)
        if there is None:
            found.append(f"`{node.name}` is missing")
        elif there != node.type.shape:
            found.append(
                f"`{node.name}` is {dims(there)}, but the net needs {dims(node.type.shape)}"
            )
    return found


def match_states(
    states: Sequence[Node],
    given: Mapping[str, Shape],
    excluded: Sequence[str],
    origin: str,
    span: Span | None = None,
    help: str | None = None,
) -> list[Node]:
    """Returns the states that take their values from `given`. Raises NetError, listing the
    mismatches, if any state is missing or has another shape."""
    match_globs(excluded, [n.name for n in states], "except", span)
    wanted = [n for n in states if not matches_any_glob(n.name, excluded)]
    wrong = shape_mismatches(wanted, given)
    if wrong:
        raise fail(
            f"{origin} does not fit the net: {wrong[0]}",
            span,
            notes=[*wrong[1:MAX_MISMATCHES], *_rest(wrong)],
            help=help,
        )
    return wanted


def _rest(wrong: Sequence[str]) -> list[str]:
    more = len(wrong) - MAX_MISMATCHES
    return [f"and {more} more"] if more > 0 else []


def shapes_of(values: Mapping[str, Array]) -> dict[str, Shape]:
    return {name: tuple(v.shape) for name, v in values.items()}
