"""What the compiler does with a net: each pass, the kernels and the source lines behind them."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import networkx as nx

from netdsl.backends import explain_choices
from netdsl.dump import dump_stage
from netdsl.errors import Span
from netdsl.insight.compile_target import CompileTarget, prepare_target
from netdsl.ir.printer import to_text
from netdsl.language.program import Program
from netdsl.lower.candidates import Assessment, CandidateChoice
from netdsl.plan.fusion import NO_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.memory_traffic import count_moved_bytes, find_kernel_label, sum_by_kernel_label
from netdsl.plan.partition import partition_kernels
from netdsl.plan.plan import Plan, make_plan
from netdsl.plan.plan_printer import format_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.types import Graph


@dataclass(frozen=True)
class PassDiff:
    """One pass: the IR before and after it."""

    name: str
    before: Graph
    after: Graph

    def diff_lines(self) -> list[str]:
        """The removed (`-`) and added (`+`) lines, with their positions in between."""
        old, new = (to_text(g).splitlines() for g in (self.before, self.after))
        return list(difflib.unified_diff(old, new, "before", "after", lineterm="", n=1))[2:]


@dataclass(frozen=True)
class Compilation:
    """A planned graph, what it was compiled for, its passes, and the time that took."""

    title: str
    pass_diffs: tuple[PassDiff, ...]
    plan: Plan
    seconds: float
    unfused_kernels: tuple[Kernel, ...]

    @property
    def longest_chain(self) -> int:
        """The length of the longest chain of dependent kernels, which cannot run in parallel."""
        return sum(1 for _ in nx.topological_generations(self.plan.dag))

    def as_json(self) -> dict[str, Any]:
        return {
            "of": self.title,
            "kernels": len(self.plan.kernels),
            "kernels_unfused": len(self.unfused_kernels),
            "arena_bytes": self.plan.arena_bytes,
            "peak_bytes": self.plan.peak_bytes,
            "longest_chain": self.longest_chain,
            "bytes": _total_bytes(self.plan.graph, self.plan.kernels),
            "bytes_unfused": _total_bytes(self.plan.graph, self.unfused_kernels),
            "seconds": self.seconds,
        }


def _total_bytes(graph: Graph, kernels: Iterable[Kernel]) -> int:
    return sum(count_moved_bytes(graph, k) for k in kernels)


def compile_target(program: Program, target: CompileTarget, fusion: FusionOptions) -> Compilation:
    """Prepares and plans a target, for a backend that offers `fusion`."""
    started = time.perf_counter()
    pass_diffs: list[PassDiff] = []

    def record_pass(name: str, before: Graph, after: Graph) -> None:
        pass_diffs.append(PassDiff(name, before, after))

    found = prepare_target(program, target, record_pass)
    plan = verify_plan(make_plan(found.graph, fusion))
    dump_stage("plan", lambda: format_plan(plan))
    seconds = time.perf_counter() - started
    return Compilation(
        found.title, tuple(pass_diffs), plan, seconds, partition_kernels(plan.flow, NO_FUSION)
    )


@dataclass(frozen=True)
class ExplainedKernel:
    """A kernel, and what would compute it: the name of a candidate, `timed` if candidates have to
    be timed on the device, `reference` if there is none."""

    name: str
    kind: str
    bytes: int
    computed_by: str
    assessments: tuple[Assessment, ...]
    ops: tuple[str, ...]
    """The operators of its nodes."""
    cost_unit: str

    def as_json(self) -> dict[str, Any]:
        candidates = [
            {"name": a.name, "reason": a.reason, "cost": a.cost} for a in self.assessments
        ]
        facts = {"name": self.name, "kind": self.kind, "ops": self.ops, "bytes": self.bytes}
        found = {"computed_by": self.computed_by, "cost_unit": self.cost_unit}
        return facts | found | {"candidates": candidates}


REFERENCE, TIMED = "reference", "timed"


def explain_kernels(plan: Plan, device: str) -> list[ExplainedKernel]:
    """What a device computes each kernel of a plan with, and why."""
    return [
        ExplainedKernel(
            kernel.name,
            find_kernel_label(plan.graph, kernel),
            count_moved_bytes(plan.graph, kernel),
            _name_choice(choice),
            choice.assessments,
            tuple(plan.graph[n].op for n in kernel.nodes),
            choice.unit,
        )
        for kernel, choice in zip(plan.kernels, explain_choices(device, plan), strict=True)
    ]


def _name_choice(choice: CandidateChoice[Any, Any]) -> str:
    if choice.taken is not None:
        return choice.taken.name
    return TIMED if any(a.reason is None for a in choice.assessments) else REFERENCE


@dataclass(frozen=True)
class SourceLine:
    """One line of a file, the kernels compiled from it, and the bytes that they move."""

    place: str
    text: str
    kernels: str
    bytes: int


def source_lines(plan: Plan) -> list[SourceLine]:
    """The kernels compiled from each line of the file, in the order of the lines."""
    by_line: dict[tuple[str, int], tuple[Span, Counter[str], int]] = {}
    for kernel in plan.kernels:
        span = _find_span(plan.graph, kernel)
        if span is None:
            continue
        key = (span.source.name, span.position[0])
        _, kinds, total = by_line.get(key, (span, Counter[str](), 0))
        kinds[find_kernel_label(plan.graph, kernel)] += 1
        by_line[key] = (span, kinds, total + count_moved_bytes(plan.graph, kernel))
    rows = []
    for (name, line), (span, kinds, total) in sorted(by_line.items()):
        text = span.source.text.splitlines()[line - 1].strip()
        counts = ", ".join(f"{n} {kind}" if n > 1 else kind for kind, n in kinds.most_common())
        rows.append(SourceLine(f"{name}:{line}", text, counts, total))
    return rows


def _find_span(graph: Graph, kernel: Kernel) -> Span | None:
    """The source location of a kernel's main node, else of any of its nodes that has one."""
    names = (kernel.name, *reversed(kernel.nodes))
    spans = (graph[n].span for n in names if n in graph.nodes)
    return next((s for s in spans if s is not None), None)


def tabulate_kinds(compilation: Compilation) -> list[tuple[str, int, int, int, int]]:
    """Launches and bytes by kind of kernel, fused and with one node per kernel, most bytes
    first."""
    graph = compilation.plan.graph
    fused, unfused = (
        sum_by_kernel_label(graph, compilation.plan.kernels),
        sum_by_kernel_label(graph, compilation.unfused_kernels),
    )
    names = sorted({*fused, *unfused}, key=lambda k: -fused.get(k, unfused.get(k, (0, 0)))[1])
    return [(k, *fused.get(k, (0, 0)), *unfused.get(k, (0, 0))) for k in names]
