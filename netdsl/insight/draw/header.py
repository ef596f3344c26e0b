"""The lines above a drawing: what net it is, and what the colours mean."""

from __future__ import annotations

from dataclasses import dataclass

from netdsl.insight.draw.text_width import measure_text

NAME_SIZE, FIGURES_SIZE = 16.0, 11.0
SWATCH_WIDTH, SWATCH_HEIGHT = 18.0, 12.0
_GAP, _TEXT_GAP = 14.0, 5.0
_NAME_BASELINE, _FIGURES_BASELINE, _LEGEND_TOP = 22.0, 40.0, 50.0


@dataclass(frozen=True)
class Words:
    """A line of text with its position in pixels."""

    text: str
    x: float
    baseline: float
    size: float
    is_bold: bool = False


@dataclass(frozen=True)
class Swatch:
    """A rectangle in the colour of a level of cost."""

    level: int
    x: float
    y: float


@dataclass(frozen=True)
class Legend:
    """The title of the colours, and the meaning of each, from the least."""

    title: str
    levels: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """The lines above a drawing, placed from the top left corner."""

    words: tuple[Words, ...]
    swatches: tuple[Swatch, ...]
    width: float
    height: float


def make_header(name: str, figures: str, legend: Legend | None, margin: float) -> Header:
    """Places the name of a net, its figures, and a legend in one line, wrapped to a second one."""
    words = [
        Words(name, margin, _NAME_BASELINE, NAME_SIZE, True),
        Words(figures, margin, _FIGURES_BASELINE, FIGURES_SIZE),
    ]
    swatches: list[Swatch] = []
    height = _FIGURES_BASELINE + 6
    if legend is not None:
        placed, swatches = _place_legend(legend, margin, _LEGEND_TOP)
        words += placed
        height = max(w.baseline for w in placed) + 8
    width = max(w.x + measure_text(w.text, w.size, w.is_bold) for w in words) + margin
    return Header(tuple(words), tuple(swatches), width, height)


def _place_legend(legend: Legend, left: float, top: float) -> tuple[list[Words], list[Swatch]]:
    words = [Words(f"{legend.title}, share of the net:", left, top + 10, FIGURES_SIZE)]
    swatches = []
    half = (len(legend.levels) + 1) // 2
    step = SWATCH_WIDTH + _TEXT_GAP + _GAP
    step += max(measure_text(text, FIGURES_SIZE) for text in legend.levels)
    for i, text in enumerate(legend.levels):
        x, y = left + i % half * step, top + 18 + i // half * 18
        swatches.append(Swatch(i, x, y))
        words.append(Words(text, x + SWATCH_WIDTH + _TEXT_GAP, y + 10, FIGURES_SIZE))
    return words, swatches
