"""What the compiler does with a net: each pass, the kernels and the lines behind them."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from netdsl.errors import Span
from netdsl.ir.text import to_text
from netdsl.language.elaborate import Settings, Shrink, elaborate
from netdsl.language.program import Program
from netdsl.passes import pipeline
from netdsl.passes.pipeline import Pass
from netdsl.plan.fusion import ALONE, Fusion
from netdsl.plan.kernel import Kernel
from netdsl.plan.partition import partition
from netdsl.plan.plan import Plan, make_plan
from netdsl.plan.traffic import by_kind, kind_of, moved
from netdsl.plan.verify import verify_plan
from netdsl.train.compile import compile_step
from netdsl.train.fit import check_loss
from netdsl.train.recipe import Recipe, net_of, plain, resolve
from netdsl.types import Graph


@dataclass(frozen=True)
class Target:
    """What is compiled: a net for inference or as a training step, at a batch size, perhaps its
    small version. `name` is the net's, or for training a recipe's."""

    name: str | None = None
    training: bool = False
    batch: int | None = None
    forward: tuple[Pass, ...] = pipeline.FORWARD
    shrink: Shrink | None = None


@dataclass(frozen=True)
class Change:
    """One pass: the IR before and after it."""

    name: str
    before: Graph
    after: Graph

    def lines(self) -> list[str]:
        """The lines that went (`-`) and came (`+`), with the places in between."""
        old, new = (to_text(g).splitlines() for g in (self.before, self.after))
        return list(difflib.unified_diff(old, new, "before", "after", lineterm="", n=1))[2:]


@dataclass(frozen=True)
class Compiled:
    """A planned graph, what it was made for, how it came to be, and how long that took."""

    title: str
    changes: tuple[Change, ...]
    plan: Plan
    seconds: float
    unfused: tuple[Kernel, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "of": self.title,
            "kernels": len(self.plan.kernels),
            "kernels_unfused": len(self.unfused),
            "arena_bytes": self.plan.arena,
            "peak_bytes": self.plan.peak,
            "bytes": _total(self.plan.graph, self.plan.kernels),
            "bytes_unfused": _total(self.plan.graph, self.unfused),
            "seconds": self.seconds,
        }


def _total(graph: Graph, kernels: Iterable[Kernel]) -> int:
    return sum(moved(graph, k) for k in kernels)


def compiled(program: Program, target: Target, fusion: Fusion) -> Compiled:
    """Runs the pipeline for a target and plans what comes out, for a backend that offers `fusion`.

    A training step follows the recipe that is named, else one of the file that trains this net,
    else plain SGD.
    """
    started = time.perf_counter()
    changes: list[Change] = []

    def watch(name: str, before: Graph, after: Graph) -> None:
        changes.append(Change(name, before, after))

    title, graph = _graph(program, target, watch)
    plan = verify_plan(make_plan(graph, fusion))
    seconds = time.perf_counter() - started
    return Compiled(title, tuple(changes), plan, seconds, partition(graph, ALONE))


def _graph(program: Program, target: Target, watch: pipeline.Watch) -> tuple[str, Graph]:
    """The graph to be planned, and what it is in a few words."""
    batch = target.batch or 1
    if not target.training:
        settings = Settings(batch=batch, shrink=target.shrink)
        network = elaborate(program, program.net(target.name), settings)
        graph = pipeline.inference(network.graph, watch, target.forward).main
        return f"{network.name}, inference, batch {batch}", graph
    found, recipe = _recipe(program, target.name)
    if recipe is None:
        net, recipe = program.net(target.name), plain(program.net(target.name))
        settings = Settings(batch=batch, training=True, shrink=target.shrink)
        network = elaborate(program, net, settings)
    else:
        settings = recipe.settings(True, target.batch)
        if target.shrink is not None:
            settings = replace(settings, shrink=target.shrink)
        network = elaborate(program, recipe.net, settings)
    check_loss(network, recipe)
    step = compile_step(network, recipe, watch, target.forward)
    return f"{network.name}, training by {found}, batch {network.batch}", step


def _recipe(program: Program, name: str | None) -> tuple[str, Recipe | None]:
    """The recipe of that name, else the file's own for the net of that name, if it has one."""
    if program.has_recipe(name):
        return f"`train {name}`", resolve(program, name)
    if name is None and program.section("train"):
        return "the file's recipe", resolve(program)
    net = program.net(name)
    for section in program.sections("train"):
        if program.net(net_of(program, section.name)) == net:
            called = f"`train {section.name}`" if section.name else "the file's recipe"
            return called, resolve(program, section.name)
    return "plain SGD", None


@dataclass(frozen=True)
class Origin:
    """One line of a file, the kernels that it became, and the bytes that they move."""

    place: str
    text: str
    kernels: str
    bytes: int


def origins(plan: Plan) -> list[Origin]:
    """Which line of the file became which kernels, in the order of the lines."""
    found: dict[tuple[str, int], tuple[Span, Counter[str], int]] = {}
    for kernel in plan.kernels:
        span = _span_of(plan.graph, kernel)
        if span is None:
            continue
        at = (span.source.name, span.position[0])
        _, kinds, total = found.get(at, (span, Counter[str](), 0))
        kinds[kind_of(plan.graph, kernel)] += 1
        found[at] = (span, kinds, total + moved(plan.graph, kernel))
    rows = []
    for (name, line), (span, kinds, total) in sorted(found.items()):
        text = span.source.text.splitlines()[line - 1].strip()
        counts = ", ".join(f"{n} {kind}" if n > 1 else kind for kind, n in kinds.most_common())
        rows.append(Origin(f"{name}:{line}", text, counts, total))
    return rows


def _span_of(graph: Graph, kernel: Kernel) -> Span | None:
    """The place of a kernel's main node, else of any that has one."""
    names = (kernel.name, *reversed(kernel.nodes))
    spans = (graph[n].span for n in names if n in graph.nodes)
    return next((s for s in spans if s is not None), None)


def kinds(found: Compiled) -> list[tuple[str, int, int, int, int]]:
    """Kinds of kernels: launches and bytes, fused and one node a kernel, the most bytes first."""
    graph = found.plan.graph
    fused, alone = by_kind(graph, found.plan.kernels), by_kind(graph, found.unfused)
    names = sorted({*fused, *alone}, key=lambda k: -fused.get(k, alone.get(k, (0, 0)))[1])
    return [(k, *fused.get(k, (0, 0)), *alone.get(k, (0, 0))) for k in names]
