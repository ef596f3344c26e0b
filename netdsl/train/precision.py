"""The table of precisions, and the loss scale that gradients of few exponents need, as IR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netdsl.ir.builder import Builder
from netdsl.kinds import Number, Whole
from netdsl.signature import Chosen, OneFrom, Param, Signature
from netdsl.train.losses import pairwise_sum
from netdsl.types import Node, TensorType
from netdsl.values import Symbol

SCALE = "loss_scale"
"""The state that holds what the loss is multiplied by; others stand beneath it."""
_GOOD, SKIPPED_STEPS = f"{SCALE}.good", f"{SCALE}.skipped"
SCALE_STATES = (SCALE, _GOOD, SKIPPED_STEPS)
SKIP_FLAG = "left_out"
"""The output of a step that is 1 where it was left out."""
MIN_SCALE = 1.0
"""Where a smaller scale than this does not help, the fault is the net's."""
MAX_SCALE = 2.0**32


@dataclass(frozen=True)
class Precision:
    """A way to compute a training step, or a 16-bit type of one."""

    signature: Signature
    doc: str = ""


LOW_PRECISIONS: dict[str, Precision] = {
    "bfloat16": Precision(Signature("bfloat16"), "the exponents of 32 bits, 8 bits of precision"),
    "float16": Precision(
        Signature(
            "float16",
            (
                Param("scale", Number(MIN_SCALE, MAX_SCALE), 65536.0),
                Param("steady", Whole(1, 10**6), 2000),
            ),
        ),
        "11 bits of precision, but few exponents, so the loss is scaled: by `scale` at first; a "
        "step whose gradients are not finite is left out and halves it, `steady` others double it",
    ),
}

PRECISIONS: dict[str, Precision] = {
    "full": Precision(Signature("full"), "32 bits throughout"),
    "mixed": Precision(
        Signature(
            "mixed", (Param("low", OneFrom("16-bit type", LOW_PRECISIONS), Symbol("bfloat16")),)
        ),
        "products and activations in 16 bits; weights, statistics and losses in 32",
    ),
}


def low_precision(precision: Chosen) -> Chosen | None:
    """The 16-bit type that a step computes in, if it does."""
    return precision.arguments.get("low")


def has_loss_scale(precision: Chosen) -> bool:
    """Whether the loss is scaled."""
    low = low_precision(precision)
    return low is not None and "scale" in low.arguments


def describe_precision(precision: Chosen) -> str:
    """A precision in words."""
    low = low_precision(precision)
    if low is None:
        return precision.name
    words = f"{precision.name}, products and activations in {low.name}"
    first = low.arguments.get("scale")
    return words if first is None else f"{words}, the loss scaled by {first:,.0f} at first"


class LossScale:
    """A scaled loss (Micikevicius et al. 2018, "Mixed precision training"), emitted through a
    builder: gradients of a multiple of the loss, and an update that is made only where all of them
    are finite."""

    def __init__(self, b: Builder, low: Chosen) -> None:
        self.b = b
        self.steady = low.arguments["steady"]
        self.scale = self._state(SCALE, low.arguments["scale"])
        self.skipped_steps = self._state(SKIPPED_STEPS, 0.0)

    def _state(self, name: str, first: float) -> Node:
        return self.b.state(name, TensorType((), self.b.dtype), ("constant", first), False)

    def scale_loss(self, loss: Node) -> Node:
        """The loss whose gradients are computed."""
        with self.b.at(None, SCALE):
            return self.b.mul(loss, self.scale)

    def unscale_gradients(self, gradients: Mapping[str, Node]) -> dict[str, Node]:
        """The gradients of the loss itself."""
        b = self.b
        with b.at(None, SCALE):
            share = b.div(b.const(1.0), self.scale)
            return {name: b.mul(g, share) for name, g in gradients.items()}

    def all_finite(self, gradients: Mapping[str, Node]) -> Node:
        """Whether every value of every gradient is a finite number."""
        b = self.b
        with b.at(None, SCALE):
            wrong = []
            for g in gradients.values():
                odd = b.select(b.is_finite(g), b.const(0.0), b.const(1.0))
                wrong.append(b.reduce_sum(odd, axes=tuple(range(g.type.rank))))
            return b.equal(pairwise_sum(b, wrong), b.const(0.0))

    def skip_unless_finite(self, finite: Node, updates: Mapping[str, Node]) -> dict[str, Node]:
        """The updates of a step that is left out where it is not `all_finite`."""
        b = self.b
        with b.at(None, SCALE):
            return {name: b.select(finite, new, b.nodes[name]) for name, new in updates.items()}

    def skip_flag(self, finite: Node) -> Node:
        """1 for a step that is left out, else 0."""
        with self.b.at(None, SCALE):
            return self.b.select(finite, self.b.const(0.0), self.b.const(1.0))

    def next_states(self, finite: Node) -> dict[str, Node]:
        """The scale's own states after an update."""
        b = self.b
        good = self._state(_GOOD, 0.0)
        with b.at(None, SCALE):
            zero, one = b.const(0.0), b.const(1.0)
            run = b.select(finite, b.add(good, one), zero)
            grows = b.equal(run, b.const(self.steady))
            most = b.minimum(b.mul(self.scale, b.const(2.0)), b.const(MAX_SCALE))
            steady = b.select(grows, most, self.scale)
            return {
                SCALE: b.select(finite, steady, b.mul(self.scale, b.const(0.5))),
                good.name: b.select(grows, zero, run),
                self.skipped_steps.name: b.select(
                    finite, self.skipped_steps, b.add(self.skipped_steps, one)
                ),
            }


def is_exhausted(scale: float) -> bool:
    """Whether no smaller scale would make a step finite."""
    return not math.isfinite(scale) or scale < MIN_SCALE


def scale_metrics(states: Mapping[str, Any]) -> dict[str, float]:
    """What the metrics say of a scaled loss."""
    return {SCALE: float(states[SCALE]), "skipped": int(states[SKIPPED_STEPS])}
