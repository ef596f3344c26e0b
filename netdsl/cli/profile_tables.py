"""The tables of `netdsl time`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from netdsl.cli.app import echo
from netdsl.cli.tables import Column, TextTable, figures

if TYPE_CHECKING:
    from netdsl.backends.roofline import Ceilings
    from netdsl.insight.profiler import Measurement, Profile

_MAX_ROWS = 20


def show_profile(profile: Profile, full: bool) -> None:
    ceilings = profile.ceilings
    echo(
        f"{profile.title}, on {profile.device}: {1e3 * profile.seconds:.3f} ms per step, "
        f"{profile.images_per_second:,.1f} images/s\n"
        f"limits measured here: "
        f"{ceilings.flops / 1e9:,.0f} GFLOP/s{_format_narrow_limit(ceilings)}, "
        f"{ceilings.bandwidth / 1e9:,.1f} GB/s{_format_cache_limit(ceilings)}"
    )
    total = profile.measurement
    kernels = [
        ((k.name, k.kind + (" by reference" if k.is_by_reference else ""), k.phase), k.measurement)
        for k in profile.kernels
    ]
    _show_table("kernels", ("kernel", "kind", "phase"), kernels, total, full)
    count = sum(k.is_by_reference for k in profile.kernels)
    if count:
        echo(
            f"\n{count:,} of {len(kernels):,} kernels by reference: "
            "`netdsl explain FILE --kernels --why` prints why."
        )
    layers = [
        (
            (
                layer.name,
                _format_ms(layer.phase_seconds("forward")),
                _format_ms(layer.phase_seconds("backward") + layer.phase_seconds("update")),
            ),
            layer.measurement,
        )
        for layer in profile.layers
    ]
    _show_table("layers", ("layer", "forward ms", "backward ms"), layers, total, full)
    if any(k.measurement.efficiency > 1 and k.is_filtered for k in profile.kernels):
        echo(
            "\nMore than 100%: convolutions by minimal filtering (Winograd) need only a quarter to"
            "\na third of the multiplications that are counted for them."
        )


def _format_narrow_limit(ceilings: Ceilings) -> str:
    return f" ({ceilings.flops_16bit / 1e9:,.0f} in 16 bits)" if ceilings.flops_16bit else ""


def _format_cache_limit(ceilings: Ceilings) -> str:
    peak = ceilings.bandwidth_for(0)
    return f" (up to {peak / 1e9:,.1f} in caches)" if peak > ceilings.bandwidth else ""


def _show_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[tuple[Iterable[str], Measurement]],
    total: Measurement,
    full: bool,
) -> None:
    names = [figures(h) if h.endswith("ms") else Column(h) for h in headings]
    columns = [*names, *map(figures, ("ms", "of all", "GFLOP/s", "GB/s", "of limit"))]
    visible_rows = rows if full else rows[:_MAX_ROWS]
    cells = [(*names, *_format_measurement(work, total)) for names, work in visible_rows]
    if len(visible_rows) < len(rows):
        rest = total.seconds - sum(work.seconds for _, work in visible_rows)
        words = (f"... {len(rows) - len(visible_rows):,} more with --full", "", "")
        cells.append((*words, _format_ms(rest), _format_percent(rest, total.seconds), "", "", ""))
    cells.append(("sum", "", "", *_format_measurement(total, total)))
    TextTable(columns, cells, f"\n{title}").show()


def _format_measurement(measurement: Measurement, total: Measurement) -> list[str]:
    seconds = measurement.seconds or float("nan")
    return [
        _format_ms(measurement.seconds),
        _format_percent(measurement.seconds, total.seconds),
        f"{measurement.flops / seconds / 1e9:,.1f}",
        f"{measurement.bytes / seconds / 1e9:,.1f}",
        f"{measurement.efficiency:.0%}",
    ]


def _format_ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def _format_percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
