"""Training as a whole: it learns, it repeats, what it saves can be used, what is wrong is told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.inference import Predictor
from netdsl.language.elaborate import elaborate
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program
from netdsl.runtime.executor import Executor
from netdsl.runtime.state import State
from netdsl.training.recipe.expectations import judge_expectations
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.run.callbacks import Result
from netdsl.training.run.trainer import Trainer
from netdsl.training.step.graphs import evaluation_graph, training_graph
from netdsl.training.store import checkpoint

NET = """
net small {
  input(8x8x1)
  conv(8, 3x3, pad=same) -> batchnorm -> relu -> maxpool(2x2)
  output side(weight=0.3): fc(10)
  fc(32) -> relu -> dropout(0.1) -> fc(10)
}
data { source = digits, batch = 32 }
train { optimizer = adam(lr=0.003), epochs = 2, clip = 5, expect val_accuracy >= 0.5 }
"""
REFERENCE = open_backend("reference")


def read(text: str = NET) -> Program:
    return build_program(parse(text, "small.net"))


def train(out: Path, text: str = NET) -> Result:
    return Trainer(read(text), None, REFERENCE).run(out, lambda p: None, lambda m: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("run")
    return train(out), out


def test_it_learns_and_keeps_what_it_needs(run: Any) -> None:
    result, out = run
    assert result.metrics["test_accuracy"] > 0.85
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [x.get("epoch") for x in lines] == [1, 2, None]
    assert lines[2]["best_epoch"] == result.metrics["best_epoch"]
    assert lines[1]["train_loss"] < lines[0]["train_loss"]
    assert {p.name for p in out.iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "recipe.net",
    }
    assert build_program(parse((out / "recipe.net").read_text())).nets.keys() == {"small"}


def test_the_same_seed_gives_the_same_bits(run: Any, tmp_path: Path) -> None:
    first = checkpoint.load(run[1] / "last.safetensors")
    train(tmp_path)
    second = checkpoint.load(tmp_path / "last.safetensors")
    assert first.states.keys() == second.states.keys()
    for name, value in first.states.items():
        np.testing.assert_array_equal(value, second.states[name])
    files = [p / "last.safetensors" for p in (run[1], tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_s_own_text_repeats_it(run: Any, tmp_path: Path) -> None:
    train(tmp_path, (run[1] / "recipe.net").read_text())
    files = [p / "last.safetensors" for p in (run[1], tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_another_seed_gives_other_weights(run: Any, tmp_path: Path) -> None:
    train(tmp_path, NET.replace("epochs = 2", "epochs = 1, seed = 2"))
    first, second = (
        checkpoint.load(p / "last.safetensors").states["conv1.weight"] for p in (run[1], tmp_path)
    )
    assert not np.array_equal(first, second)


def test_weights_alone_evaluate_to_what_training_measured(run: Any) -> None:
    result, out = run
    report = Predictor(out, REFERENCE).evaluate(None)
    assert report.score.accuracy == pytest.approx(result.metrics["test_accuracy"])
    assert report.score.images == result.metrics["test_images"] == 359
    assert report.confusion.sum() == 359
    assert np.trace(report.confusion) / 359 == pytest.approx(report.score.accuracy)


ARRAYS = """
net a {{ input(4x4x1); fc(2) }}
data {{ source = arrays("x.npz"), batch = 8, validation = {} }}
train {{ epochs = 2 }}
"""


def _write_arrays(path: Path, count: int = 40, **more: Any) -> None:
    labels = np.arange(count) % 2
    images = (
        np.random.default_rng(count).integers(0, 99, (count, 4, 4)) + 150 * labels[:, None, None]
    )
    np.savez(path, images=images.astype(np.uint8), labels=labels, **more)


def test_a_run_is_evaluated_on_images_that_it_held_out(
    netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no test images; and what else it is evaluated on is said."""
    monkeypatch.chdir(tmp_path)
    _write_arrays(tmp_path / "x.npz")
    (tmp_path / "a.net").write_text(ARRAYS.format(0.25))
    (tmp_path / "all.net").write_text(ARRAYS.format(0))
    cpu = ("--device", "reference")
    code, out, err = netdsl("train", "a.net", "--out", "run", "--json", *cpu)
    assert code == 0, err
    saved = checkpoint.load(tmp_path / "run" / "best.safetensors")
    code, out, _ = netdsl("eval", "run", "--json", *cpu)
    found = json.loads(out)
    assert (code, found["part"], found["images"]) == (0, "validation", 10)
    assert found["loss"] == pytest.approx(saved.metrics["val_loss"], rel=1e-5)
    assert "10 validation images\nmeans" in netdsl("eval", "run", *cpu)[1]
    assert netdsl("train", "all.net", "--out", "all", *cpu)[0] == 0
    out = netdsl("eval", "all", *cpu)[1]
    assert "40 training images\nthe weights were learned from these images\n" in out
    _write_arrays(tmp_path / "x.npz", 30)
    out = netdsl("eval", "run", *cpu)[1]
    assert "30 training images\nthe data set is not that of the run" in out
    _write_arrays(
        tmp_path / "x.npz", 40, test_images=np.zeros((6, 4, 4), np.uint8), test_labels=[0] * 6
    )
    assert "6 test images\nmeans" in netdsl("eval", "run", *cpu)[1]
    progress = {**saved.progress, "pipeline": {"validation split": 1}}
    checkpoint.save(tmp_path / "old.safetensors", replace(saved, progress=progress))
    _write_arrays(tmp_path / "x.npz")
    out = netdsl("eval", "old.safetensors", *cpu)[1]
    assert "40 training images\nthe weights were learned from most of these images;" in out


