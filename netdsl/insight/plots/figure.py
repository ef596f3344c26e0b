"""Figures of matplotlib in one style, without its global state: their size, colours and files."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netdsl.errors import fail
from netdsl.file_io import write_atomically
from netdsl.optional_imports import import_optional
from netdsl.training.store import output_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
PIXELS_PER_INCH = 96
"""Of a PNG, and of an SVG in a browser, so that a size in pixels is that of both."""
_PADDING = 0.08
"""Inches around a figure and between its panels."""
MIN_PIXELS, MAX_PIXELS = 200, 20_000
"""The shortest and the longest side of a figure."""

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
"""Text, less important text, the lines behind the data, the background."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Those of Okabe and Ito (2008), which people who cannot tell red from green can tell apart;
without yellow, which is too light for a line on white."""
MANY_COLOURS = "viridis"
"""The colour map for more lines than there are colours, and for heat maps: it is as readable in
grey, and for the colour-blind."""

_STYLE = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica", "sans-serif"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a name may contain a dollar sign
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": PAPER,
    "figure.dpi": PIXELS_PER_INCH,
    "savefig.dpi": PIXELS_PER_INCH,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "netdsl",  # the same ids every time
    "pdf.fonttype": 42,
}
_lock = threading.RLock()
"""Held while a figure is made or saved: matplotlib keeps its settings in the module."""


@contextmanager
def figure_style() -> Iterator[None]:
    """The settings with which figures are made and saved: matplotlib's defaults, whatever the user
    has configured, and ours on top. They end with the block. Raises NetError if matplotlib is
    missing."""
    matplotlib = import_matplotlib()
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in _KEPT}
    with _lock, matplotlib.rc_context({**defaults, **_STYLE}):
        yield


_KEPT = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch")
"""Settings that are not about the look of a figure."""


def import_matplotlib() -> Any:
    """Raises NetError if matplotlib is not installed."""
    help = "install it with `pip install 'netdsl[plot]'`"
    import_optional("matplotlib.figure", "a plot needs matplotlib", help)
    return import_optional("matplotlib", "a plot needs matplotlib", help)


def make_figure(width: int, height: int, title: str) -> Figure:
    """An empty figure of a size in pixels, to be filled within `figure_style`. Its title is not
    drawn: it is what a screen reader says. Raises NetError if matplotlib is missing."""
    import_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = width / PIXELS_PER_INCH, height / PIXELS_PER_INCH
    layout = ConstrainedLayoutEngine(w_pad=_PADDING, h_pad=_PADDING)
    figure = Figure(figsize=size, layout=layout)
    figure.set_label(title)
    return figure


def parse_size(text: str) -> tuple[int, int]:
    """The width and height in pixels of a text such as `1200x800`. Raises NetError if it is
    none, or if a side is less than MIN_PIXELS or more than MAX_PIXELS."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text, re.ASCII)
    if found is None:
        help = "write width x height in pixels: `--size 1200x800`"
        raise fail(f"`{text}` is not a size", help=help)
    width, height = int(found[1]), int(found[2])
    if not MIN_PIXELS <= min(width, height) <= max(width, height) <= MAX_PIXELS:
        message = f"a picture of {text} pixels is not possible"
        raise fail(message, help=f"each side can have {MIN_PIXELS} to {MAX_PIXELS:,} pixels")
    return width, height


def check_format(path: Path) -> None:
    """Raises NetError if a figure cannot be saved under a name like that of a path."""
    output_files.check_format(path, FORMATS, "the suffix selects the format")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF, by the suffix of `path`; the same figure gives the same
    bytes. Raises NetError if there is no such format, or if the file cannot be written."""
    check_format(path)
    write_atomically(path, render_figure(figure, path.suffix.lower()))


_NO_DATE: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    ".pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}
"""What a file would say of when and by what it was made, by format."""


def render_figure(figure: Figure, suffix: str, is_transparent: bool = False) -> bytes:
    """The bytes of a file with that suffix."""
    metadata: dict[str, Any] = {**_NO_DATE[suffix], "Title": figure.get_label() or None}
    content = io.BytesIO()
    with figure_style(), warnings.catch_warnings():
        # of a letter that the font lacks, or of too little room: the picture shows it
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(
            content, format=suffix[1:], metadata=metadata, transparent=is_transparent or None
        )
    return content.getvalue()


def svg_fragment(figure: Figure) -> str:
    """The figure as an `svg` element to be embedded in a page. Texts and axes have the colour of
    the text around it, the background is transparent, ids begin with a checksum of the title and
    the content, so that several fit in one page, and the title names it for screen readers."""
    text = render_figure(figure, ".svg", is_transparent=True).decode()
    text = text[text.index("<svg") :].strip()
    text = _DOCUMENT_PARTS.sub("", text)
    title = escape(str(figure.get_label()) or "plot")
    prefix = f"n{hashlib.sha256(f'{title}{text}'.encode()).hexdigest()[:10]}-"
    text = _TAG.sub(lambda found: _adapt_tag(found[0], prefix), text)
    head = f'<svg role="img" aria-labelledby="{prefix}title" style="{_FRAGMENT_STYLE}"'
    opening, rest = text.removeprefix("<svg").split(">", 1)
    return f'{head}{opening}><title id="{prefix}title">{title}</title>{rest}'


_TAG = re.compile(r"<[^>]+>")
_DOCUMENT_PARTS = re.compile(
    r"\s*<(?:title>.*?</title|metadata>.*?</metadata|style[ >].*?</style)>", re.DOTALL
)
"""Elements for a whole document: its title and metadata, and a style for every element."""
_FRAGMENT_STYLE = "max-width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt"
_OPACITIES = {INK: "", MUTED: "0.75", GRID: "0.2"}
"""Of the colours that become that of the text."""


def _adapt_tag(tag: str, prefix: str) -> str:
    """A tag with prefixed ids, and with the text colour instead of ours."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", tag)

    def replace_colour(found: re.Match[str]) -> str:
        kind, opacity = found[1], _OPACITIES[found[2]]
        return f"{kind}: currentColor" + (f"; {kind}-opacity: {opacity}" if opacity else "")

    return re.sub(rf"\b(fill|stroke): ({'|'.join(_OPACITIES)})", replace_colour, tag)
