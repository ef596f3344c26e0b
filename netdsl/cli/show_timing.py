"""The tables of `netdsl time`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from netdsl.cli.app import show
from netdsl.cli.show import add_row, wide_console

if TYPE_CHECKING:
    from netdsl.backends.roofline import Ceilings
    from netdsl.insight.profiler import Measurement, Profile

_SLOWEST = 20


def show_timing(found: Profile, full: bool) -> None:
    limit = found.ceilings
    show(
        f"{found.title}, on {found.device}: {1e3 * found.seconds:.3f} ms a step, "
        f"{found.images_per_second:,.1f} images/s\n"
        f"limits measured here: {limit.flops / 1e9:,.0f} GFLOP/s{_narrow(limit)}, "
        f"{limit.bandwidth / 1e9:,.1f} GB/s{_cached(limit)}"
    )
    total = found.measurement
    kernels = [
        ((k.name, k.kind + (" by reference" if k.is_by_reference else ""), k.phase), k.measurement)
        for k in found.kernels
    ]
    _show("kernels", ("kernel", "kind", "phase"), kernels, total, full)
    layers = [
        (
            (
                layer.name,
                _ms(layer.phase_seconds("forward")),
                _ms(layer.phase_seconds("backward") + layer.phase_seconds("update")),
            ),
            layer.measurement,
        )
        for layer in found.layers
    ]
    _show("layers", ("layer", "forward ms", "backward ms"), layers, total, full)
    if any(k.measurement.efficiency > 1 and k.is_filtered for k in found.kernels):
        show(
            "\nMore than 100%: convolutions by minimal filtering (Winograd) need but a quarter to"
            "\na third of the multiplications that they are counted with."
        )


def _narrow(limit: Ceilings) -> str:
    return f" ({limit.flops_16bit / 1e9:,.0f} in 16 bits)" if limit.flops_16bit else ""


def _cached(limit: Ceilings) -> str:
    most = limit.bandwidth_for(0)
    return f" (up to {most / 1e9:,.1f} in caches)" if most > limit.bandwidth else ""


def _show(
    title: str,
    headings: Sequence[str],
    rows: Sequence[tuple[Iterable[str], Measurement]],
    total: Measurement,
    full: bool,
) -> None:
    from rich.table import Table

    table = Table(title=f"\n{title}", box=None, pad_edge=False, title_justify="left")
    for heading in headings:
        right = heading.endswith("ms")
        table.add_column(heading, no_wrap=True, justify="right" if right else "left")
    for heading in ("ms", "of all", "GFLOP/s", "GB/s", "of limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = rows if full else rows[:_SLOWEST]
    for names, work in shown:
        add_row(table, *names, *_figures(work, total))
    if len(shown) < len(rows):
        rest = total.seconds - sum(work.seconds for _, work in shown)
        words = (f"... {len(rows) - len(shown):,} more with --full", "", "")
        add_row(table, *words, _ms(rest), _percent(rest, total.seconds), "", "", "")
    add_row(table, "sum", "", "", *_figures(total, total))
    wide_console().print(table)


def _figures(work: Measurement, total: Measurement) -> list[str]:
    seconds = work.seconds or float("nan")
    return [
        _ms(work.seconds),
        _percent(work.seconds, total.seconds),
        f"{work.flops / seconds / 1e9:,.1f}",
        f"{work.bytes / seconds / 1e9:,.1f}",
        f"{work.efficiency:.0%}",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
