"""Exported models against the net's own results: both run on random inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.backends.base import Backend
from netdsl.errors import fail
from netdsl.interchange.onnx_export_builder import TO_NCHW
from netdsl.ir.subgraph import extract_subgraph
from netdsl.language.network import Network
from netdsl.optional_imports import NotInstalledError, import_optional
from netdsl.passes.pass_manager import prepare_inference
from netdsl.runtime.executor import FoldedExecutor
from netdsl.runtime.state import State
from netdsl.types import Array

CHECKED_BATCHES = (1, 3)
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
"""The largest difference of a score, as a share of the largest score."""


@dataclass(frozen=True)
class ModelComparison:
    """How far the scores of onnxruntime are from netdsl's: the largest difference as a share of the
    largest score."""

    difference: float
    runtime: str


def compare_with_runtime(
    model: bytes, network: Network, backend: Backend, state: State, is_half: bool
) -> ModelComparison | None:
    """Runs a model and the net that it was made of on the same random inputs, in each of
    CHECKED_BATCHES; None if onnxruntime is not there. The net must be elaborated for the largest of
    these batches. Raises NetError if the results differ, or if onnxruntime cannot run the model."""
    try:
        runtime = import_optional("onnxruntime", "", "")
    except NotInstalledError:
        return None
    inputs = draw_inputs(network)
    expected = compute_scores(network, inputs, backend, state)
    found = _run(runtime, model, network, inputs)
    difference = max(relative_difference(x, expected[: len(x)]) for x in found)
    tolerance = HALF_TOLERANCE if is_half else TOLERANCE
    if not difference <= tolerance:
        help = "activations may overflow float16: export without `--half`" if is_half else None
        raise fail(
            f"onnxruntime computes other scores than netdsl: they differ by {difference:.1e} of "
            f"the largest, over {tolerance:g}; nothing is written",
            help=help,
        )
    return ModelComparison(difference, runtime.__version__)


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
    largest = max(float(np.abs(expected[finite]).max()), 1e-30)
    return float(np.abs(found[finite] - expected[finite]).max()) / largest


def _run(runtime: Any, model: bytes, network: Network, inputs: Mapping[str, Array]) -> list[Array]:
    """The scores that onnxruntime computes for each batch."""
    given = {
        n.name: inputs[n.name] if n.type.dtype == "uint8" else to_channels_first(inputs[n.name])
        for n in network.graph.inputs
    }
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised too
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        known = {x.name for x in session.get_inputs()}
        return [
            session.run(None, {k: x[:n] for k, x in given.items() if k in known})[0]
            for n in CHECKED_BATCHES
        ]
    except Exception as e:  # its errors have no class in common
        raise fail(f"onnxruntime cannot run the model: {str(e).splitlines()[0]}") from None
