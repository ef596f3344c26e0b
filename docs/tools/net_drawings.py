"""The graphs of the files in `models/`, for their pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from netdsl.insight.draw.drawing import draw_svg
from netdsl.language.elaborate import elaborate
from netdsl.language.program import load_program


@dataclass(frozen=True)
class NetDrawing:
    """The graph of a net as an SVG file."""

    net: str
    svg: str


def draw_first_net(path: Path) -> NetDrawing | None:
    """The first net of a file, or None if the file has blocks only."""
    return _draw(path, path.stat().st_mtime_ns)


@cache
def _draw(path: Path, changed: int) -> NetDrawing | None:
    """Drawn again only if the file has changed."""
    program = load_program(str(path))
    name = next(iter(program.nets), None)
    return NetDrawing(name, draw_svg(elaborate(program, name))) if name else None
