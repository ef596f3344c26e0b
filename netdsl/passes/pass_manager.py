"""The pass pipelines, in the order in which the passes run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from netdsl.dump import dump_stage
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.ir.printer import to_text
from netdsl.ir.verifier import verify_graph
from netdsl.passes.algebraic_batch_norm import rewrite_batch_norms
from netdsl.passes.batch_norm_folding import FoldedGraph, fold_batch_norms, split_preparation
from netdsl.passes.conv_lowering import lower_convolutions, lower_im2col
from netdsl.passes.mixed_precision import convert_to_mixed_precision
from netdsl.passes.simplify import simplify
from netdsl.types import Graph

PassObserver = Callable[[str, Graph, Graph], None]
"""Called after each pass with its name and the graph before and after it."""


@dataclass(frozen=True)
class Pass:
    """One step of the pipeline; `run` is pure."""

    name: str
    run: Callable[[Graph], Graph]


SIMPLIFY_PASS = Pass("simplify", simplify)
LOWER_PASS = Pass("lower", lower_convolutions)
IM2COL_PASS = Pass("im2col", lower_im2col)


def make_mixed_precision_pass(low: str) -> Pass:
    """Makes the pass that uses 16-bit arithmetic where it is accurate enough."""
    return Pass("mixed", lambda graph: convert_to_mixed_precision(graph, low))


ALGEBRAIC_PASS = Pass("algebraic", rewrite_batch_norms)
"""Runs after conversion to 16 bits, when memory traffic costs more than products."""
FORWARD_PASSES = (SIMPLIFY_PASS, LOWER_PASS)
"""Run before differentiation, so that the backward pass is already lowered; also before folding."""
TRAINING_STEP_PASSES = (SIMPLIFY_PASS,)
"""Run on a training step once it has its gradient and updates."""


@pause_garbage_collection()
def run_passes(graph: Graph, passes: Sequence[Pass], observer: PassObserver | None = None) -> Graph:
    """Returns the graph after all passes, verified after each. Raises AssertionError, with the IR
    around the fault, if a pass breaks an invariant."""
    for current_pass in passes:
        after = verify_graph(current_pass.run(graph))
        report_pass(observer, current_pass.name, graph, after)
        graph = after
    return graph


def report_pass(observer: PassObserver | None, name: str, before: Graph, after: Graph) -> None:
    """Shows a pass to the observer, and dumps it if that is enabled."""
    dump_stage(name, lambda: f"{to_text(before)}\n{to_text(after)}")
    if observer is not None:
        observer(name, before, after)


@pause_garbage_collection()
def prepare_inference(
    graph: Graph,
    observer: PassObserver | None = None,
    forward: Sequence[Pass] = FORWARD_PASSES,
    low: str | None = None,
) -> FoldedGraph:
    """Prepares an evaluation graph: lowered, simplified and folded, and in 16 bits if `low` names
    their type. Its weights are then precomputed in the type in which they are read."""
    before = run_passes(graph, forward, observer)
    folded_graph = fold_batch_norms(before)
    found = split_preparation(folded_graph)
    report_pass(observer, "fold", before, verify_graph(found.main))
    if low:
        precision_pass = make_mixed_precision_pass(low)
        before, found = found.main, split_preparation(precision_pass.run(folded_graph))
        report_pass(observer, precision_pass.name, before, verify_graph(found.main))
    return FoldedGraph(
        run_passes(found.main, (SIMPLIFY_PASS,), observer),
        run_passes(found.prepare, (SIMPLIFY_PASS,)),
    )
