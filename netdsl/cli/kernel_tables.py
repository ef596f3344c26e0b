"""Output of `netdsl explain --kernels`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from netdsl.cli.app import echo
from netdsl.cli.tables import Column, TextTable, figures
from netdsl.types import format_bytes

if TYPE_CHECKING:
    from netdsl.insight.explain import ExplainedKernel
    from netdsl.lower.candidates import Assessment

_WIDTH = 100
"""Columns of reasons."""
_MAX_OPS = 6
_MAX_NAMES = 4
"""As many candidates are named that the same stands against, unless no candidate is left."""


def show_kernels(kernels: Sequence[ExplainedKernel]) -> None:
    """A table of kernels and what computes them."""
    columns = (Column("kernel"), Column("kind"), figures("moved"), Column("computed by"))
    rows = [(k.name, k.kind, format_bytes(k.bytes), k.computed_by) for k in kernels]
    TextTable(columns, rows, "\nkernels").show()


def show_reasons(kernels: Sequence[ExplainedKernel]) -> None:
    """Each kernel with its candidates: those that can compute it, the cheapest first and the one
    that is taken marked; then the others, by the reason against them."""
    for kernel in kernels:
        facts = f"{_summarize_ops(kernel)}, {format_bytes(kernel.bytes)}"
        echo(f"\n{kernel.name} ({facts}): {kernel.computed_by}")
        for line in _list_candidates(kernel):
            echo(line)


def _summarize_ops(kernel: ExplainedKernel) -> str:
    """Its operators, each once; its kind if it moves a value alone."""
    ops = list(dict.fromkeys(kernel.ops))
    shown = " + ".join(ops[:_MAX_OPS]) or kernel.kind
    return f"{shown} + {len(ops) - _MAX_OPS} more" if len(ops) > _MAX_OPS else shown


def _list_candidates(kernel: ExplainedKernel) -> Iterator[str]:
    able = [a for a in kernel.assessments if a.reason is None]
    width = max((len(a.name) for a in able), default=0)
    for a in sorted(able, key=lambda a: math.inf if a.cost is None else a.cost):
        mark = "*" if a.name == kernel.computed_by else " "
        yield f"  {mark} {a.name:<{width}}  {format_cost(a, kernel.cost_unit)}"
    reasons: dict[str, list[str]] = {}
    for a in kernel.assessments:
        if a.reason is not None:
            reasons.setdefault(a.reason, []).append(a.name)
    for reason, names in sorted(reasons.items(), key=lambda item: len(item[1])):
        is_short = len(names) <= _MAX_NAMES or not able
        text = f"{', '.join(names) if is_short else f'{len(names)} others'}: {reason}"
        yield fill(text, _WIDTH, initial_indent="  - ", subsequent_indent="    ")


def format_cost(assessment: Assessment, unit: str) -> str:
    if assessment.cost is None:
        return "will be timed on the device"
    if math.isinf(assessment.cost):
        return "only if nothing else can"
    return f"{assessment.cost:,.0f} {unit}"


def show_reference_count(kernels: Sequence[ExplainedKernel]) -> None:
    """How many kernels no candidate computes."""
    from netdsl.insight.explain import REFERENCE

    count = sum(k.computed_by == REFERENCE for k in kernels)
    echo(f"\n{len(kernels):,} kernels, {count:,} of them by reference")
