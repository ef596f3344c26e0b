"""A written graph as a model of onnx, checked by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from netdsl import __version__
from netdsl.errors import fail, internal_error
from netdsl.interchange.onnx_export.builder import ExportNode
from netdsl.interchange.onnx_export.exporter import SCORES, ExportedGraph
from netdsl.optional_imports import import_optional

_MAX_BYTES = 2**31 - 2**20
"""The weights that a message of protocol buffers, of 2 GB at most, has room for."""


def check_range(graph: ExportedGraph) -> None:
    """Raises NetError with all constants that float16 cannot hold."""
    wrong = [n for n, v in graph.constants.items() if v.dtype == np.float16 and np.isinf(v).any()]
    if wrong:
        raise fail(
            f"{len(wrong)} weights have values beyond 65,504, the largest float16 number: "
            + ", ".join(f"`{n}`" for n in wrong[:8])
            + ", ..." * (len(wrong) > 8),
            help="export without `--half`",
        )


def make_model(graph: ExportedGraph, metadata: Mapping[str, str]) -> Any:
    """Returns the model, of onnx. Raises NetError if it is too large for one file, or damaged."""
    size = sum(v.nbytes for v in graph.constants.values())
    if size > _MAX_BYTES:
        raise fail(
            f"`{graph.name}` has {size:,} bytes of weights, but an ONNX file can hold at most 2 GB",
            help="`--half` halves the size",
        )
    onnx = import_onnx()
    made = onnx.helper
    inputs = [
        made.make_tensor_value_info(x.name, _element_type(onnx, x.dtype), ["N", *x.shape])
        for x in graph.inputs
    ]
    scores = made.make_tensor_value_info(SCORES, onnx.TensorProto.FLOAT, ["N", *graph.output_shape])
    model = made.make_model(
        made.make_graph(
            [_make_node(onnx, n) for n in graph.nodes],
            graph.name,
            inputs,
            [scores],
            [onnx.numpy_helper.from_array(v, name) for name, v in graph.constants.items()],
        ),
        producer_name="netdsl",
        producer_version=__version__,
        opset_imports=[made.make_opsetid("", graph.opset)],
        ir_version=made.find_min_ir_version_for([made.make_opsetid("", graph.opset)]),
    )
    made.set_model_props(model, dict(metadata))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise internal_error(f"the model is not valid: {e}") from None
    return model


def import_onnx() -> Any:
    """Returns the package `onnx`. Raises NetError if it is not there."""
    return import_optional("onnx", "ONNX needs the package `onnx`", "pip install 'netdsl[onnx]'")


def _element_type(onnx: Any, dtype: str) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _make_node(onnx: Any, node: ExportNode) -> Any:
    attrs = {k: _element_type(onnx, v) if k == "to" else v for k, v in node.attrs.items()}
    return onnx.helper.make_node(node.op, list(node.inputs), [node.result], node.name, **attrs)
