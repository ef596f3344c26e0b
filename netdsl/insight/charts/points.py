"""The points of a chart: nets of a folder with their published accuracies, and runs with theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from netdsl.backends.base import Backend
from netdsl.errors import NetError, fail
from netdsl.insight.compile_target import CompileTarget, prepare_target
from netdsl.insight.plots.history import RECIPE_FILE, RunHistory
from netdsl.insight.profiler import measure_step
from netdsl.insight.published_accuracy import PublishedAccuracy, read_published_accuracies
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program, build_program, reject_read
from netdsl.language.upgrade import parse_any_format
from netdsl.training.recipe.recipe import Recipe

OWN_RUNS = "own runs"
IMAGENET_CLASSES = 1000
UNKNOWN_SOURCE = "no source given"


@dataclass(frozen=True)
class ChartPoint:
    """A net with an accuracy from 0 to 1. `group` is how it was measured: points of one group can
    be compared. `params` and `macs` are those of one image in inference; `images_per_second` and
    `memory`, the bytes of the arena, are those of inference on this machine, if measured."""

    name: str
    group: str
    accuracy: float
    params: int
    macs: int
    activations: int
    classes: int
    images_per_second: float | None = None
    memory: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AxisQuantity:
    """What an axis or the area of a ball shows: a field of `ChartPoint`, its label, and the factor
    to its unit."""

    label: str
    read: Callable[[ChartPoint], float | None]
    scale: float = 1.0


QUANTITIES: Mapping[str, AxisQuantity] = {
    "macs": AxisQuantity("multiply-accumulates per image (G)", lambda p: p.macs, 1e-9),
    "params": AxisQuantity("parameters (M)", lambda p: p.params, 1e-6),
    "activations": AxisQuantity("activations per image (M)", lambda p: p.activations, 1e-6),
    "images_per_second": AxisQuantity("images per second", lambda p: p.images_per_second),
    "memory": AxisQuantity("memory of inference (MB)", lambda p: p.memory, 1e-6),
}
MEASURED_QUANTITIES = frozenset({"images_per_second", "memory"})


@dataclass(frozen=True)
class PublishedNet:
    """A net of a file, and all that was published of it by one metric."""

    program: Program
    net: str
    accuracies: tuple[PublishedAccuracy, ...]


def find_published_nets(
    program: Program, metric: str, source: str | None
) -> Iterator[PublishedNet]:
    """The nets of a file with a published `metric` (`top1` or `top5`), by a source that starts with
    `source` if one is given."""
    for net in filter(program.has_all_defaults, program.nets):
        accuracies = tuple(
            accuracy
            for test in program.tests
            if program.resolve_net_name(test.net, test.span) == net
            for accuracy in read_published_accuracies(program, test)
            if metric in accuracy.shares and _is_from(accuracy, source)
        )
        if accuracies:
            yield PublishedNet(program, net, accuracies)


def published_points(nets: Sequence[PublishedNet], metric: str) -> Iterator[ChartPoint]:
    """A point for each net. Of several accuracies it shows the one of the group that most nets
    have, so that as many points as possible can be compared."""
    groups = Counter(group for net in nets for group in {*map(_name_group, net.accuracies)})
    for net in nets:
        chosen = max(net.accuracies, key=lambda a: groups[_name_group(a)])
        network = elaborate(net.program, net.net)
        yield _make_point(net.net, _name_group(chosen), chosen.shares[metric], network)


def _is_from(accuracy: PublishedAccuracy, source: str | None) -> bool:
    return source is None or (accuracy.source or "").lower().startswith(source.lower())


def _name_group(accuracy: PublishedAccuracy) -> str:
    """The source without its table, and the crops."""
    source = (accuracy.source or UNKNOWN_SOURCE).split(",")[0]
    crops = replace(accuracy, source=None, train=None, test=None).describe_conditions()
    return f"{source}, {crops}" if crops else source


def _make_point(name: str, group: str, accuracy: float, network: Network) -> ChartPoint:
    return ChartPoint(
        name,
        group,
        accuracy,
        network.params,
        network.macs,
        network.activations,
        count_classes(network),
    )


def count_classes(network: Network) -> int:
    """The number of scores that a net gives for an image."""
    return network.main_output.type.shape[-1]


def run_program(run: RunHistory) -> tuple[Program, Recipe]:
    """The program of a run's recipe.net, and its recipe. Raises NetError if that file is missing
    or invalid."""
    if run.facts is None:
        path = run.directory / RECIPE_FILE
        raise fail(f"{path} is missing or invalid, so the net of this run is unknown")
    file = parse_any_format(run.facts.text, str(run.directory / RECIPE_FILE))
    return build_program(file, reject_read), run.facts.recipe


def run_point(run: RunHistory, metric: str) -> ChartPoint:
    """The best accuracy of a run on the images that it held out. Raises NetError if it held out
    none, or has not finished an epoch."""
    accuracies = run.column(ACCURACY_COLUMNS[metric])
    if not np.isfinite(accuracies).any():
        raise no_accuracy_error(run, metric)
    program, recipe = run_program(run)
    network = elaborate(program, recipe.net, recipe.settings(training=False))
    return _make_point(run.name, OWN_RUNS, float(np.nanmax(accuracies)), network)


def no_accuracy_error(run: RunHistory, metric: str) -> NetError:
    message = f"{run.directory} has no {ACCURACY_COLUMNS[metric]}"
    return fail(message, help="it has not finished an epoch, or has no validation images")


ACCURACY_COLUMNS = {"top1": "val_accuracy", "top5": "val_top5"}
"""The columns of metrics.jsonl."""


def measure_point(
    point: ChartPoint, program: Program, net: str, backend: Backend, batch: int
) -> ChartPoint:
    """The point with the speed and memory of inference at a batch size on a device."""
    prepared = prepare_target(program, CompileTarget(net, batch=batch))
    seconds, memory = measure_step(prepared, backend, rounds=5)
    return replace(point, images_per_second=batch / seconds, memory=memory)