def test_pictures_are_predicted_as_the_test_set_is(run: Any, tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    right = 0
    paths = []
    for i in range(4, 104, 5):
        pixels = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)
        paths.append(tmp_path / f"{digits.target[i]}-{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    for found in Predictor(run[1] / "best.safetensors", REFERENCE).predict(paths):
        right += found.path.name.startswith(found.top[0][0])
        assert len(found.top) == 5
        assert [p for _, p in found.top] == sorted((p for _, p in found.top), reverse=True)
        assert found.labels is None
    assert right >= 16


def test_expectations_are_judged() -> None:
    recipe = resolve_recipe(read())
    assert [m.ok for m in judge_expectations(recipe.expectations, {"val_accuracy": 0.6})] == [True]
    assert [m.ok for m in judge_expectations(recipe.expectations, {"val_accuracy": 0.4})] == [False]


def test_what_was_not_measured_meets_no_expectation() -> None:
    recipe = resolve_recipe(read())
    (met,) = judge_expectations(recipe.expectations, {"val_accuracy": None, "train_loss": 0.1})
    assert not met.ok
    assert met.figures == "val_accuracy was not measured"


def test_the_loss_falls_on_a_repeated_batch() -> None:
    recipe = resolve_recipe(read())
    network = elaborate(read(), None, recipe.settings(training=True))
    graph = training_graph(network, recipe)
    state = State(REFERENCE)
    state.initialise(graph.states, seed=1)
    step = Executor(graph, REFERENCE, state)
    rng = np.random.default_rng(0)
    given = {
        "input": rng.integers(0, 256, (32, 8, 8, 1)).astype(np.uint8),
        "labels": rng.integers(0, 10, 32).astype(np.int32),
        "weights": np.ones(32, np.float32),
        "lr": np.float32(0.003),
        "seed": np.int32(1),
        "rank": np.int32(0),
    }
    losses = [float(step.run({**given, "step": np.int32(i)})["loss"]) for i in range(40)]
    assert losses[-1] < 0.3 * losses[0]
    assert all(np.isfinite(losses))


def test_side_outputs_weigh_in_training_only() -> None:
    recipe = resolve_recipe(read())
    training = training_graph(elaborate(read(), None, recipe.settings(training=True)), recipe)
    assert training.outputs["loss"] != training.outputs["main_loss"]
    evaluating = elaborate(read(), None, recipe.settings(training=False, batch=4))
    state = State(REFERENCE)
    graph = evaluation_graph(evaluating, recipe)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, REFERENCE, state)
    assert "side.weight" not in executor.state_names


