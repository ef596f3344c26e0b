"""How the training of a net scales: an estimate for each number of GPUs, with its assumptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from netdsl.backends import fusion_of, open_backend
from netdsl.backends.base import Backend
from netdsl.backends.roofline import Ceilings
from netdsl.errors import fail
from netdsl.insight.compile_target import (
    CompileTarget,
    elaborate_for_training,
    find_recipe,
    prepare_target,
)
from netdsl.insight.datasheets import GpuDatasheet
from netdsl.insight.profiler import measure_step
from netdsl.insight.scaling import Interconnect, ScalingEstimate, StepTimeline
from netdsl.insight.step_timeline import predict_timeline
from netdsl.language.program import Program

_ROUNDS = 3
"""Of a measured step; its time is the median."""


@dataclass(frozen=True)
class GivenStep:
    """A step of one GPU that was measured before: its seconds, for that many images."""

    seconds: float
    images: int


@dataclass(frozen=True)
class MeasuredStep:
    """A step to be measured here, on a device of that name."""

    device: str


@dataclass(frozen=True)
class ScalingRequest:
    """What to estimate: numbers of GPUs, their links, and the variation of their steps.

    `images` is what each GPU computes in a batch; None shares the recipe's batch between all. A
    `step` of None is predicted from the ceilings of `gpu`."""

    gpus: tuple[int, ...]
    interconnect: Interconnect
    gpu: GpuDatasheet
    images: int | None = None
    step: GivenStep | MeasuredStep | None = None
    variation: float = 0.01


@dataclass(frozen=True)
class ScalingReport:
    """Estimates with a title, a sentence on how images are shared, and the assumptions."""

    title: str
    sharing: str
    estimates: tuple[ScalingEstimate, ...]
    assumptions: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "of": self.title,
            "gradients": len(self.estimates[0].timeline.gradients),
            "gradient_bytes": self.estimates[0].timeline.size,
            "sharing": self.sharing,
            "links": self.estimates[0].interconnect.as_json(),
            "estimates": [e.as_json() for e in self.estimates],
            "assumptions": list(self.assumptions),
        }


def estimate_scaling(program: Program, name: str | None, request: ScalingRequest) -> ScalingReport:
    """Estimates an update of a recipe, or of a net with plain SGD, at each number of GPUs. Raises
    NetError if nodes or images cannot be divided between the GPUs."""
    recipe_name, recipe = find_recipe(program, name)
    for gpus in request.gpus:
        _check_nodes(gpus, request.interconnect.per_node)
    batch = recipe.data.batch if recipe else None
    images = tuple(_share_images(gpus, batch, request.images) for gpus in request.gpus)
    backend = open_backend(request.step.device) if isinstance(request.step, MeasuredStep) else None
    ceilings = backend.measure_ceilings() if backend else request.gpu.ceilings
    timelines = _Timelines(program, name, ceilings, backend)
    make_timeline = timelines.choose(request.step)
    estimates = tuple(
        ScalingEstimate(make_timeline(share), request.interconnect, gpus, request.variation)
        for gpus, share in zip(request.gpus, images, strict=True)
    )
    net = timelines.net_name
    return ScalingReport(
        f"{net}, training by {recipe_name}",
        _describe_sharing(request.images, batch),
        estimates,
        tuple(_describe_assumptions(request, ceilings, backend)),
    )


def _check_nodes(gpus: int, per_node: int) -> None:
    if gpus > per_node and gpus % per_node:
        raise fail(
            f"{gpus:,} GPUs do not fill nodes of {per_node}",
            help=f"`--gpus {_nearest_multiple(gpus, per_node)}` does, "
            "or `--per-node` sets the GPUs of a node",
        )


def _share_images(gpus: int, batch: int | None, images: int | None) -> int:
    """The images of a GPU in a batch: as many as asked for, else a share of the recipe's."""
    if images is not None:
        return images
    if batch is None:
        raise fail(
            "no recipe says how many images a batch has",
            help="add `--batch N`, the images that each GPU computes",
        )
    if batch % gpus:
        raise fail(
            f"a batch of {batch:,} images cannot be shared equally by {gpus:,} GPUs",
            help=f"`--set data.batch={_nearest_multiple(batch, gpus)}` can be, or `--batch N` "
            "gives each GPU N images",
        )
    return batch // gpus


