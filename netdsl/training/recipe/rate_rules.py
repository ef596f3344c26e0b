"""The table of rate rules: how the learning rate depends on the number of images per update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from netdsl.parameter_types import Float, Integer
from netdsl.signature import BoundCall, Param, Signature
from netdsl.training.recipe.schedules import Moment

MAX_BATCH = 2**24


@dataclass(frozen=True)
class RateRule:
    """`scale(ratio)` is what the optimizer's rate is multiplied by if an update has `ratio` times
    the images of the batch that the rate was chosen for."""

    signature: Signature
    scale: Callable[[float], float]
    doc: str


def _linear(ratio: float) -> float:
    return ratio


def _entry(name: str, scale: Callable[[float], float], doc: str) -> RateRule:
    params = (
        Param("batch", Integer(1, MAX_BATCH), doc="images per update that `lr` was chosen for"),
        Param("warmup", Float(0), 0.0, "epochs during which the rate rises from `lr`"),
    )
    return RateRule(Signature(name, params), scale, doc)


RATE_RULES: dict[str, RateRule] = {
    x.signature.name: x
    for x in (
        _entry(
            "linear",
            _linear,
            "the rate is multiplied by the images per update divided by `batch`, and rises from "
            "`lr` to that during `warmup` epochs (Goyal et al. 2017)",
        ),
        _entry(
            "sqrt",
            math.sqrt,
            "the same with the square root of that ratio (Krizhevsky 2014; Hoffer et al. 2017)",
        ),
    )
}


def full_scale(chosen: BoundCall, images_per_update: int) -> float:
    """The factor of the learning rate after the warm-up."""
    scale: float = chosen.record.scale(images_per_update / chosen.arguments["batch"])
    return scale


def rate_scale(chosen: BoundCall | None, images_per_update: int, m: Moment) -> float:
    """The factor of the learning rate at a step. During the warm-up it rises linearly from 1, at
    the first update, to its full value; one below 1 applies at once."""
    if chosen is None:
        return 1.0
    scale, warmup = full_scale(chosen, images_per_update), chosen.arguments["warmup"]
    if scale <= 1 or m.epoch >= warmup:
        return scale
    return 1 + (scale - 1) * m.epoch / warmup
