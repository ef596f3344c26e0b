"""The passes in the order in which a graph meets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from netdsl.dump import dump_stage
from netdsl.ir.collector import pause_collector
from netdsl.ir.text import to_text
from netdsl.ir.verify import verify
from netdsl.passes.algebraic import algebraic
from netdsl.passes.fold import Folded, fold, split
from netdsl.passes.lower import lower, lower_im2col
from netdsl.passes.precision import mixed
from netdsl.passes.simplify import simplify
from netdsl.types import Graph

Watch = Callable[[str, Graph, Graph], None]
"""Is shown each pass by its name, with the graph before and after it."""


@dataclass(frozen=True)
class Pass:
    """One step of the pipeline; `run` is pure."""

    name: str
    run: Callable[[Graph], Graph]


SIMPLIFY = Pass("simplify", simplify)
LOWER = Pass("lower", lower)
IM2COL = Pass("im2col", lower_im2col)


def precision(low: str) -> Pass:
    """16-bit arithmetic where it is good enough."""
    return Pass("mixed", lambda graph: mixed(graph, low))


ALGEBRAIC = Pass("algebraic", algebraic)
"""What comes after 16-bit arithmetic, where memory is dearer than products."""
FORWARD = (SIMPLIFY, LOWER)
"""Before the gradient is taken, so that backward is lowered by itself; also before folding."""
STEP = (SIMPLIFY,)
"""What a training step meets once its gradient and updates are there."""


@pause_collector()
def run(graph: Graph, passes: Sequence[Pass], watch: Watch | None = None) -> Graph:
    """The graph after all passes, verified after each. Raises AssertionError, with the IR around
    the fault, where a pass breaks what must hold."""
    for step in passes:
        after = verify(step.run(graph))
        show(watch, step.name, graph, after)
        graph = after
    return graph


def show(watch: Watch | None, name: str, before: Graph, after: Graph) -> None:
    """Shows a pass to who watches, and writes it where that is asked for."""
    dump_stage(name, lambda: f"{to_text(before)}\n{to_text(after)}")
    if watch is not None:
        watch(name, before, after)


@pause_collector()
def inference(
    graph: Graph,
    watch: Watch | None = None,
    forward: Sequence[Pass] = FORWARD,
    low: str | None = None,
) -> Folded:
    """An evaluation graph made ready: lowered, simplified and folded, in 16 bits where `low` names
    their type. Its weights wait for no input in the type in which they are read."""
    before = run(graph, forward, watch)
    whole = fold(before)
    found = split(whole)
    show(watch, "fold", before, verify(found.main))
    if low:
        lower_precision = precision(low)
        before, found = found.main, split(lower_precision.run(whole))
        show(watch, lower_precision.name, before, verify(found.main))
    return Folded(run(found.main, (SIMPLIFY,), watch), run(found.prepare, (SIMPLIFY,)))
