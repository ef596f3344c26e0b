"""Exports read as any other file: a net of its own text that computes the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netdsl.interchange.onnx_export.comparison import relative_difference
from netdsl.interchange.onnx_export.exporter import ExportOptions, export_graph
from netdsl.interchange.onnx_export.model import make_model
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.network_builder import ShrinkSettings
from netdsl.language.program import Program, load_program
from netdsl.training.store import checkpoint
from tests.onnx_checkpoints import draw_states, evaluate_scores, model_inputs
from tests.test_zoo import NETS, PROGRAMS, lines, parts

QUICK = {"layer", "local_small", "mobilenet_small", "siamese"}
NORMALISED = {"weight"}
"""Nets whose weights are stored as their values, without the lengths that were learned."""
MAX_LINES_ADDED = 14


def rebuild(netdsl: Any, network: Network, options: ExportOptions) -> tuple[Program, Network, Any]:
    """The program, the net and the states that an import makes of an export without its .net."""
    states = draw_states(network)
    model = make_model(export_graph(network, states, options), {})
    Path("x.onnx").write_bytes(model.SerializeToString())
    command = ("import", "x.onnx", "-o", "x.net", "--weights", "x.safetensors", "--rebuild")
    code, _, err = netdsl(*command)
    assert (code, err) == (0, "")
    found = checkpoint.load(Path("x.safetensors"))
    program = load_program("x.net")
    rebuilt = elaborate(program, None, Settings(batch=2))
    inputs, _ = model_inputs(network, 2)
    expected = evaluate_scores(network, states, inputs)
    renamed = dict(zip((n.name for n in rebuilt.graph.inputs), inputs.values(), strict=True))
    scores = evaluate_scores(rebuilt, found.states, renamed)
    assert relative_difference(scores.reshape(expected.shape), expected) < 1e-4
    return program, rebuilt, found


def exported_params(network: Network) -> int:
    """The number of parameters that the main output depends on."""
    return network.params - network.side_params


@pytest.mark.parametrize(
    ("file", "net"),
    [pytest.param(f, n, id=n, marks=[] if n in QUICK else [pytest.mark.slow]) for f, n in NETS],
)
def test_a_net_of_the_zoo_is_rebuilt(netdsl: Any, file: str, net: str) -> None:
    """With the parameters of the original, in a text that is not much longer; with batch norms
    folded, with the same scores."""
    original = PROGRAMS[file]
    network = elaborate(original, net, Settings(batch=2, shrink=ShrinkSettings(8)))
    program, rebuilt, _ = rebuild(netdsl, network, ExportOptions(keeps_batch_norms=True))
    if net not in NORMALISED:
        assert rebuilt.params == exported_params(network)
    before = sum(map(lines, parts(original, [net])))
    after = sum(map(lines, parts(program, list(program.nets))))
    assert after <= before + MAX_LINES_ADDED
    rebuild(netdsl, network, ExportOptions())
