"""The colours of drawings, on white paper and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Paint:
    """How an area is drawn: its fill and the line around it, as CSS colours."""

    fill: str
    stroke: str


@dataclass(frozen=True)
class Theme:
    """The colours of everything in a drawing. `boxes` has those of a box by the family of its
    layer, `frames` those of a frame by its depth, odd or even; `costs` goes from little to much,
    each with the colour of the text on it."""

    paper: str
    text: str
    quiet_text: str
    line: str
    skip: str
    boxes: Mapping[str, Paint]
    frames: tuple[Paint, Paint]
    kernel: Paint
    costs: tuple[tuple[str, str], ...]


LIGHT = Theme(
    paper="#ffffff",
    text="#0f172a",
    quiet_text="#475569",
    line="#475569",
    skip="#c026d3",
    boxes={
        "convolution": Paint("#dbeafe", "#3b82f6"),
        "dense": Paint("#ede9fe", "#8b5cf6"),
        "pooling": Paint("#dcfce7", "#22a052"),
        "normalization": Paint("#fef3c7", "#d9a306"),
        "activation": Paint("#ffe4e6", "#f0707f"),
        "structure": Paint("#fae8ff", "#c026d3"),
        "rearrangement": Paint("#f1f5f9", "#64748b"),
        "input": Paint("#e2e8f0", "#475569"),
        "output": Paint("#e2e8f0", "#475569"),
        "folded": Paint("#ffffff", "#475569"),
    },
    frames=(Paint("#ffffff", "#94a3b8"), Paint("#f1f5f9", "#94a3b8")),
    kernel=Paint("#fffbeb", "#d97706"),
    costs=(
        ("#fff7ec", "#0f172a"),
        ("#fee3ba", "#0f172a"),
        ("#fdc184", "#0f172a"),
        ("#fc8d59", "#0f172a"),
        ("#d7301f", "#ffffff"),
        ("#7f0000", "#ffffff"),
    ),
)

DARK = Theme(
    paper="#0f172a",
    text="#f1f5f9",
    quiet_text="#b6c2d2",
    line="#a3b1c4",
    skip="#e879f9",
    boxes={
        "convolution": Paint("#1e3a5f", "#60a5fa"),
        "dense": Paint("#3b2f63", "#a78bfa"),
        "pooling": Paint("#14432a", "#4ade80"),
        "normalization": Paint("#4d3a0a", "#facc15"),
        "activation": Paint("#562430", "#fb7185"),
        "structure": Paint("#4a1d55", "#e879f9"),
        "rearrangement": Paint("#273449", "#94a3b8"),
        "input": Paint("#334155", "#cbd5e1"),
        "output": Paint("#334155", "#cbd5e1"),
        "folded": Paint("#1b2638", "#cbd5e1"),
    },
    frames=(Paint("#0f172a", "#64748b"), Paint("#182236", "#64748b")),
    kernel=Paint("#2b2410", "#f59e0b"),
    costs=LIGHT.costs,
)


def make_style(theme: Theme, scope: str) -> str:
    """The CSS of a drawing; `scope` is put before each selector."""
    rules = {
        ".paper": f"fill: {theme.paper}",
        ".line": f"fill: none; stroke: {theme.line}; stroke-width: 1.3",
        ".line.skip": f"stroke: {theme.skip}; stroke-width: 1.6",
        ".arrow": f"fill: {theme.line}",
        ".arrow.skip": f"fill: {theme.skip}",
        "text": f"fill: {theme.text}",
        "text.quiet": f"fill: {theme.quiet_text}",
        ".mark": f"fill: none; stroke: {theme.quiet_text}; stroke-width: 1.3",
    }
    rules[".swatch > rect"] = f"stroke: {theme.quiet_text}"
    for name, paint in theme.boxes.items():
        rules[f".{name} > rect"] = _paint(paint)
    for i, paint in enumerate(theme.frames):
        rules[f".frame{i} > rect"] = _paint(paint)
        rules[f".title{i}"] = (
            f"stroke: {paint.fill}; stroke-width: 4; stroke-linejoin: round; paint-order: stroke"
        )
    rules[".all > rect"] = f"fill: {theme.paper}; stroke: {theme.quiet_text}"
    rules[".all[aria-pressed=true] > rect"] = f"fill: {theme.boxes['convolution'].fill}"
    rules[".kernel > rect"] = _paint(theme.kernel)
    rules[".kernel-title"] = f"stroke: {theme.kernel.fill}"
    for i, (fill, text) in enumerate(theme.costs):
        rules[f".cost{i} > rect"] = f"fill: {fill}"
        rules[f".cost{i} > text, {scope}.cost{i} > text.quiet"] = f"fill: {text}"
        rules[f".cost{i} > .mark"] = f"stroke: {text}"
    return "".join(f"{scope}{selector} {{ {rule} }}\n" for selector, rule in rules.items())


def _paint(paint: Paint) -> str:
    return f"fill: {paint.fill}; stroke: {paint.stroke}"
