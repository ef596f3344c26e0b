"""The nets of a folder in one table: the figures of each, its paper, and published accuracies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from netdsl.errors import fail
from netdsl.insight.published_accuracy import read_published_accuracies
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import Program, load_program

_PAPER = re.compile(r' - ([^",]+ \d{4}), "([^"]+)"')
_SENTENCE = re.compile(r".+?[.](?=\s+[A-Z]|$)")


@dataclass(frozen=True)
class ZooEntry:
    """One net, with the figures for one image; `paper` comes from the last comment above it of the
    form `NAME - AUTHORS YEAR, "TITLE"`."""

    file: str
    net: str
    paper: str
    params: int
    macs: int
    activations: int
    published: Mapping[str, float]


@dataclass(frozen=True)
class Zoo:
    """The nets of a folder, and the first sentence of each of its files."""

    folder: str
    entries: tuple[ZooEntry, ...]
    descriptions: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        return {"nets": [asdict(e) for e in self.entries]}

    def as_markdown(self) -> str:
        """The page for the folder."""
        heading = ("net", "paper", "params", "MACs", "activations", "top-1", "top-5")
        rows = [
            _format_row(heading),
            _format_row(["---"] * 2 + ["--:"] * 5),
            *map(_format_entry, self.entries),
        ]
        files = [f"- `{name}`: {text}" for name, text in self.descriptions.items()]
        parts = (_INTRO.format(folder=self.folder), "\n".join(rows), "\n".join(files))
        return "\n\n".join(parts) + "\n"


_INTRO = """# The nets in {folder}

Written by `netdsl summary {folder}`. Figures are for one image: learnable values,
multiply-accumulates and output values of convolutions and fully connected layers. Accuracies are
published ones; the files say by whom, and on which images."""


def load_zoo(folder: Path, settings: Settings) -> Zoo:
    """The nets in the .net files of a folder. Raises NetError with the errors in any of them."""
    paths = sorted(folder.glob("*.net"))
    if not paths:
        raise fail(f"there are no .net files in {folder}")
    programs = {p.name: load_program(str(p)) for p in paths}
    entries = (
        _make_entry(file, program, net, settings)
        for file, program in programs.items()
        for net in program.nets
        if program.has_all_defaults(net)
    )
    descriptions = {p.name: _first_sentence(p.read_text(encoding="utf-8-sig")) for p in paths}
    return Zoo(folder.resolve().name, tuple(entries), descriptions)


def _make_entry(file: str, program: Program, net: str, settings: Settings) -> ZooEntry:
    network = elaborate(program, net, settings)
    span = program.nets[net].span
    papers = _PAPER.findall(_join_comments(span.source.text[: span.start].splitlines()))
    paper = '{}, "{}"'.format(*papers[-1]) if papers else ""
    accuracies = [
        read_published_accuracies(program, t)
        for t in program.tests
        if program.resolve_net_name(t.net, t.span) == net
    ]
    merged_accuracies = {k: v for facts in accuracies for k, v in facts.items()}
    return ZooEntry(
        file, net, paper, network.params, network.macs, network.activations, merged_accuracies
    )


def _join_comments(lines: Sequence[str]) -> str:
    return " ".join(x.lstrip("# ") for x in lines if x.startswith("#"))


def _first_sentence(text: str) -> str:
    """The first sentence of the comment at the top of a file."""
    lines = text.splitlines()
    head = next((i for i, x in enumerate(lines) if not x.startswith("#")), len(lines))
    found = _SENTENCE.match(_join_comments(lines[:head]))
    return found[0] if found else ""


def _format_entry(e: ZooEntry) -> str:
    counts = (f"{n:,}" for n in (e.params, e.macs, e.activations))
    shares = (f"{e.published[k]:.2%}" if k in e.published else "" for k in ("top1", "top5"))
    return _format_row((f"`{e.file}:{e.net}`", e.paper, *counts, *shares))


def _format_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |"
