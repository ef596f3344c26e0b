"""Initial weights from another run, matched by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netdsl.data.path_lookup import PathLookup
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
    """A source of initial weights. `find` returns the paths among its arguments where they are
    found, by name, as that of a source of data does; `--data` is not for weights."""

    signature: Signature
    find: Callable[..., Mapping[str, Path]]
    doc: str = ""


def find_weights(path: str) -> Path | None:
    """Where a checkpoint or the directory of a run is; None if there is nothing of that name. What
    is neither is found too, if there is nothing else: reading it says what it is."""
    lookup = PathLookup(path)
    return lookup.find(_has_weights) or lookup.find()


def _has_weights(path: Path) -> bool:
    return os.path.isfile(path) or os.path.isfile(path / "best.safetensors")


def _find(folder: Path | None, file: str, **others: Any) -> dict[str, Path]:
    found = find_weights(file)
    return {} if found is None else {"file": found}


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
        _find,
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
