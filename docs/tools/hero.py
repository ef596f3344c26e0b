"""The picture of the README: a file, its graph, its curve, its filters, drawn by netdsl's commands.

python -m docs.tools.hero docs/gallery/hero.svg
"""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
FILE = "models/digits.net"
WIDTH, HEIGHT = 1120, 616
INK, QUIET, LINE = "#0f172a", "#64748b", "#cbd5e1"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "-apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

COLOURS = (
    (r"#[^\n]*", "#64748b"),
    (r"\b(?:net|test|data|train|expect)\b(?= |\n)", "#9333ea"),
    (r"\b\w+(?=:)", "#b45309"),
    (r"\b\w+(?=\()", "#1d4ed8"),
    (r"\b(?:relu|gradients|same)\b", "#1d4ed8"),
    (r'"[^"]*"|\b\d[\d_.x]*\b', "#047857"),
    (r"->|[{}()=<>,]+", "#475569"),
)
"""The parts of a line of code, the first that matches, and their colours."""
CODE = re.compile("|".join(f"({pattern})" for pattern, _ in COLOURS))


@dataclass(frozen=True)
class Tiles:
    """Where a sheet of `filters` or `visualize` has its pictures: in pixels, labels left out."""

    left: int
    top: int
    side: int
    across: int
    down: int

    def cut(self, sheet: Image.Image, row: int, column: int) -> Image.Image:
        x, y = self.left + column * self.across, self.top + row * self.down
        return sheet.crop((x, y, x + self.side, y + self.side))


FILTERS = Tiles(left=0, top=0, side=63, across=65, down=86)
PARTS = Tiles(left=92, top=19, side=80, across=82, down=128)
CHANNELS = (1, 2, 3, 4)


def netdsl(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "netdsl", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stderr + done.stdout


def write_text(x: float, y: float, text: str, size: float, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" style="font-size:{size}px;fill:{INK};{style}">{text}</text>'


def write_caption(x: float, y: float, title: str, command: str) -> str:
    text = f'{title}<tspan dx="8" style="font:11px {MONO};fill:{QUIET}">{command}</tspan>'
    return write_text(x, y, text, 13, f"font-family:{SANS};font-weight:600")


def colour_line(line: str) -> str:
    parts, end = [], 0
    for match in CODE.finditer(line):
        colour = COLOURS[(match.lastindex or 1) - 1][1]
        parts += [escape(line[end : match.start()], quote=False)]
        parts += [f'<tspan fill="{colour}">{escape(match.group(), quote=False)}</tspan>']
        end = match.end()
    return "".join([*parts, escape(line[end:], quote=False)])


def write_code(x: float, y: float, lines: list[str], step: float, ink: str = INK) -> str:
    style = f"font-family:{MONO};white-space:pre;fill:{ink}"
    return "\n".join(
        write_text(x, y + i * step, line, 11.8, style) for i, line in enumerate(lines) if line
    )


def nest(svg: str, place: tuple[float, float, float, float], view: str | None = None) -> str:
    """A drawing within the picture: only what is in `view`, in the place x, y, width, height."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    found = re.search(r'viewBox="([^"]*)"', head)
    x, y, width, height = place
    box = view or (found[1] if found else "")
    return (
        f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}" '
        f"font-family=\"'DejaVu Sans', Verdana, sans-serif\" "
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )


def write_tile(tile: Image.Image, x: float, y: float, side: float) -> str:
    data = io.BytesIO()
    tile.convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(data, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return (
        f'<image x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" '
        f'style="image-rendering:pixelated" href="{address}"/>'
    )


def write_filters(sheet: Image.Image, x: float, y: float) -> str:
    return "\n".join(
        write_tile(FILTERS.cut(sheet, i // 4, i % 4), x + i % 8 * 44, y + i // 8 * 45, 41)
        for i in range(16)
    )


def write_parts(sheet: Image.Image, x: float, y: float) -> str:
    """For each channel, the three parts of digits that activate it most."""
    parts = []
    for i in range(len(CHANNELS)):
        left, top = x + i % 2 * 180, y + i // 2 * 62
        parts += [write_tile(PARTS.cut(sheet, i, j), left + j * 57, top, 55) for j in range(3)]
    return "\n".join(parts)


def draw(folder: Path) -> str:
    (folder / "models").symlink_to(ROOT / "models")
    channels = "conv2:" + ",".join(map(str, CHANNELS))
    trained = netdsl("train", FILE, "--out", "run", folder=folder)
    netdsl("draw", FILE, "-o", "graph.svg", folder=folder)
    netdsl("plot", "run", "--metric", "accuracy", "-o", "c.svg", "--size", "460x240", folder=folder)
    netdsl("filters", "run", "-o", "filters.png", folder=folder)
    views = ("--dataset", "run", "--neuron", "--steps", "128", "--tile", "80")
    netdsl("visualize", "run", channels, *views, "-o", "parts.png", folder=folder)
    results = re.findall(r"^(?:best|expected|test) .*$", trained, re.MULTILINE)
    code = [colour_line(line) for line in (ROOT / FILE).read_text().splitlines()]
    shell = [f'<tspan fill="#94a3b8">$</tspan> netdsl train {FILE}', *results]
    right = 752
    graph, curve = (folder / "graph.svg").read_text(), (folder / "c.svg").read_text()
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img">',
            "<title>A .net file, its graph, its learning curve and its filters</title>",
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="14" fill="#ffffff" '
            f'stroke="{LINE}"/>',
            '<rect x="20" y="52" width="520" height="416" rx="8" fill="#f8fafc"/>',
            write_caption(24, 36, "The file", FILE),
            write_code(32, 82, code, 22.6),
            f'<rect x="20" y="480" width="520" height="116" rx="8" fill="{INK}"/>',
            write_code(32, 508, shell, 23, "#e2e8f0"),
            write_caption(570, 36, "Its graph", "netdsl draw"),
            nest(graph, (562, 46, 170, 556), "78 62 170 556"),
            write_caption(right, 36, "Its curve", "netdsl plot"),
            nest(curve, (right - 8, 52, 366, 191)),
            write_caption(right, 280, "Its filters", "netdsl filters"),
            write_filters(Image.open(folder / "filters.png"), right, 294),
            write_caption(right, 430, "What activates conv2", "netdsl visualize"),
            write_parts(Image.open(folder / "parts.png"), right, 446),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[1]).write_text(draw(Path(folder)))