def test_clipping_bounds_the_joint_norm() -> None:
    from netdsl.ir.builder import Builder
    from netdsl.ir.interpreter import evaluate_results
    from netdsl.training.step.graphs import _clip_gradients
    from netdsl.types import TensorType

    b = Builder(dtype="float64")
    kind = TensorType((4,), "float64")
    given = {"a": np.full(4, 3.0), "z": np.full(4, 4.0)}
    clipped = _clip_gradients(b, {n: b.input(n, kind) for n in given}, 1.0)
    out = evaluate_results(b.build(clipped), given)
    norm = np.sqrt(sum((v * v).sum() for v in out.values()))
    assert norm == pytest.approx(1.0, rel=1e-5)
    assert out["z"][0] / out["a"][0] == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("8x8x1", "8x8x3"), "the images are 8x8x1"),
        (("-> fc(10)\n}", "-> fc(11)\n}"), "10 classes"),
        (("-> fc(10)\n}", "-> fc(10) -> softmax\n}"), "takes plain scores"),
        (("batch = 32", "batch = 5000"), "a batch of 5000"),
        (("batch = 32", "validation = 5000"), "cannot be held out"),
        (
            ("fc(32) -> relu", "fc(10)\n x: input(8x8x1) -> relu"),
            "inputs",
        ),
        (("batch = 32", "normalize = imagenet"), "has 3 channels"),
    ],
)
def test_what_does_not_fit_is_told_before_it_runs(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    assert change[0] in NET
    with pytest.raises(NetError, match=complaint):
        train(tmp_path / "out", NET.replace(*change))
    assert not (tmp_path / "out").exists()


def damaged(content: bytes, how: str) -> bytes:
    match how:
        case "empty":
            return b""
        case "truncated":
            return content[: len(content) // 2]
        case "header":
            return content[:20] + b"\xff" * 8 + content[28:]
        case _:
            return b"\xff" * 8 + content[8:]


@pytest.mark.parametrize("how", ["empty", "truncated", "header", "length"])
def test_a_damaged_checkpoint_is_told(run: Any, tmp_path: Path, how: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(damaged((run[1] / "best.safetensors").read_bytes(), how))
    with pytest.raises(NetError, match=r"x\.safetensors"):
        Predictor(path, REFERENCE)


def test_foreign_weights_are_told(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(NetError, match="weights without a net, not a checkpoint"):
        Predictor(tmp_path / "x.safetensors", REFERENCE)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(
            lambda name: name != "__metadata__"
        ),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        max_size=4,
    )
)
def test_a_checkpoint_is_the_file_that_safetensors_writes(shapes: dict[str, Any]) -> None:
    from safetensors.numpy import load_file
    from safetensors.numpy import save as to_bytes

    states = {n: np.arange(math.prod(s), dtype=np.float32).reshape(s) for n, s in shapes.items()}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        checkpoint.save(path, checkpoint.Checkpoint(states, "net", ("é",), {}, {}))
        with safe_open(path, "np") as f:
            metadata = f.metadata()
        assert path.read_bytes() == to_bytes(states, metadata)
        found = load_file(path)
    assert found.keys() == states.keys()
    for name, value in states.items():
        np.testing.assert_array_equal(found[name], value)


def test_states_of_another_shape_are_named(run: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    saved = checkpoint.load(run[1] / "best.safetensors")
    states = {**saved.states, "conv1.weight": np.zeros((8, 3, 3, 2), np.float32)}
    checkpoint.save(tmp_path / "x.safetensors", replace(saved, states=states))
    with pytest.raises(NetError, match=r"`conv1.weight` is 8x3x3x2"):
        Predictor(tmp_path / "x.safetensors", REFERENCE).predict([])


def test_nothing_saved_is_lost_when_writing_fails(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    path = tmp_path / "x.safetensors"
    saved = checkpoint.load(run[1] / "best.safetensors")
    checkpoint.save(path, saved)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NetError, match="No space left"):
        checkpoint.save(path, saved)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.slow
def test_lenet_on_mnist_after_one_epoch(data_dir: Path, tmp_path: Path) -> None:
    from netdsl.language.override import override
    from tests.conftest import ROOT

    file = parse((ROOT / "models" / "lenet.net").read_text())
    p = build_program(override(file, ["train.epochs=1"]))
    trainer = Trainer(p, None, REFERENCE, str(data_dir / "mnist"))
    result = trainer.run(tmp_path, lambda p: None, lambda m: None)
    assert result.metrics["test_images"] == 10_000
    assert result.metrics["test_accuracy"] >= 0.97


@pytest.mark.slow
def test_a_small_net_learns_four_thousand_pictures(data_dir: Path, tmp_path: Path) -> None:
    from netdsl.language.override import override
    from tests.conftest import ROOT

    file = parse((ROOT / "models" / "cifar.net").read_text())
    p = build_program(override(file, ["train.epochs=5"]))
    trainer = Trainer(p, None, REFERENCE, str(data_dir))
    assert (len(trainer.job.train), len(trainer.job.validation)) == (3500, 500)
    result = trainer.run(tmp_path, lambda p: None, lambda m: None)
    assert result.metrics["val_accuracy"] > 0.35
