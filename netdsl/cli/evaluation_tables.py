"""Tables of an evaluation: its metrics by class, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping

from netdsl.cli.app import echo
from netdsl.cli.display import add_row, make_console
from netdsl.data.inventory import format_skipped_pictures
from netdsl.data.memory_limits import MEMORY_VARIABLE
from netdsl.inference import EvaluationReport
from netdsl.text_escaping import escape_line
from netdsl.training.metrics.ranking import score_limit
from netdsl.training.metrics.table import METRICS, format_metric
from netdsl.types import Array, format_bytes

_OF_IMAGES = ("accuracy", "top5", "loss")
"""The metrics of the first line, which are not means over classes."""
_MAX_CLASSES, _MAX_PAIRS = 25, 20
"""With more classes, neither a table of them nor their confusion matrix fits a screen; the worst
classes and the largest entries are shown."""
_WORST = 10


def show_evaluation(report: EvaluationReport) -> None:
    """Prints the metrics of all images, then of each class, and which classes are confused."""
    formatted = _format_metrics(report.means)
    means = {
        name: f"{METRICS[name].title} {text}"
        for name, text in formatted.items()
        if report.means[name] is not None
    }
    images = f"{report.score.images:,} {report.images} images"
    echo("  ".join([*(means.pop(k) for k in _OF_IMAGES if k in means), images]))
    if report.note:
        echo(report.note)
    echo(f"means over the {_noun(report, plural=True)}: {'  '.join(means.values())}")
    if report.score.ranking is None:
        echo(
            f"ROC AUC and average precision need more memory for scores than "
            f"{format_bytes(score_limit())}, a share of {MEMORY_VARIABLE}"
        )
    show_classes(report)
    show_confusion(report)
    for line in format_skipped_pictures(report.skipped):
        echo(line)


def _format_metrics(metrics: Mapping[str, float | None]) -> dict[str, str]:
    return {name: format_metric(value, METRICS[name]) for name, value in metrics.items()}


def _noun(report: EvaluationReport, plural: bool = False) -> str:
    """What the report is about: one class per image, or several labels."""
    if report.confusion is None:
        return "labels" if plural else "label"
    return "classes" if plural else "class"


def show_classes(report: EvaluationReport) -> None:
    """Prints a table of the classes; of many, those with the lowest F1 that have images."""
    from rich.table import Table

    results = report.class_results()
    echo("")
    if len(results) > _MAX_CLASSES:
        present = [r for r in results if r.images]
        results = sorted(present, key=lambda r: r.metrics["f1"] or 0)[:_WORST]
        nouns = _noun(report, plural=True)
        echo(f"the {len(results)} {nouns} with the lowest F1, of {len(present):,}")
    table = Table(box=None, pad_edge=False)
    table.add_column(_noun(report), overflow="fold")
    columns = [name for name, m in METRICS.items() if m.measure_classes is not None]
    for heading in ("images", *(METRICS[name].title for name in columns)):
        table.add_column(heading, justify="right")
    for r in results:
        add_row(table, escape_line(r.name), f"{r.images:,}", *_format_metrics(r.metrics).values())
    make_console().print(table)


def show_confusion(report: EvaluationReport) -> None:
    if report.confusion is not None and len(report.classes) <= _MAX_CLASSES:
        _show_matrix(report, report.confusion)
    else:
        _show_pairs(report)
    if report.unclassified:
        echo(f"{report.unclassified:,} images are not counted: one of their scores is NaN")


def _show_pairs(report: EvaluationReport) -> None:
    pairs = report.confused_pairs()
    if not pairs:
        return
    echo("\nmost often confused: true -> predicted")
    for true, predicted, count in pairs[:_MAX_PAIRS]:
        echo(f"{count:>7,}  {escape_line(f'{true} -> {predicted}')}")
    hidden_pairs = pairs[_MAX_PAIRS:]
    if hidden_pairs:
        images = sum(count for _, _, count in hidden_pairs)
        echo(f"and {len(hidden_pairs):,} more pairs of classes, {images:,} images in total")


def _show_matrix(report: EvaluationReport, confusion: Array) -> None:
    from rich.table import Table

    echo("\nrows: true class; columns: predicted class")
    table = Table(box=None)
    names = [escape_line(name) for name in report.classes]
    for heading in ("", *names):
        table.add_column(heading, justify="right")
    for name, row in zip(names, confusion, strict=True):
        add_row(table, name, *(str(n) if n else "." for n in row))
    make_console().print(table)
