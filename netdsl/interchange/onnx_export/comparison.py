"""Exported models against the net's own results: both run on random inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.backends.base import Backend
from netdsl.errors import fail
from netdsl.interchange.non_finite import describe_non_finite
from netdsl.interchange.onnx_export.builder import TO_NCHW
from netdsl.interchange.onnx_export.model import import_onnx
from netdsl.ir.subgraph import extract_subgraph
from netdsl.language.network import Network
from netdsl.optional_imports import NotInstalledError, import_optional
from netdsl.passes.pass_manager import prepare_inference
from netdsl.runtime.executor import FoldedExecutor
from netdsl.runtime.state import State
from netdsl.types import Array

CHECKED_BATCHES = (1, 3)
TOLERANCE, HALF_TOLERANCE = 1e-2, 0.1
"""The largest difference of a score, as a share of the largest score. Rounding gives 1e-6 in most
nets and 1e-3 in the worst, with float16 1e-3 and 3e-2; what is wrong gives more."""
_MIN_SPREAD = 1e-5
"""The least difference between the scores of random images, as a share of the largest score, that
is more than rounding."""
_MIN_SCALE = 0.01
"""What differences are a share of where all scores are smaller: sums of what cancels out are only
rounding."""


@dataclass(frozen=True)
class ModelComparison:
    """How far the scores of onnxruntime are from netdsl's: the largest difference as a share of the
    largest score. `is_constant` if the scores are the same for every image, which shows little."""

    difference: float
    runtime: str
    is_constant: bool = False


def compare_with_runtime(
    model: bytes, network: Network, backend: Backend, state: State, is_half: bool
) -> ModelComparison | None:
    """Runs a model and the net that it was made of on the same random inputs, in each of
    CHECKED_BATCHES; None if onnxruntime is not there. The net must be elaborated for the largest of
    these batches. Raises NetError if the results differ, if onnxruntime cannot run the model, or if
    a value overflows float16, or if scores are not finite, which compare with nothing."""
    try:
        runtime = import_optional("onnxruntime", "", "")
    except NotInstalledError:
        return None
    inputs = draw_inputs(network)
    given = {k: x if x.dtype == np.uint8 else to_channels_first(x) for k, x in inputs.items()}
    if is_half:
        _check_overflow(runtime, model, given)
    expected = compute_scores(network, inputs, backend, state)
    if not np.isfinite(expected).all():
        raise fail(
            f"the scores of `{network.name}` for random images are NaN or infinite, so they "
            f"cannot be compared",
            notes=list(filter(None, [describe_non_finite(state.snapshot())])),
            help="nothing is written",
        )
    session = _open(runtime, model)
    found = [_run(session, given, n)[0] for n in CHECKED_BATCHES]
    difference = max(relative_difference(x, expected[: len(x)]) for x in found)
    tolerance = HALF_TOLERANCE if is_half else TOLERANCE
    if not difference <= tolerance:
        raise fail(
            f"onnxruntime and netdsl compute different scores: they differ by {difference:.1e} of "
            f"the largest, over {tolerance:g}; nothing is written",
            help="export without `--half`" if is_half else None,
        )
    spread = relative_difference(np.broadcast_to(expected[:1], expected.shape), expected)
    return ModelComparison(difference, runtime.__version__, spread < _MIN_SPREAD)


def draw_inputs(network: Network) -> dict[str, Array]:
    """Random inputs of a net in netdsl's layout: bytes, or numbers of a normal distribution."""
    rng = np.random.default_rng(0)
    return {
        n.name: rng.integers(0, 256, n.type.shape).astype(np.uint8)
        if n.type.dtype == "uint8"
        else rng.standard_normal(n.type.shape).astype(np.float32)
        for n in network.graph.inputs
    }


def compute_scores(
    network: Network, inputs: Mapping[str, Array], backend: Backend, state: State
) -> Array:
    """The main output of a net, its images [N,C,H,W]."""
    output = network.graph.outputs["main"]
    needed = network.graph.backward_slice(output) | {n.name for n in network.graph.inputs}
    graph = extract_subgraph(network.graph, needed, {"scores": output})
    executor = FoldedExecutor(prepare_inference(graph), backend, state)
    executor.refresh()
    scores: Array = backend.download(executor.run(inputs)["scores"])
    return to_channels_first(scores)


def to_channels_first(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(TO_NCHW)) if x.ndim == 4 else x


def relative_difference(found: Array, expected: Array) -> float:
    """The largest difference as a share of the largest number; infinite where only one of them is
    finite."""
    expected = expected.reshape(found.shape)
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = max(float(np.abs(expected[finite]).max()), _MIN_SCALE)
    return float(np.abs(found[finite] - expected[finite]).max()) / largest


def _check_overflow(runtime: Any, model: bytes, given: Mapping[str, Array]) -> None:
    """Raises NetError with the first node whose result float16 cannot hold. Where onnxruntime has
    no kernels for float16, as on most CPUs, it computes in float32, and scores do not show that."""
    shown = import_onnx().load_model_from_string(model)
    del shown.graph.output[:]
    for node in shown.graph.node:
        shown.graph.output.add(name=node.output[0])
    session = _open(runtime, shown.SerializeToString())
    for node, value in zip(shown.graph.node, _run(session, given, 1), strict=True):
        if not np.isfinite(value).all():
            raise fail(
                f"`{node.name}` gives values beyond 65,504, the largest float16 number, for a "
                f"random "
                "image",
                help="export without `--half`",
            )


def _open(runtime: Any, model: bytes) -> Any:
    """A session of onnxruntime for a model."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised too
    with _translate_errors():
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, given: Mapping[str, Array], count: int) -> list[Array]:
    """The outputs of a session for the first samples."""
    known = {x.name for x in session.get_inputs()}
    with _translate_errors():
        return list(session.run(None, {k: x[:count] for k, x in given.items() if k in known}))


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except Exception as e:  # onnxruntime's errors have no class in common
        raise fail(f"onnxruntime cannot run the model: {str(e).splitlines()[0]}") from None
