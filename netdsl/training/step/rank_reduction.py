"""Data-parallel training as IR: means over the ranks of gradients and of what a step reports."""

from __future__ import annotations

from collections.abc import Mapping

from netdsl.ir.builder import Builder
from netdsl.ir.collectives import LAST_BUCKET, mean_over_ranks
from netdsl.training.step.buckets import partition_buckets
from netdsl.types import Node, TensorType

STOP, SAVE = SIGNALS = ("stop", "save")
"""What a rank asks for, and all do after the same update."""
SIGNAL_VALUES = "signals"
"""The input [SIGNALS] that is 1 on a rank that asks for something, and the output that is then more
than 0 on all of them."""


def reduce_gradients(b: Builder, gradients: Mapping[str, Node], ranks: int) -> dict[str, Node]:
    """The means over all ranks of gradients that are given in the order of their readiness."""
    if ranks == 1:
        return dict(gradients)
    ready = list(gradients)
    buckets = partition_buckets([g.type.nbytes for g in gradients.values()])
    found = {}
    for number, members in enumerate(reversed(buckets), LAST_BUCKET):
        for name in (ready[i] for i in members):
            with b.at(gradients[name].span, f"reduce.{name}"):
                found[name] = mean_over_ranks(b, gradients[name], ranks, number)
    return {name: found[name] for name in gradients}


def sort_by_readiness(b: Builder, gradients: Mapping[str, Node]) -> dict[str, Node]:
    """The same gradients in the order in which the backward pass computes them."""
    position = {name: i for i, name in enumerate(b.nodes)}
    return dict(sorted(gradients.items(), key=lambda item: position[item[1].name]))


def reduce_results(b: Builder, results: Mapping[str, Node], ranks: int) -> dict[str, Node]:
    """The means of scalars that a step reports, in the last bucket, and what ranks ask for."""
    if ranks == 1:
        return dict(results)
    means = {}
    for name, x in results.items():
        with b.at(None, f"reduce.{name}"):
            means[name] = mean_over_ranks(b, x, ranks, LAST_BUCKET)
    signals = b.input(SIGNAL_VALUES, TensorType((len(SIGNALS),), b.dtype))
    with b.at(None, f"reduce.{SIGNAL_VALUES}"):
        return means | {SIGNAL_VALUES: b.all_reduce(signals, bucket=LAST_BUCKET)}
