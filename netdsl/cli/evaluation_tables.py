"""Tables of an evaluation: its metrics by class, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping

from netdsl.cli.app import echo
from netdsl.cli.tables import Column, TextTable, figures
from netdsl.data.inventory import format_skipped_pictures
from netdsl.data.memory_limits import MEMORY_VARIABLE
from netdsl.inference import TOP_K, EvaluationReport
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
    hidden = {name for name, value in report.means.items() if value is None}
    hidden |= {"top5"} if len(report.classes) <= TOP_K else set()
    means = {
        name: f"{METRICS[name].title} {text}"
        for name, text in formatted.items()
        if name not in hidden
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
    if report.is_multi_label:
        return "labels" if plural else "label"
    return "classes" if plural else "class"


def show_classes(report: EvaluationReport) -> None:
    """Prints a table of the classes; of many, those with the lowest F1 that have images."""
    results = report.class_results()
    echo("")
    if len(results) > _MAX_CLASSES:
        present = [r for r in results if r.images]
        results = sorted(present, key=lambda r: r.metrics["f1"] or 0)[:_WORST]
        nouns = _noun(report, plural=True)
        echo(f"the {len(results)} {nouns} with the lowest F1, of {len(present):,}")
    names = [name for name, m in METRICS.items() if m.measure_classes is not None]
    headings = ("images", *(METRICS[name].title for name in names))
    rows = [(r.name, f"{r.images:,}", *_format_metrics(r.metrics).values()) for r in results]
    TextTable([Column(_noun(report)), *map(figures, headings)], rows).show()


def show_confusion(report: EvaluationReport) -> None:
    """Prints the confusion matrix, or if it is too wide, the most frequent pairs of classes."""
    if report.confusion is not None:
        matrix = _make_matrix(report, report.confusion)
        if matrix is not None and matrix.fits():
            echo("\nrows: true class; columns: predicted class")
            matrix.show()
        else:
            _show_pairs(report)
    elif not report.is_multi_label:
        echo(f"\nno confusion matrix: it would take more than a share of {MEMORY_VARIABLE}")
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
    echo("the whole matrix: --confusion FILE.csv, or --json")


def _make_matrix(report: EvaluationReport, confusion: Array) -> TextTable | None:
    """The table of a confusion matrix, unless it has too many classes for any screen."""
    if len(report.classes) > _MAX_CLASSES:
        return None
    columns = [Column(""), *(figures(name, fold_width=5) for name in report.classes)]
    rows = [
        (name, *(f"{n:,}" if n else "." for n in row))
        for name, row in zip(report.classes, confusion, strict=True)
    ]
    return TextTable(columns, rows)
