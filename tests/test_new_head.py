"""A new head on trained weights begins with small scores, whatever the size of its features."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.runtime.state import draw_initial_value
from netdsl.training.recipe.score_layers import shrink_score_weights
from netdsl.training.run.trainer import Trainer
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint

NET = """net a {
  input(8x8x1)
  stem: conv(8, 3x3, pad=same) -> relu
  head: globalavgpool -> fc(10)
}
data { source = digits, batch = 32, validation = 64 }
"""
REFERENCE = open_backend("reference")


def start(train: str) -> Trainer:
    return Trainer(build_program(parse(f"{NET}train {{ {train} }}", "a.net")), None, REFERENCE)


def first_loss(trainer: Trainer) -> float:
    return trainer.evaluator.validate(lambda images: None).loss


@pytest.mark.parametrize("size", [0.5, 40])
def test_the_first_loss_is_that_of_a_guess(size: float, tmp_path: Path) -> None:
    """Features may be far larger than those of a net that has not learned."""
    states = start("seed = 1").state.snapshot()
    states["stem.conv1.weight"] = states["stem.conv1.weight"] * np.float32(size)
    checkpoint.save(tmp_path / "w", Checkpoint(states, NET, tuple("0123456789"), {}, {}))
    init = f'init = weights("{tmp_path / "w"}", except="head.*"'
    guess, small, usual = math.log(10), start(f"{init})"), start(f"{init}, score_scale=1)")
    w = usual.state.snapshot()["head.fc1.weight"]
    np.testing.assert_allclose(small.state.snapshot()["head.fc1.weight"], 0.01 * w, rtol=1e-6)
    assert abs(first_loss(small) - guess) <= 0.05
    assert (first_loss(usual) > 2 * guess) == (size > 1)


@pytest.mark.parametrize(
    ("body", "layers"),
    [
        ("fc(10)", ["head"]),
        ("fc(16) -> relu -> fc(10)", ["head.fc2"]),
        ("fc(16) -> relu -> dropout(0.5) -> fc(10) -> dropout(0.1)", ["head.fc2"]),
        ("conv(10, 1x1) -> globalavgpool", ["head.conv1"]),
        ("conv(10, 1x1) -> maxpool(8x8)", ["head.conv1"]),
        ("conv(10, 1x1) -> relu -> globalavgpool", []),
        ("conv(10, 1x1) -> batchnorm -> globalavgpool", []),
        ("fc(10, weight=normal(0.1))", []),
        ("fc(10, weight=weightnorm(he))", []),
        ("fc(16) -> relu\n output more: fc(10)\n fc(10)", ["fc1", "more.fc1"]),
    ],
)
def test_only_a_layer_of_scores_without_an_initialiser_is_drawn_small(
    body: str, layers: list[str]
) -> None:
    network = elaborate(build_program(parse(f"net a {{ input(8x8x1)\n head: {body} }}")), None)
    names = [n.name for n in network.graph.states]
    small = shrink_score_weights(network, names, 0.01)
    assert [n.name for n in small] == [f"{path}.weight" for path in layers]
    for node in small:
        np.testing.assert_allclose(
            draw_initial_value(node, 3),
            0.01 * draw_initial_value(network.graph[node.name], 3),
            rtol=1e-6,
        )
    assert shrink_score_weights(network, [], 0.01) == ()


def test_a_run_without_weights_draws_as_ever() -> None:
    trainer = start("seed = 5")
    drawn = trainer.state.snapshot()
    for node in elaborate(build_program(parse(NET)), None, Settings()).graph.states:
        np.testing.assert_array_equal(drawn[node.name], draw_initial_value(node, 5))
