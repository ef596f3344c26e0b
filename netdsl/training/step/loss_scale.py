"""The loss scale that gradients with a small exponent range need, as IR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from netdsl.ir.builder import Builder
from netdsl.ir.collectives import LAST_BUCKET
from netdsl.signature import BoundCall
from netdsl.training.recipe.losses import pairwise_sum
from netdsl.training.recipe.precision import MAX_SCALE, MIN_SCALE
from netdsl.types import Node, TensorType

SCALE = "loss_scale"
"""The state that holds the factor of the loss; the names of the other scale states start with
it."""
_GOOD, SKIPPED_STEPS = f"{SCALE}.good", f"{SCALE}.skipped"
SCALE_STATES = (SCALE, _GOOD, SKIPPED_STEPS)
SKIP_FLAG = "left_out"
"""The output of a step that is 1 if the step was skipped."""


class LossScale:
    """A scaled loss (Micikevicius et al. 2018, "Mixed precision training"), emitted through a
    builder: differentiates a multiple of the loss, and updates only if all gradients are finite."""

    def __init__(self, b: Builder, low: BoundCall) -> None:
        self.b = b
        self.steady = low.arguments["steady"]
        self.scale = self._state(SCALE, low.arguments["scale"])
        self.skipped_steps = self._state(SKIPPED_STEPS, 0.0)

    def _state(self, name: str, first: float) -> Node:
        return self.b.state(name, TensorType((), self.b.dtype), ("constant", first), False)

    def scale_loss(self, loss: Node) -> Node:
        """The loss to differentiate."""
        with self.b.at(None, SCALE):
            return self.b.mul(loss, self.scale)

    def unscale_gradients(self, gradients: Mapping[str, Node]) -> dict[str, Node]:
        """The gradients of the unscaled loss."""
        b = self.b
        with b.at(None, SCALE):
            share = b.div(b.const(1.0), self.scale)
            return {name: b.mul(g, share) for name, g in gradients.items()}

    def all_finite(self, gradients: Mapping[str, Node], ranks: int = 1) -> Node:
        """Whether all values of all gradients are finite, on each of `ranks` if they differ."""
        b = self.b
        with b.at(None, SCALE):
            wrong = []
            for g in gradients.values():
                odd = b.select(b.is_finite(g), b.const(0.0), b.const(1.0))
                wrong.append(b.reduce_sum(odd, axes=tuple(range(g.type.rank))))
            total = pairwise_sum(b, wrong)
            if ranks > 1:
                total = b.all_reduce(total, bucket=LAST_BUCKET)
            return b.equal(total, b.const(0.0))

    def skip_unless_finite(self, finite: Node, updates: Mapping[str, Node]) -> dict[str, Node]:
        """The updates, replaced by the old values if not `all_finite`."""
        b = self.b
        with b.at(None, SCALE):
            return {name: b.select(finite, new, b.nodes[name]) for name, new in updates.items()}

    def skip_flag(self, finite: Node) -> Node:
        """1 for a skipped step, else 0."""
        with self.b.at(None, SCALE):
            return self.b.select(finite, self.b.const(0.0), self.b.const(1.0))

    def next_states(self, finite: Node) -> dict[str, Node]:
        """The new values of the scale's own states after an update."""
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
    """The metrics of a scaled loss."""
    return {SCALE: float(states[SCALE]), "skipped": int(states[SKIPPED_STEPS])}
