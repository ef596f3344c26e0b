"""Passes as text in, text out: tests/passes/*.ir, one behaviour each.

A file holds a sentence, the pass that is run, the graph before it and what comes out.
NETDSL_GOLDEN=write renews what comes out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.interpreter import evaluate_results
from netdsl.ir.printer import to_text
from netdsl.ir.text_parser import parse_graphs
from netdsl.ir.verifier import verify_graph
from netdsl.passes.algebraic_batch_norm import rewrite_batch_norms
from netdsl.passes.batch_norm_folding import fold_batch_norms, split_preparation
from netdsl.passes.conv_lowering import lower_convolutions, lower_im2col
from netdsl.passes.mixed_precision import convert_to_mixed_precision
from netdsl.passes.recompute import recompute
from netdsl.passes.rewrite import eliminate_common_subexpressions, eliminate_dead_nodes
from netdsl.passes.simplify import simplify
from netdsl.types import Graph
from tests.conftest import ROOT
from tests.graphs import make_values
from tests.test_passes import same_folded

FILES = sorted((ROOT / "tests" / "passes").glob("*.ir"))
HEAD = "# pass: "


def folded(graph: Graph) -> tuple[Graph, ...]:
    found = split_preparation(fold_batch_norms(graph))
    same_folded(graph, found, make_values(graph))
    return found.main, found.prepare


def differentiated(graph: Graph, loss: str, *targets: str) -> tuple[Graph, ...]:
    """The graph with the gradients of `targets` as outputs."""
    b = Builder(graph)
    found = grad(b, b.nodes[loss], [b.nodes[t] for t in targets])
    gradients = {f"d {target}": node for target, node in found.items()}
    outputs = {label: b.nodes[name] for label, name in graph.outputs.items()} | gradients
    return (eliminate_dead_nodes(b.build(outputs, name=graph.name)),)


def computed_again(graph: Graph, *region: str) -> tuple[Graph, ...]:
    forward = [n for n in graph.nodes if not n.startswith("d.")]
    return (recompute(graph, forward, dict.fromkeys(region, "region")),)


PASSES: dict[str, Callable[..., tuple[Graph, ...]]] = {
    "common": lambda graph: (eliminate_common_subexpressions(graph),),
    "dead": lambda graph: (eliminate_dead_nodes(graph),),
    "simplify": lambda graph: (simplify(graph),),
    "lower": lambda graph: (lower_convolutions(graph),),
    "im2col": lambda graph: (lower_im2col(graph),),
    "mixed": lambda graph: (convert_to_mixed_precision(graph, "bfloat16"),),
    "algebraic": lambda graph: (rewrite_batch_norms(graph, -math.inf),),
    "fold": folded,
    "recompute": computed_again,
    "grad": differentiated,
}
TOLERANCE = {"mixed": 0.1}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_pass_gives_what_its_file_says(path: Path) -> None:
    head, name, *words = command(path)
    before, *_ = parse_graphs(path.read_text(), path.name)
    found = PASSES[name](before, *words)
    text = head + "\n".join(map(to_text, (before, *found)))
    if os.environ.get("NETDSL_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def command(path: Path) -> tuple[str, ...]:
    """The comments that a file begins with, the pass and what it is given."""
    lines = path.read_text().split("\n")
    head = [line for line in lines if line.startswith("#")]
    assert lines[: len(head)] == head
    assert head[-1].startswith(HEAD)
    return "\n".join(head) + "\n", *head[-1].removeprefix(HEAD).split()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_what_a_file_says_computes_the_same(path: Path) -> None:
    before, after, *prepare = map(verify_graph, parse_graphs(path.read_text(), path.name))
    if prepare:
        return  # `fold` is held against it as it runs
    values = {k: v.astype(before[k].type.dtype) for k, v in make_values(before).items()}
    one, two = evaluate_results(before, values), evaluate_results(after, values)
    most = TOLERANCE.get(command(path)[1], 1e-5)
    for label, value in one.items():
        expected, found = (np.asarray(x, "float64") for x in (value, two[label]))
        np.testing.assert_allclose(found, expected, rtol=most, atol=most)


def test_every_pass_has_a_file() -> None:
    assert {command(path)[1] for path in FILES} == PASSES.keys()
    assert len(FILES) >= 10
