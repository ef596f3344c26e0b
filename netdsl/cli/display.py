"""Output for people: tables, lines of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netdsl.cli.app import echo
from netdsl.cli.tables import Column, TextTable, figures, make_console
from netdsl.text_escaping import escape_line, quote_name
from netdsl.types import format_bytes

if TYPE_CHECKING:
    from netdsl.insight.explain import Compilation, PassDiff
    from netdsl.insight.net_tests import TestResult
    from netdsl.insight.network_diff import NetworkDiff
    from netdsl.insight.summary import Summary
    from netdsl.training.run.dry_run import DryRun, Rates
    from netdsl.training.run.memory import Memory
    from netdsl.training.run.overfit import OverfitResult


def show_test_result(path: str, result: TestResult, is_verbose: bool) -> None:
    """Prints the result of a test: what was found for those that fail, or if `is_verbose` for
    each expectation."""
    verdict = "ok  " if result.ok else "FAIL"
    n = len(result.outcomes)
    echo(f"{verdict} {path}:{result.name}  {n} expectation{'s' * (n != 1)}")
    for o in result.outcomes:
        if is_verbose:
            echo(f"     {'ok  ' if o.ok else 'FAIL'} {o.text}: {o.found}")
        elif not o.ok:
            echo(f"     {o.text}: {o.found}")
    for accuracy in result.published_accuracies:
        shares = (f"{k.replace('top', 'top-')} {v:.2%}" for k, v in accuracy.shares.items())
        conditions = accuracy.describe_conditions()
        echo(f"     published: {', '.join(shares)}" + (f" ({conditions})" if conditions else ""))


def show_summary(found: Summary) -> None:
    columns = (
        Column("layer"),
        Column("call", fold_width=16),
        Column("output", is_whole=True),
        *map(figures, ("params", "MACs", "memory")),
    )
    rows = []
    for r in found.layers:
        counts = [f"{n:,}" if n else "" for n in (r.params, r.macs)]
        rows.append((r.name, r.call, r.output, *counts, format_bytes(r.bytes)))
    TextTable(columns, rows, found.net).show()
    make_console().print(
        f"\n{found.params:,} params, {found.macs:,} MACs and {found.activations:,} activations "
        "per image"
    )
    if found.side_params or found.side_macs:
        echo(
            f"side outputs, which are used only in training: {found.side_params:,} of the params "
            f"and "
            f"{found.side_macs:,} more MACs"
        )
    if found.unread_layers:
        echo(f"used by no output: {_format_names(found.unread_layers)}")


def show_diff(found: NetworkDiff) -> None:
    rows = [
        (label, f"{a:,}", f"{b:,}")
        for label, (a, b) in (("params", found.params), ("MACs", found.macs))
    ]
    TextTable([Column(""), *map(figures, found.net_names)], rows).show()
    for title, changes in (
        ("layers", found.differing_layers),
        ("weights", found.differing_weights),
    ):
        if changes:
            columns = [Column(""), *(Column(name, fold_width=16) for name in found.net_names)]
            entries = [(c.name, c.a or "-", c.b or "-") for c in changes]
            TextTable(columns, entries, f"\n{title} that differ").show()
    console = make_console()
    if found.is_identical:
        console.print("\nthe nets are the same")
    total = len(found.transferable_weights) + len(found.differing_weights)
    console.print(
        f"\n{len(found.transferable_weights)} of {total} weights transfer, "
        f"{found.transferable_params:,} learnable values: "
        f"{escape_line(_format_names(found.transferable_weights))}"
    )


_MAX_CLASS_WEIGHTS = 100


def show_dry_run(found: DryRun) -> None:
    echo(found.recipe)
    epochs = f"{found.epochs} epoch{'s' * (found.epochs != 1)}"
    if found.missing_data is not None:
        echo(f"{epochs}; the number of steps is unknown: {found.missing_data}")
    else:
        echo(f"{found.images:,} images to train on, {found.validation:,} to validate on")
        steps = found.steps * found.epochs
        each = f"{found.steps:,} step{'s' * (found.steps != 1)}"
        total = f": {steps:,} steps" if found.epochs > 1 else ""
        echo(f"{epochs} of {each}{total}")
    if found.rates is not None:
        echo(_describe_rates(found.rates))
    for line in found.inventory.lines() if found.inventory else ():
        echo(line)
    echo(f"{found.trainable_params:,} of {found.params:,} parameters are trained")
    for loss, weights in found.class_weights:
        named = tuple(f"{quote_name(c)} {w:.4g}" for c, w in weights.items())
        echo(f"class weights of {loss}: {_format_names(named, _MAX_CLASS_WEIGHTS)}")
    echo(f"precision: {found.precision}")
    _show_memory(found.memory)
    for g in found.globs:
        echo(f'{g.key} "{g.glob}": {_format_names(g.weights)}')


def _describe_rates(rates: Rates) -> str:
    first, largest, last = (f"{x:.4g}" for x in (rates.first, rates.largest, rates.last))
    if first == largest == last:
        line = f"learning rate: {first}"
    else:
        line = f"learning rate: {first} at first, at most {largest}, {last} at last"
    return line if rates.scale == 1 else f"{line} (`lr_rule` multiplies it by {rates.scale:.4g})"


_MEMORY_LABELS = {
    "weights": "weights",
    "states": "optimizer states and other states",
    "step": "one step",
    "evaluation": "evaluation, on top of a step",
    "copies": "copies of weights and states: the last good ones, and those being saved",
    "data": "images and batches",
}


def _show_memory(memory: Memory) -> None:
    echo("memory, excluding Python itself:")
    for part, size in memory.parts().items():
        echo(f"  {format_bytes(size):>9}  {_MEMORY_LABELS[part]}")
    echo(f"  {format_bytes(memory.total):>9}  total")


def _format_names(names: tuple[str, ...], limit: int = 8) -> str:
    """The names, without the middle of a list longer than `limit`."""
    if len(names) > limit:
        names = (*names[:4], f"... {len(names) - 6} more ...", *names[-2:])
    return ", ".join(names) or "nothing"


def show_overfit(found: OverfitResult) -> None:
    chance_note = f"; guessing gives {found.expected:.4f}" if found.expected else ""
    echo(
        f"first loss {found.first:.4f}{chance_note}"
        + (", far from it" if found.is_start_odd else "")
    )
    echo(
        f"after {found.steps} steps on one batch of {found.images}: "
        f"loss {found.last:.4f}, accuracy {found.accuracy:.2%}"
    )
    if not found.ok:
        echo(
            "a working net can memorise one batch: check the learning rate, the labels and the "
            "last layer"
        )


def show_compilation(found: Compilation) -> None:
    plan, figures = found.plan, found.as_json()
    echo(
        f"{found.title}: {figures['kernels']:,} kernels instead of {figures['kernels_unfused']:,}, "
        f"{format_bytes(figures['bytes'])} moved "
        f"instead of {format_bytes(figures['bytes_unfused'])}, "
        f"arena {format_bytes(plan.arena_bytes)}, {found.seconds:.2f} s"
    )


def show_explanation(found: Compilation, full: bool) -> None:
    echo(found.title)
    for change in found.pass_diffs:
        _show_pass_diff(change, full)
    _show_kinds(found)
    _show_source_lines(found)
    plan = found.plan
    echo(f"\nlongest chain: {found.longest_chain:,} of {len(plan.kernels):,} kernels")
    echo(
        f"memory: arena {format_bytes(plan.arena_bytes)}, "
        f"of which at most {format_bytes(plan.peak_bytes)} are in use; "
        f"inputs, weights and constants {format_bytes(sum(plan.buffers.values()))}"
    )


_MAX_DIFF_LINES = 8


def _show_pass_diff(change: PassDiff, full: bool) -> None:
    lines = change.diff_lines()
    removed, added = (sum(x.startswith(sign) for x in lines) for sign in "-+")
    counts = f"{len(change.before.nodes):,} nodes -> {len(change.after.nodes):,}"
    echo(f"{change.name}: {counts}, {removed:,} lines removed, {added:,} added")
    for line in lines if full else lines[:_MAX_DIFF_LINES]:
        echo(f"    {line}")
    if not full and len(lines) > _MAX_DIFF_LINES:
        echo(f"    ... {len(lines) - _MAX_DIFF_LINES:,} more lines with --full")


def _show_kinds(found: Compilation) -> None:
    from netdsl.insight.explain import tabulate_kinds

    headings = ("launches", "moved", "one node each", "moved")
    rows, total = [], [0, 0, 0, 0]
    for kind, *numbers in tabulate_kinds(found):
        total = [t + f for t, f in zip(total, numbers, strict=True)]
        rows.append((kind, *_format_figures(numbers)))
    rows.append(("all", *_format_figures(total)))
    TextTable([Column("kind"), *map(figures, headings)], rows, "\nkernels").show()


def _format_figures(numbers: list[int]) -> list[str]:
    launches, moved, launches_alone, moved_alone = numbers
    return [f"{launches:,}", format_bytes(moved), f"{launches_alone:,}", format_bytes(moved_alone)]


def _show_source_lines(found: Compilation) -> None:
    from netdsl.insight.explain import source_lines

    columns = (
        Column("place"),
        figures("moved"),
        Column("became", fold_width=16),
        Column("line", fold_width=16),
    )
    rows = [
        (row.place, format_bytes(row.bytes), row.kernels, row.text)
        for row in source_lines(found.plan)
    ]
    TextTable(columns, rows, "\nlines and kernels").show()
