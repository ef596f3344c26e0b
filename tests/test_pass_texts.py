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

from netdsl.ir.builder import Builder
from netdsl.ir.evaluate import results
from netdsl.ir.grad import grad
from netdsl.ir.parse import parse_all
from netdsl.ir.text import to_text
from netdsl.ir.verify import verify
from netdsl.passes.algebraic import algebraic
from netdsl.passes.fold import fold, split
from netdsl.passes.lower import lower, lower_im2col
from netdsl.passes.precision import mixed
from netdsl.passes.recompute import recompute
from netdsl.passes.rewrite import common, dead
from netdsl.passes.simplify import simplify
from netdsl.types import Graph
from tests.conftest import ROOT
from tests.graphs import values_for
from tests.test_passes import same_folded

FILES = sorted((ROOT / "tests" / "passes").glob("*.ir"))
HEAD = "# pass: "


def folded(graph: Graph) -> tuple[Graph, ...]:
    found = split(fold(graph))
    same_folded(graph, found, values_for(graph))
    return found.main, found.prepare


def differentiated(graph: Graph, loss: str, *targets: str) -> tuple[Graph, ...]:
    """The graph with the gradients of `targets` as outputs."""
    b = Builder(graph)
    found = grad(b, b.nodes[loss], [b.nodes[t] for t in targets])
    gradients = {f"d {target}": node for target, node in found.items()}
    outputs = {label: b.nodes[name] for label, name in graph.outputs.items()} | gradients
    return (dead(b.graph(outputs, name=graph.name)),)


def computed_again(graph: Graph, *region: str) -> tuple[Graph, ...]:
    forward = [n for n in graph.nodes if not n.startswith("d.")]
    return (recompute(graph, forward, dict.fromkeys(region, "region")),)


PASSES: dict[str, Callable[..., tuple[Graph, ...]]] = {
    "common": lambda graph: (common(graph),),
    "dead": lambda graph: (dead(graph),),
    "simplify": lambda graph: (simplify(graph),),
    "lower": lambda graph: (lower(graph),),
    "im2col": lambda graph: (lower_im2col(graph),),
    "mixed": lambda graph: (mixed(graph, "bfloat16"),),
    "algebraic": lambda graph: (algebraic(graph, -math.inf),),
    "fold": folded,
    "recompute": computed_again,
    "grad": differentiated,
}
TOLERANCE = {"mixed": 0.1}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_pass_gives_what_its_file_says(path: Path) -> None:
    head, name, *words = command(path)
    before, *_ = parse_all(path.read_text(), path.name)
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
    before, after, *prepare = map(verify, parse_all(path.read_text(), path.name))
    if prepare:
        return  # `fold` is held against it as it runs
    values = {k: v.astype(before[k].type.dtype) for k, v in values_for(before).items()}
    one, two = results(before, values), results(after, values)
    most = TOLERANCE.get(command(path)[1], 1e-5)
    for label, value in one.items():
        expected, found = (np.asarray(x, "float64") for x in (value, two[label]))
        np.testing.assert_allclose(found, expected, rtol=most, atol=most)


def test_every_pass_has_a_file() -> None:
    assert {command(path)[1] for path in FILES} == PASSES.keys()
    assert len(FILES) >= 10
