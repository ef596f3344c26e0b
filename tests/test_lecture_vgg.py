"""The table of VGG's errors on the lecture's page is that of `published(...)` in models/vgg.net."""

from __future__ import annotations

import re

from docs.tools.lecture_rows import ROOT, ROWS, read_row
from netdsl.insight.published_accuracy import PublishedAccuracy, read_published_accuracies
from netdsl.language.program import load_program

SCALES = (((256,), (256,)), ((384,), (384,)), ((256, 512), (384,)))
"""The columns of the table: training scale and test scale."""


def test_the_errors_of_vgg_are_those_of_its_file() -> None:
    result = read_row(ROWS / "09a-vgg.toml").texts["result"]
    rows = re.findall(r"^\| ([A-E](?:-LRN)?) \| [^|]* \|(.*)\|$", result, re.MULTILINE)
    shown = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    program = load_program(str(ROOT / "models" / "vgg.net"))
    published = {
        test.net: [
            a for a in read_published_accuracies(program, test) if a.source == "paper, table 3"
        ]
        for test in program.tests
    }
    expected = {
        net.removeprefix("vgg_").replace("_", "-").upper(): [
            _errors(accuracies, train, test) for train, test in SCALES
        ]
        for net, accuracies in published.items()
        if accuracies
    }
    assert shown == expected
    assert shown["A-LRN"][0] == "29.7 / 10.5"


def _errors(accuracies: list[PublishedAccuracy], train: object, test: object) -> str:
    """The cell for these scales: top-1 and top-5 errors in per cent; empty if none is published."""
    for a in accuracies:
        if (a.train, a.test) == (train, test):
            assert a.top1 is not None
            assert a.top5 is not None
            return f"{100 - 100 * a.top1:.1f} / {100 - 100 * a.top5:.1f}"
    return ""
