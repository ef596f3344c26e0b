"""The table of precisions, and which of them scale the loss."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.parameter_types import Float, Integer
from netdsl.signature import BoundCall, CallOf, Param, Signature
from netdsl.values import Symbol

MIN_SCALE = 1.0
"""The smallest loss scale. If gradients are still not finite at this scale, the net is at fault."""
MAX_SCALE = 2.0**32


@dataclass(frozen=True)
class Precision:
    """A precision of the training step, or a 16-bit type for one."""

    signature: Signature
    doc: str = ""


LOW_PRECISIONS: dict[str, Precision] = {
    "bfloat16": Precision(
        Signature("bfloat16"), "the exponent range of float32, 8 bits of precision"
    ),
    "float16": Precision(
        Signature(
            "float16",
            (
                Param("scale", Float(MIN_SCALE, MAX_SCALE), 65536.0),
                Param("steady", Integer(1, 10**6), 2000),
            ),
        ),
        "11 bits of precision, but a small exponent range, so the loss is scaled, at first by "
        "`scale`; a step whose gradients are not finite is skipped and halves the "
        "scale, and `steady` finite steps in a row double it",
    ),
}

PRECISIONS: dict[str, Precision] = {
    "full": Precision(Signature("full"), "32 bits throughout"),
    "mixed": Precision(
        Signature(
            "mixed", (Param("low", CallOf("16-bit type", LOW_PRECISIONS), Symbol("bfloat16")),)
        ),
        "products and activations in 16 bits; weights, statistics and losses in 32",
    ),
}


def low_precision(precision: BoundCall) -> BoundCall | None:
    """The 16-bit type that the step computes in, if any."""
    return precision.arguments.get("low")


def has_loss_scale(precision: BoundCall) -> bool:
    """Whether the loss is scaled."""
    low = low_precision(precision)
    return low is not None and "scale" in low.arguments


def describe_precision(precision: BoundCall) -> str:
    """Describes a precision for the user."""
    low = low_precision(precision)
    if low is None:
        return precision.name
    words = f"{precision.name}, products and activations in {low.name}"
    first = low.arguments.get("scale")
    return words if first is None else f"{words}, the loss scaled by {first:,.0f} at first"
