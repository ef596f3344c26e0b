"""Writes a checkpoint as an ONNX file: exported, checked, compared, and only then written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from netdsl.errors import fail
from netdsl.file_io import write_atomically
from netdsl.inference import Predictor
from netdsl.interchange.non_finite import describe_non_finite
from netdsl.interchange.onnx_export.comparison import (
    CHECKED_BATCHES,
    ModelComparison,
    compare_with_runtime,
)
from netdsl.interchange.onnx_export.exporter import (
    SCORES,
    ExportedGraph,
    ExportOptions,
    export_graph,
)
from netdsl.interchange.onnx_export.metadata import describe_model
from netdsl.interchange.onnx_export.model import check_range, make_model
from netdsl.interchange.transfer_report import TransferReport
from netdsl.language.network import Network
from netdsl.training.checks import has_scores
from netdsl.training.recipe.losses import Probabilities
from netdsl.training.step.graphs import find_probability_function
from netdsl.types import format_bytes


def write_onnx(
    trained: Predictor, out: Path, options: ExportOptions, is_raw: bool
) -> TransferReport:
    """Writes a checkpoint as an ONNX file, whose input is bytes [N,H,W,C], or with `is_raw` what
    the net sees: normalised floats [N,C,H,W]. Raises NetError, and writes nothing, if ONNX cannot
    express the net or if onnxruntime computes other scores."""
    settings = trained.recipe.settings(training=False, batch=max(CHECKED_BATCHES))
    if is_raw:
        settings = replace(settings, input_dtype=None, prepare=None)
    network = trained.network(settings)
    if not is_raw:
        _check_inputs(network)
    states = trained.state.snapshot()
    graph = export_graph(network, states, options)
    check_range(graph)
    function = find_probability_function(network, trained.recipe) if has_scores(network) else None
    metadata = describe_model(trained.checkpoint, trained.recipe.data, graph, options, function)
    content: bytes = make_model(graph, metadata).SerializeToString()
    found = compare_with_runtime(content, network, trained.backend, trained.state, options.is_half)
    write_atomically(out, content)
    return _report(out, graph, len(content), found, function, describe_non_finite(states))


def _check_inputs(network: Network) -> None:
    """Raises NetError if bytes are no input of the net: the data section says how images are
    prepared, and nothing about a vector beside one."""
    inputs = [n for n in network.graph.inputs if n.type.rank > 1]
    vectors = [n.name for n in inputs if n.type.rank != 4]
    if vectors and len(inputs) > 1:
        raise fail(
            f"`{vectors[0]}` is not an image, and the data section does not say how to prepare it",
            network.graph[vectors[0]].span,
            help="`--raw` exports the net without preparation: all its inputs are floats",
        )


def _report(
    out: Path,
    graph: ExportedGraph,
    size: int,
    found: ModelComparison | None,
    function: Probabilities | None,
    warning: str,
) -> TransferReport:
    inputs = [f"`{x.name}` {x.dtype} {_shape(x.shape)}" for x in graph.inputs]
    lines = [
        f"{out}: `{graph.name}`, opset {graph.opset}, {len(graph.nodes)} nodes, "
        f"{format_bytes(size)}",
        f"{', '.join(inputs)} -> `{SCORES}` float32 {_shape(graph.output_shape)}",
    ]
    if function == "sigmoid":
        lines.append("the sigmoid of each score is the independent probability of its label")
    if graph.folded:
        lines.append(
            f"{graph.folded} batch norms are folded into the weights before them; to train the "
            f"exported model further, export it with `--keep-batchnorm`"
        )
    if graph.sides:
        shown = ", ".join(f"`{name}`" for name in graph.sides)
        lines.append(f"note: side outputs are left out: {shown}")
    if found is None:
        lines.append("not run: `pip install onnxruntime` compares its scores with netdsl's")
    else:
        lines.append(
            f"onnxruntime {found.runtime} computes the same scores: the largest difference is "
            f"{found.difference:.1e} of the largest score"
        )
        if found.is_constant:
            lines.append("note: the net gives every image the same scores, so this shows little")
    if warning:
        lines.append(f"note: {warning}")
    values = {
        "model": str(out),
        "net": graph.name,
        "opset": graph.opset,
        "nodes": len(graph.nodes),
        "bytes": size,
        "inputs": [{"name": x.name, "dtype": x.dtype, "shape": x.shape} for x in graph.inputs],
        "output": {"name": SCORES, "shape": graph.output_shape},
        "probabilities": function,
        "folded": graph.folded,
        "is_constant": found.is_constant if found else None,
        "difference": found.difference if found else None,
        "onnxruntime": found.runtime if found else None,
    }
    return TransferReport(tuple(lines), values)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, ('N', *shape)))}]"
