"""The nets of a folder in two tables: the figures of each with its paper, and what accuracies were
published for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from netdsl.errors import fail
from netdsl.insight.published_accuracy import PublishedAccuracy, read_published_accuracies
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import Program, load_program
from netdsl.text_escaping import escape_line

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
    published_accuracies: tuple[PublishedAccuracy, ...]

    @property
    def published(self) -> dict[str, float]:
        """The shares of the first published accuracy."""
        return self.published_accuracies[0].shares if self.published_accuracies else {}

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "published": self.published}


@dataclass(frozen=True)
class Zoo:
    """The nets of a folder, and the first sentence of each of its files."""

    folder: str
    entries: tuple[ZooEntry, ...]
    descriptions: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        return {"nets": [e.as_json() for e in self.entries]}

    def as_markdown(self) -> str:
        """The page for the folder."""
        files = [f"- [`{name}`]({name}): {text}" for name, text in self.descriptions.items()]
        nets = _format_table(_NET_COLUMNS, map(_format_entry, self.entries))
        accuracies = _format_table(_ACCURACY_COLUMNS, self._accuracy_rows())
        parts = [_INTRO.format(folder=self.folder), nets]
        parts += [_ACCURACY_INTRO, accuracies] if any(e.published for e in self.entries) else []
        return "\n\n".join([*parts, _FILE_INTRO, "\n".join(files)]) + "\n"

    def _accuracy_rows(self) -> Iterator[Sequence[str]]:
        """A row for each published accuracy, those of one file and source next to each other."""
        rows = [(e, a) for e in self.entries for a in e.published_accuracies]
        rows.sort(key=lambda row: (row[0].file, row[1].source or ""))
        return (_format_accuracy(e, a) for e, a in rows)


_NET_COLUMNS = {
    "net": "---",
    "paper": "---",
    "params": "--:",
    "MACs": "--:",
    "activations": "--:",
    "top-1": "--:",
    "top-5": "--:",
    "as reported by": "---",
}
_ACCURACY_COLUMNS = {
    "net": "---",
    "source": "---",
    "crops": "--:",
    "trained at": "--:",
    "tested at": "--:",
    "top-1": "--:",
    "top-5": "--:",
}
"""Headings of columns, and how Markdown aligns them."""

_INTRO = """# The nets in {folder}

Written by `netdsl summary {folder}`. Figures are for one image: learnable values,
multiply-accumulates and output values of convolutions and fully connected layers. Accuracies are
as published; if a net has several, the first one is shown. Compare only accuracies with the same
source, crops and sizes."""

_ACCURACY_INTRO = """## Published accuracies

Measured on the validation images of ImageNet, or on the test images of the data that the net is
for. Sizes are the short side of the images in pixels: `256-512` is a random size from that
interval, and `224, 256, 288` means that the scores are averaged over these sizes, as over crops;
`dense` applies the net to the whole image."""

_FILE_INTRO = "## Files"


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
    accuracies = tuple(
        accuracy
        for t in program.tests
        if program.resolve_net_name(t.net, t.span) == net
        for accuracy in read_published_accuracies(program, t)
    )
    return ZooEntry(file, net, paper, network.params, network.macs, network.activations, accuracies)


def _join_comments(lines: Sequence[str]) -> str:
    return " ".join(x.lstrip("# ") for x in lines if x.startswith("#"))


def _first_sentence(text: str) -> str:
    """The first sentence of the comment at the top of a file."""
    lines = text.splitlines()
    head = next((i for i, x in enumerate(lines) if not x.startswith("#")), len(lines))
    found = _SENTENCE.match(_join_comments(lines[:head]))
    return found[0] if found else ""


def _format_entry(e: ZooEntry) -> Sequence[str]:
    counts = (f"{n:,}" for n in (e.params, e.macs, e.activations))
    first = e.published_accuracies[0] if e.published_accuracies else PublishedAccuracy()
    shares = _format_shares(first)
    return f"`{e.file}:{e.net}`", e.paper, *counts, *shares, first.describe_conditions()


def _format_accuracy(e: ZooEntry, a: PublishedAccuracy) -> Sequence[str]:
    source = escape_line(a.source or "")
    sizes = a.format_train(), a.format_test()
    return f"`{e.file}:{e.net}`", source, str(a.crops or ""), *sizes, *_format_shares(a)


def _format_shares(a: PublishedAccuracy) -> Iterator[str]:
    return (f"{a.shares[k]:.2%}" if k in a.shares else "" for k in ("top1", "top5"))


def _format_table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(map(_format_row, [list(columns), list(columns.values()), *rows]))


def _format_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |"