def _nearest_multiple(number: int, of: int) -> int:
    return max(of, (2 * number + of) // (2 * of) * of)


class _Timelines:
    """The timelines of one recipe by the images of a GPU."""

    def __init__(
        self, program: Program, name: str | None, ceilings: Ceilings, backend: Backend | None
    ) -> None:
        self.program, self.name = program, name
        self.ceilings, self.backend = ceilings, backend
        self.net_name = ""

    def choose(self, step: GivenStep | MeasuredStep | None) -> Callable[[int], StepTimeline]:
        """The function that makes a timeline from a number of images. One step that is given
        scales those for other numbers by the same factor."""
        if self.backend is not None:
            return cache(self._measure)
        predict = cache(self._predict)
        if not isinstance(step, GivenStep):
            return predict
        factor = step.seconds / predict(step.images).step_seconds
        return lambda images: predict(images).scaled(factor)

    def _predict(self, images: int) -> StepTimeline:
        target = CompileTarget(self.name, True, images)
        _, network, recipe = elaborate_for_training(self.program, target)
        self.net_name = network.name
        fusion = self.backend.fusion if self.backend else fusion_of("cuda")
        return predict_timeline(network, recipe, fusion, self.ceilings)

    def _measure(self, images: int) -> StepTimeline:
        assert self.backend is not None
        prepared = prepare_target(self.program, CompileTarget(self.name, True, images))
        seconds, _ = measure_step(prepared, self.backend, _ROUNDS)
        return self._predict(images).scaled_to(seconds)


def _describe_sharing(images: int | None, batch: int | None) -> str:
    if images is None:
        return (
            f"strong scaling: a batch of {batch:,} images at any number of GPUs, so that each "
            "computes fewer"
        )
    return (
        f"weak scaling: {images:,} image{'s' * (images > 1)} a GPU at any number of GPUs, so that "
        "the global batch grows"
    )


def _describe_assumptions(
    request: ScalingRequest, ceilings: Ceilings, backend: Backend | None
) -> Iterator[str]:
    """What the figures rest on, a sentence or two for each part of the model."""
    yield f"step: {_describe_step(request, ceilings, backend)}"
    links = request.interconnect
    yield (
        f"all-reduce of S bytes: in a node of g GPUs (at most {links.per_node}), 2 (g - 1) / g S "
        f"at {links.node_bandwidth / 1e9:,.4g} GB/s and 2 (g - 1) messages of "
        f"{1e6 * links.node_latency:,.4g} us; then across m nodes 2 (m - 1) / m of S / g at "
        f"{links.network_bandwidth / 1e9:,.4g} GB/s a GPU and 2 log2(m) messages of "
        f"{1e6 * links.network_latency:,.4g} us"
    )
    yield (
        "overlap: a bucket starts when the kernel of its last gradient has ended and the bucket "
        "before it is reduced. It slows no kernel; weights are updated after the last bucket"
    )
    yield (
        "stragglers: the steps of GPUs vary independently, normally distributed with a deviation "
        f"of {100 * request.variation:.4g}% of the mean, and an update waits for the slowest"
    )
    yield (
        "not counted: data, evaluation, checkpoints, and the moments of batch normalisation in the "
        "last bucket"
    )


def _describe_step(request: ScalingRequest, ceilings: Ceilings, backend: Backend | None) -> str:
    narrow = ceilings.flops_16bit
    limits = (
        f"{ceilings.flops / 1e9:,.0f} GFLOP/s"
        + (f" ({narrow / 1e9:,.0f} in 16 bits)" if narrow else "")
        + f", {ceilings.bandwidth / 1e9:,.0f} GB/s"
    )
    spread = "spread over its kernels in proportion to their minimum times"
    gpu = f"an {request.gpu.name}: {limits} ({request.gpu.source})"
    if backend is not None:
        return f"measured here on {backend.name}, {spread} by the limits measured here: {limits}"
    if isinstance(request.step, GivenStep):
        given = f"{1e3 * request.step.seconds:,.6g} ms for {request.step.images:,} images, as given"
        others = (
            ""
            if request.images == request.step.images
            else (
                ". Steps of other sizes are in proportion to the sum of these times, which is too "
                "little for a few images"
            )
        )
        return f"{given}, {spread} on {gpu}{others}"
    return (
        f"the minimum times of its kernels on {gpu}. A real step takes longer, and hides more: "
        "measure it with `netdsl time --train`, and give `--step-ms`"
    )
