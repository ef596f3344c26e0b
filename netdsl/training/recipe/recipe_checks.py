"""Keys of a recipe that contradict each other."""

from __future__ import annotations

from netdsl.errors import fail
from netdsl.signature import BoundCall


def check_warmups(schedule: BoundCall, rule: BoundCall | None) -> None:
    """Raises NetError if the schedule and the rate rule both begin with a rise of the rate: their
    product would rise along a parabola."""
    if rule is None or not rule.arguments["warmup"]:
        return
    rises_alone = "rise" in schedule.arguments
    if not rises_alone and not schedule.arguments.get("warmup"):
        return
    base = rule.arguments["batch"]
    other = f"`lr_rule = {rule.name}({base})`, so that only the schedule does"
    if not rises_alone:
        other = f"{other}, or leave out `warmup` of `{schedule.name}`"
    message = f"`{schedule.name}` and `{rule.name}` of `lr_rule` both warm up"
    raise fail(message, rule.span or schedule.span, help=f"write {other}")


def check_clock(validating: BoundCall, schedule: BoundCall, is_deterministic: bool) -> None:
    """Raises NetError if the clock says which epochs are validated, and weights would depend on
    that."""
    if not validating.record.reads_clock:
        return
    help = "count `epochs(n)` or `steps(n)` instead"
    if schedule.record.needs_losses:
        message = f"the rate of `{schedule.name}` would depend on the clock: it follows validations"
        raise fail(message, validating.span, help=help)
    if is_deterministic:
        message = "with `deterministic`, the clock cannot say which epochs are validated"
        raise fail(message, validating.span, help=help)
