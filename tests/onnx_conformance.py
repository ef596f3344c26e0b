"""The node tests of the ONNX project, run through the import: each is a model of one operator with
inputs and outputs.

What an operator takes as weights is an input there. So each test is tried with all inputs computed
by the net, then with all but the first as constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netdsl.errors import NetError
from netdsl.interchange.layer_graph import INPUT
from netdsl.interchange.onnx_import.constant_folding import FOLDABLE
from netdsl.interchange.onnx_import.importer import read_onnx
from netdsl.interchange.onnx_import.operators import RULES
from netdsl.interchange.structure.structured_net import state_keys, structure
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import build_program, reject_read
from netdsl.types import Array

MAX_VALUES = 10**6
"""Of a test's inputs and outputs: larger ones take long by reference."""
_OPERAND = "is a constant"


@dataclass(frozen=True)
class NodeTest:
    """A test: its model, its inputs and its outputs by name, and the tolerances."""

    name: str
    model: Any
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rtol: float
    atol: float


def node_tests() -> Iterator[NodeTest]:
    """The tests of the operators that the import knows, with tensors alone."""
    from onnx.backend.test.loader import load_model_tests

    for case in load_model_tests(kind="node"):
        graph = case.model.graph
        operators = {n.op_type for n in graph.node}
        if not operators <= RULES.keys() | FOLDABLE or operators <= FOLDABLE - RULES.keys():
            continue
        given, wanted = case.data_sets[0]
        values = (*given, *wanted)
        if all(isinstance(v, np.ndarray) and v.dtype != object for v in values):
            inputs = dict(zip((v.name for v in graph.input), given, strict=False))
            outputs = dict(zip((v.name for v in graph.output), wanted, strict=False))
            if sum(v.size for v in values) <= MAX_VALUES:
                yield NodeTest(case.name, case.model, inputs, outputs, case.rtol, case.atol)


def run_node_test(test: NodeTest, folder: Path) -> str:
    """What is wrong with the import of a test; empty if nothing is."""
    names = list(test.inputs)
    reasons = [
        _try(test, folder / f"{test.name}.onnx", constants)
        for constants in dict.fromkeys(((), tuple(names[1:])))
    ]
    return (
        "" if "" in reasons else next((r for r in reasons[::-1] if _OPERAND not in r), reasons[0])
    )


def _try(test: NodeTest, path: Path, constants: Sequence[str]) -> str:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    for value in list(model.graph.input):
        if value.name in constants:
            model.graph.input.remove(value)
    tensors = [onnx.numpy_helper.from_array(test.inputs[n], n) for n in constants]
    model.graph.initializer.extend(tensors)
    del model.graph.output[1:]
    path.write_bytes(model.SerializeToString())
    try:
        found = run_import(path, {k: v for k, v in test.inputs.items() if k not in constants})
    except NetError as e:
        first = e.diagnostics[0]
        return " ".join((*first.notes, first.message)[:1]).replace(str(path), "the model")
    wanted = next(iter(test.outputs.values()))
    rtol = max(test.rtol, 1e-4 if wanted.dtype.itemsize > 2 else 2e-2)
    wanted = wanted.astype(np.float32)
    if found.size != wanted.size:
        return f"gives {found.size} values, not {wanted.size}"
    is_same = np.allclose(found.reshape(wanted.shape), wanted, rtol, max(test.atol, 1e-5))
    return "" if is_same else "gives other values"


def run_import(path: Path, inputs: Mapping[str, Array]) -> Array:
    """The main output that the import of a model gives by reference, in netdsl's layout."""
    imported = read_onnx(path)
    structured = structure(imported.graph)
    network = structured.network
    keys = state_keys(network, structured, imported.graph)
    first = next(iter(inputs.values()))
    batch = first.shape[0] if first.ndim > 1 else 1
    program = build_program(structured.file, reject_read)
    network = elaborate(program, structured.name, Settings(batch=batch))
    feeds = {name: imported.states[key] for name, key in keys.items()}
    nodes = (n for n in network.graph.inputs if n.type.rank > 1)
    written = (n for n in structured.order if imported.graph.nodes[n].layer == INPUT)
    given = dict(zip(imported.orders, inputs.values(), strict=False))
    for node, origin in zip(nodes, written, strict=True):
        turned = given[origin].transpose(imported.orders[origin])
        turned = turned.reshape(node.type.shape)
        if imported.pixels is not None:
            pixels = turned * (255 / imported.pixels.top)
            turned = pixels * np.array(imported.pixels.factors) + np.array(imported.pixels.offsets)
        feeds[node.name] = turned.astype(np.float32)
    found = _apply_softmax(evaluate_results(network.graph, feeds)["main"], imported.notes)
    return to_onnx(found, imported.orders["main"])


def to_onnx(found: Array, order: Sequence[int]) -> Array:
    """A result with its axes in the order of ONNX."""
    return found.transpose(np.argsort(order)) if len(order) == found.ndim else found


def _apply_softmax(scores: Array, notes: Sequence[str]) -> Array:
    """What an import leaves out at the end, as its notes say."""
    text = " ".join(notes)
    if "softmax" not in text:
        return scores
    shifted = scores - scores.max(-1, keepdims=True)
    logarithm = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logarithm if "log_softmax" in text else np.exp(logarithm)
