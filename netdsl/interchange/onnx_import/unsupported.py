"""What to say about a model that netdsl cannot express: the operators, and the family of models
that they show it to be of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from netdsl.errors import Diagnostic, NetError
from netdsl.interchange.onnx_import.graph import OnnxGraph, OnnxNode
from netdsl.interchange.onnx_import.idioms import IDIOM_DOMAIN
from netdsl.text_escaping import escape_line

NO_LAYER = "there is no layer for it"
_ATTENTION = "attention (transformers)"
_RECURRENCE = "recurrence"
_CONTROL_FLOW = "control flow"
_DETECTION = "box decoding (detectors)"
_QUANTIZED = "quantised arithmetic"
_FAMILIES = {
    **dict.fromkeys(("Attention", "com.microsoft.Attention"), _ATTENTION),
    **dict.fromkeys(("MultiHeadAttention", "com.microsoft.MultiHeadAttention"), _ATTENTION),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENCE),
    **dict.fromkeys(("If", "Loop", "Scan"), _CONTROL_FLOW),
    **dict.fromkeys(("NonMaxSuppression", "RoiAlign", "MaxRoiPool"), _DETECTION),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _QUANTIZED),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"), _QUANTIZED),
}
"""Operators that only models of one family have."""
_FLOAT_HELP = "nothing was written; export the floating-point model before quantisation"
_PASSING = frozenset(("Cast", "Dropout", "Identity", "Reshape", "Transpose"))


class UnsupportedGraphError(NetError):
    """Operators, or orders of axes, that netdsl cannot express."""


@dataclass(frozen=True)
class Problem:
    """What cannot be expressed, where, and why."""

    operator: str
    place: str
    reason: str


def unsupported_error(graph: OnnxGraph, problems: Sequence[Problem]) -> NetError:
    """One message with what the model contains as a whole, and every operator, its reason and its
    places."""
    places: dict[tuple[str, str], list[str]] = {}
    for p in problems:
        operator = p.operator.removeprefix(f"{IDIOM_DOMAIN}.")
        places.setdefault((escape_line(operator), p.reason), []).append(p.place)
    families = dict.fromkeys(_families(graph))
    notes = [f"the model has {family}, which is not in the language" for family in families]
    notes += [f"{op}: {why} ({', '.join(where)})" for (op, why), where in places.items()]
    count = len({p.operator for p in problems})
    what = "an operator" if count == 1 else f"{count} operators"
    return UnsupportedGraphError(
        Diagnostic(
            f"{graph.origin} has {what} that netdsl cannot express, at {len(problems)} "
            + ("place" if len(problems) == 1 else "places"),
            help=_FLOAT_HELP if _QUANTIZED in families else "nothing was written",
            notes=tuple(notes),
        )
    )


def _families(graph: OnnxGraph) -> Iterator[str]:
    for node in graph.nodes:
        if node.operator in _FAMILIES:
            yield _FAMILIES[node.operator]
        elif node.operator == "MatMul" and _is_attention(graph, node):
            yield _ATTENTION


def _is_attention(graph: OnnxGraph, node: OnnxNode) -> bool:
    """Whether a product weighs computed values by a softmax."""
    if any(name in graph.constants for name in node.inputs) or len(node.inputs) != 2:
        return False
    producer = graph.producers.get(node.inputs[0])
    while producer is not None and producer.operator in _PASSING and producer.inputs:
        producer = graph.producers.get(producer.inputs[0])
    return producer is not None and producer.operator in ("Softmax", f"{IDIOM_DOMAIN}.softmax")
