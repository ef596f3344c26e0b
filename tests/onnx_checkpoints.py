"""Checkpoints with drawn weights, and their exports run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import onnx
import onnxruntime

from netdsl.interchange.onnx_export.comparison import draw_inputs, to_channels_first
from netdsl.ir.interpreter import evaluate_graph, evaluate_results
from netdsl.language import syntax as s
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file
from netdsl.language.inline import inline_uses
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program
from netdsl.runtime.state import draw_initial_value
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.types import Array

RECIPE = """
data { source = digits, normalize = by(mean=[0.45], std=[0.25]) }
train { net = NET, shrink = DIVISOR }
"""


def draw_states(network: Network) -> dict[str, Array]:
    """States as training might leave them: running statistics too are away from 0 and 1."""
    states = {}
    for node in network.graph.states:
        rng = np.random.default_rng(crc32(node.name.encode()))
        shape, last = node.type.shape, node.name.rpartition(".")[2]
        if last == "running_var":
            value = rng.uniform(0.5, 1.5, shape)
        elif last in ("gamma", "weight_g"):
            value = rng.uniform(0.7, 1.3, shape)
        elif last in ("running_mean", "beta", "bias", "slope"):
            value = rng.normal(0, 0.3, shape)
        else:
            value = draw_initial_value(node, 1)
        states[node.name] = value.astype(np.float32)
    return states


def calibrate(network: Network, states: Mapping[str, Array]) -> dict[str, Array]:
    """The states with running statistics near those of a batch, as training leaves them: values
    then keep their scale from layer to layer. `network` is elaborated for training."""
    graph = network.graph
    counters = {n.name: np.int32(1) for n in graph.inputs if n.type.dtype == "int32"}
    found = evaluate_results(graph, {**draw_inputs(network), **counters, **states})
    calibrated = dict(states)
    for name, update in graph.updates.items():
        old, rng = states[name], np.random.default_rng(crc32(name.encode()))
        moment = old + (found[f"update {name}"] - old) / (1 - graph[update].attrs["decay"])
        calibrated[name] = (moment * rng.uniform(0.8, 1.2, old.shape)).astype(np.float32)
    return calibrated


def zoo_text(program: Program, net: str, divisor: int = 1) -> str:
    """A net of the zoo with what it uses, and a recipe that makes it small."""
    file = inline_uses(program)
    kept = tuple(i for i in file.items if not isinstance(i, s.Section | s.Test))
    text = format_file(s.File(file.span, kept))
    return text + RECIPE.replace("NET", net).replace("DIVISOR", str(divisor))


def write_checkpoint(path: Path, text: str) -> Checkpoint:
    """Writes a checkpoint of a file's recipe with drawn weights."""
    program = build_program(parse(text))
    recipe = resolve_recipe(program)
    network = elaborate(program, recipe.net, recipe.settings(training=True, batch=4))
    output = network.graph[network.graph.outputs["main"]]
    classes = tuple(f"class {i}" for i in range(output.type.shape[-1]))
    content = Checkpoint(calibrate(network, draw_states(network)), text, classes, {}, {})
    checkpoint.save(path, content)
    return content


def evaluate_scores(network: Network, states: Mapping[str, Array], inputs: Any) -> Array:
    """The main output by the references of the operators, its images [N,C,H,W]."""
    values = evaluate_graph(network.graph, {**states, **inputs})
    return to_channels_first(values[network.graph.outputs["main"]])


def run_model(model: Any, inputs: Mapping[str, Array]) -> Array:
    """The scores of a model for inputs as it takes them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    known = {x.name for x in session.get_inputs()}
    return session.run(None, {k: v for k, v in inputs.items() if k in known})[0]


def model_inputs(network: Network, count: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs of a net in its layout, and those of the first `count` samples as its model takes
    them."""
    inputs = draw_inputs(network)
    given = {
        k: (x if x.dtype == np.uint8 else to_channels_first(x))[:count] for k, x in inputs.items()
    }
    return inputs, given


def constants_of(model: Any) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def metadata_of(model: Any) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}
