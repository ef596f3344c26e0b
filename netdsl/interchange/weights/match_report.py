"""What was matched with what, as lines for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from netdsl.interchange.transfer_report import TransferReport
from netdsl.interchange.weights.drawn_layers import SEED, layer_path
from netdsl.interchange.weights.tensor_matching import MatchedModule, WeightsMatch
from netdsl.language.network import Network
from netdsl.text_escaping import escape_line
from netdsl.types import dims

_MAX_ROWS = 24
_MAX_UNUSED, _MAX_DRAWN = 8, 8


def report_match(
    match: WeightsMatch,
    network: Network,
    origin: str,
    out: Path,
    notes: Sequence[str],
    drawn: Collection[str] = (),
) -> TransferReport:
    """Says which module of the file each layer's states come from, and what the net has no use
    for. The layers `drawn` have none in the file."""
    sources = {m.source: m.shapes for m in match.modules}  # a folded norm has its product's
    size = sum(math.prod(shape) for shapes in sources.values() for shape in shapes)
    paths = dict.fromkeys(layer_path(n.name) for n in network.graph.states)
    values = {
        "net": network.name,
        "weights": str(out),
        "matched": [
            {"layer": m.path, "source": m.source, "shapes": [list(x) for x in m.shapes]}
            for m in match.modules
        ],
        "unused": {name: list(shape) for name, shape in match.unused.items()},
        "drawn": [path for path in paths if path in drawn],
        "notes": list(notes),
    }
    count = f"{len(match.modules):,} of {len(paths):,}" if drawn else f"all {len(paths):,}"
    lines = (
        *_table(match.modules),
        *_unused_lines(match),
        *_drawn_lines([path for path in paths if path in drawn]),
        *(f"note: {n}" for n in notes),
        f"{out}: {count} layers of `{network.name}` have their weights, "
        f"{size:,} values from {escape_line(origin)}",
    )
    return TransferReport(tuple(line for line in lines if line), values)


def _table(modules: Sequence[MatchedModule]) -> Iterator[str]:
    """A row for each layer, or in large nets for each group of them that one module contains."""
    depth = 1_000
    rows = list(_rows(modules, depth))
    while len(rows) > _MAX_ROWS and depth > 1:
        depth = min(depth, max(m.source.count(".") for m in modules) + 1) - 1
        rows = list(_rows(modules, depth))
    widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
    for source, path, what in rows:
        yield f"{source:<{widths[0]}} -> {path:<{widths[1]}}  {what}".rstrip()


def _rows(modules: Sequence[MatchedModule], depth: int) -> Iterator[tuple[str, str, str]]:
    groups: dict[str, list[MatchedModule]] = {}
    for m in modules:
        groups.setdefault(".".join(m.source.split(".")[:depth]), []).append(m)
    for group, inside in groups.items():
        if len(inside) == 1:
            (m,) = inside
            yield escape_line(m.source), m.path, "  ".join(map(dims, m.shapes))
            continue
        path = ".".join((*_common_parts([m.path.split(".") for m in inside]), "*"))
        yield f"{escape_line(group)}.*", path, f"{len(inside):,} layers"


def _drawn_lines(paths: Sequence[str]) -> Iterator[str]:
    if paths:
        more = len(paths) - _MAX_DRAWN
        rest = f" and {more:,} more" if more > 0 else ""
        yield f"drawn from seed {SEED}: {', '.join(paths[:_MAX_DRAWN])}{rest}"


def _common_parts(paths: Sequence[Sequence[str]]) -> Iterator[str]:
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            return
        yield parts[0]


def _unused_lines(match: WeightsMatch) -> Iterator[str]:
    if match.unused:
        yield "not used by the net:"
    for name, shape in list(match.unused.items())[:_MAX_UNUSED]:
        yield f"  {escape_line(name)}  {dims(shape)}"
    more = len(match.unused) - _MAX_UNUSED
    if more > 0:
        yield f"  and {more:,} more"
