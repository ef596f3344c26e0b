"""Sentences and numbers of a report, for people."""

from __future__ import annotations

from netdsl.insight.report.run_report import RunReport
from netdsl.insight.report.versions import describe_machine


def format_seconds(seconds: float) -> str:
    """A time in the units that suit it: `9.2 µs`, `7.25 ms`, `3.5 s`, `4 min 10 s`, `2 h 5 min`."""
    if 0 < seconds < 0.9995e-3:
        return f"{1e6 * seconds:.3g} µs"
    if 0 < seconds < 0.9995:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def format_percent(share: float) -> str:
    """A share in per cent; never `100%` or `0%` if it is not exactly that."""
    text = f"{share:.1%}"
    if text == "100.0%" and share < 1:
        return "over 99.9%"
    return "under 0.1%" if text == "0.0%" and share > 0 else text


def answer(report: RunReport) -> str:
    """What a run has achieved, in a few sentences."""
    return " ".join(filter(None, (headline(report), _training(report), _step(report))))


def headline(report: RunReport) -> str:
    """What a run has achieved, in one sentence."""
    run, found = report.run, report.evaluation
    subject = f"The net {run.recipe.net}"
    if found is not None:
        share = format_percent(found.score.accuracy)
        images = f"{found.score.images:,} {found.images} images of {run.data_name}"
        verb = "predicts all labels correctly for" if found.is_multi_label else "classifies"
        end = "" if found.is_multi_label else " correctly"
        return f"{subject} {verb} {share} of {images}{end}."
    for part, metrics in (("test", run.test), ("validation", run.best)):
        key = "test_accuracy" if part == "test" else "val_accuracy"
        if key in metrics:
            share = format_percent(metrics[key])
            return (
                f"{subject} reached an accuracy of {share} on the {part} images of {run.data_name}."
            )
    if "train_loss" in run.best:
        return (
            f"{subject} reached a training loss of {run.best['train_loss']:.4g} on {run.data_name}."
        )
    return f"{subject} has not finished an epoch on {run.data_name}."


def _training(report: RunReport) -> str:
    run = report.run
    if not run.epochs:
        return ""
    done, best = len(run.epochs), run.best.get("epoch", 0)
    epochs = f"epoch {best:.0f} of {done:,}" if done > 1 else "its only epoch"
    time = f"; training took {format_seconds(run.seconds)}" if run.seconds else ""
    stages = f", after {' and '.join(x.name for x in run.history.stages)}" * bool(
        run.history.stages
    )
    return f"Its best weights are those of {epochs}{stages}{time}."


def _step(report: RunReport) -> str:
    profile = report.costs.profile
    if profile is None:
        return ""
    return (
        f"On this machine ({describe_machine()}; device {profile.device}), a training step of "
        f"{profile.batch:,} images takes {format_seconds(profile.seconds)}."
    )
