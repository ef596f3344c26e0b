"""`netdsl.load`, `Net` and `netdsl.train`: what they give, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import netdsl as package
from netdsl.api import forward
from netdsl.api.arguments import format_setting
from netdsl.backends import open_backend
from netdsl.inference import Predictor
from netdsl.interrupt import find_plain_interrupt
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import elaborate
from netdsl.language.program import load_program
from netdsl.runtime.state import State
from netdsl.training.store import checkpoint
from netdsl.types import Array, Graph

TINY = """net tiny(classes=3) {
  input(6x6x3)
  stem: conv(4, 3x3, pad=same, bias=no) -> batchnorm -> relu
  head: globalavgpool -> fc(classes)
}

net other { input(5) -> fc(2) }

data {
  batch = 8, validation = 0.25
  normalize = by(mean=[0.5], std=[0.25])
  eval_transform = [resize(8), center_crop]
}

train { optimizer = adam(lr=0.05), epochs = 3 }
train quick { epochs = 1, seed = 7 }
"""
RNG = np.random.default_rng(0)
LABELS = np.arange(48) % 3
PICTURES = (RNG.integers(0, 80, (48, 6, 6, 3)) + 80 * LABELS[:, None, None, None]).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.net and the directory of a run of it."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "tiny.net").write_text(TINY)
    data = {"x_train": PICTURES, "y_train": LABELS, "classes": ["ant", "bee", "cow"]}
    package.train(folder / "tiny.net", data=data, out=folder / "run", device="cpu")
    return folder


@pytest.fixture(scope="module")
def net(folder: Path) -> package.Net:
    return package.load(folder / "run", device="cpu")


def normalised(pictures: Array) -> Array:
    """What the preprocessing makes of pictures of the net's size: resized to 8, cropped to 6."""
    return (np.asarray(pictures, np.float64) / 255 - 0.5) / 0.25


# ---- what a net is


def test_the_public_names_are_there() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_a_net_of_a_run_says_what_it_is(folder: Path, net: package.Net) -> None:
    assert (net.name, net.input_shape, net.params) == ("tiny", (6, 6, 3), 4 * 27 + 8 + 15)
    assert net.classes == ("ant", "bee", "cow")
    assert net.macs == 36 * 4 * 27 + 12
    assert net.places["stem"] == (6, 6, 4)
    assert [x.name for x in net.layers][:2] == ["stem.conv1", "stem.batchnorm1"]
    assert net.metrics == checkpoint.load(folder / "run" / "best.safetensors").metrics
    assert repr(net) == "<netdsl.Net tiny, 131 parameters>"
    assert net.graph().graph["name"] == "tiny"
    program = load_program(str(folder / "run" / "recipe.net"))
    (folder / "again.net").write_text(net.text)
    assert set(load_program(str(folder / "again.net")).nets) == set(program.nets)


def test_weights_are_those_of_the_file_and_cannot_be_changed(
    folder: Path, net: package.Net
) -> None:
    saved = checkpoint.load(folder / "run" / "best.safetensors").states
    assert dict(net.weights).keys() == saved.keys()
    assert all((net.weights[k] == v).all() for k, v in saved.items())
    with pytest.raises(ValueError, match="read-only"):
        net.weights["stem.conv1.weight"][0] = 1
    with pytest.raises(TypeError):
        net.weights["x"] = 1  # type: ignore[index]


@pytest.mark.parametrize(("name", "seed"), [("", 1), (":tiny", 1), (":quick", 7)])
def test_weights_of_a_file_are_drawn_from_the_seed_of_its_recipe(
    folder: Path, name: str, seed: int
) -> None:
    net = package.load(f"{folder}/tiny.net{name}")
    state = State(open_backend("reference"))
    network = elaborate(load_program(str(folder / "tiny.net")), "tiny")
    state.initialise(network.graph.states, seed)
    assert net.name == "tiny"
    assert net.metrics == {}
    assert net.classes == ("0", "1", "2")
    assert all((net.weights[k] == v).all() for k, v in state.items())


def test_a_net_without_a_recipe_has_the_defaults(folder: Path) -> None:
    net = package.load(f"{folder}/tiny.net:other", device="cpu")
    assert net(np.ones((3, 5))).shape == (3, 2)
    assert net(np.ones(5), at="fc1").shape == (1, 2)
    assert net.graph(train=True).graph["name"] == "other.train"


# ---- what it computes


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_values_at_every_place_are_those_of_the_graph(folder: Path, device: str) -> None:
    net = package.load(folder / "run", device)
    network = elaborate(load_program(str(folder / "tiny.net")), "tiny")
    x = RNG.standard_normal((1, 6, 6, 3)).astype(np.float32)
    for place, shape in net.places.items():
        found = net(x, at=place)
        graph = Graph(network.graph.nodes, {"y": network.nodes_by_path[place]})
        wanted = evaluate_results(graph, {**net.weights, network.image_input: x})["y"]
        assert found.shape == (1, *shape)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(net(x), net(x, at="head"))


@settings(max_examples=20)
@given(st.integers(0, 40))
def test_any_number_of_images_gives_what_each_gives(net: package.Net, count: int) -> None:
    images = np.resize(PICTURES, (count, 6, 6, 3))
    found = net(images)
    assert found.shape == (count, 3)
    assert found.dtype == np.float32
    if count:
        one = np.concatenate([net(image) for image in images[:3]])
        np.testing.assert_allclose(found[:3], one, atol=1e-6)
        np.testing.assert_allclose(found[-1:], net(images[-1]), atol=1e-6)


def test_results_stay_when_the_net_runs_again(net: package.Net) -> None:
    found = [net(PICTURES), net(PICTURES, at="stem"), net.probabilities(PICTURES)]
    before = [x.copy() for x in found]
    for x in (net(PICTURES[::-1]), net(PICTURES[::-1], at="stem")):
        x[...] = 0
    for now, then in zip(found, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_batches_are_bounded_and_executors_few(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = package.load(folder / "run", device="cpu")
    monkeypatch.setattr(forward.NetOfRecipe, "find_batch_limit", lambda self: 10)
    sizes: list[int] = []
    run = forward._Compiled.run

    def record(compiled: Any, images: dict[str, Array]) -> dict[str, Array]:
        sizes.extend(map(len, images.values()))
        return run(compiled, images)

    monkeypatch.setattr(forward._Compiled, "run", record)
    whole = net(PICTURES)
    assert sizes == [10, 10, 10, 10, 10]
    for count in range(1, 11):
        np.testing.assert_allclose(net(PICTURES[:count]), whole[:count], atol=1e-6)
    assert set(sizes) == {1, 4, 10}
    for place in net.places:
        net(PICTURES[:2], at=place)
    assert len(net._runner._compiled) == forward._MAX_EXECUTORS


def test_a_net_of_images_gives_images(tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text("net a { input(4x4x2) ; y: conv(3, 1x1) }")
    net, x = package.load(tmp_path / "a.net", device="cpu"), np.ones((5, 4, 4, 2))
    np.testing.assert_array_equal(net(x), net(x, at="y"))
    assert net(x).shape == (5, 4, 4, 3)
    net.save(tmp_path / "a.safetensors")
    Image.new("RGBA", (4, 4)).save(tmp_path / "x.png")
    predictor = Predictor(tmp_path / "a.safetensors", open_backend("reference"))
    for predict in (net.predict, net.probabilities, predictor.predict):
        with pytest.raises(package.NetError, match="4x4x3, but one score per class is need") as e:
            predict([tmp_path / "x.png"])
        assert "`netdsl.load(WEIGHTS)(images)` returns them" in str(e.value)


def test_a_net_of_two_inputs_says_what_it_is(tmp_path: Path) -> None:
    text = "net a { left: input(4) ; right: input(4) ; add { left | right } -> fc(2) }"
    (tmp_path / "a.net").write_text(text)
    net = package.load(tmp_path / "a.net", device="cpu")
    assert repr(net) == "<netdsl.Net a, 10 parameters>"
    with pytest.raises(package.NetError, match=r"has the inputs `left` \(4\), `right` \(4\)"):
        net(np.ones((1, 4)))


def test_a_net_of_two_inputs_takes_each_by_its_name(tmp_path: Path) -> None:
    text = "net a { left: input(4) ; right: input(4) ; both: add { left | right } -> fc(2) }"
    (tmp_path / "a.net").write_text(text)
    net = package.load(tmp_path / "a.net", device="reference")
    a, b = np.arange(20.0).reshape(5, 4), np.ones((5, 4))
    found = net.values({"left": a, "right": b}, ["both.add1", "left", "both"])
    np.testing.assert_array_equal(found["both.add1"], a + b)
    np.testing.assert_array_equal(found["left"], a)
    np.testing.assert_array_equal(found["both"], net({"right": b, "left": a}))
    for wrong, complaint in (
        ({"left": a, "right": b[:3]}, "different numbers of images: `left` 5, `right` 3"),
        ({"left": a, "right": b.astype(np.uint8)}, "some inputs are floats"),
        ({"left": a}, "are `left`, `right`, not `left`"),
    ):
        with pytest.raises(package.NetError, match=complaint):
            net(wrong)


def test_the_seed_of_a_file_can_be_chosen_and_that_of_weights_cannot(folder: Path) -> None:
    first, same, other = (
        package.load(folder / "tiny.net", seed=n).weights["head.fc1.weight"] for n in (3, 3, 4)
    )
    assert (first == same).all()
    assert (first != other).any()
    with pytest.raises(package.NetError, match="`seed` draws weights"):
        package.load(folder / "run", seed=3)


def test_a_saved_net_is_a_checkpoint(
    folder: Path, net: package.Net, netdsl: Any, tmp_path: Path
) -> None:
    Image.fromarray(PICTURES[0]).save(tmp_path / "x.png")
    for number, given_net in enumerate((net, package.load(folder / "tiny.net", device="cpu"))):
        path = tmp_path / f"{number}.safetensors"
        given_net.save(path)
        same = package.load(path, device="cpu")
        np.testing.assert_array_equal(same(PICTURES), given_net(PICTURES))
        assert same.text == given_net.text
        code, out, _ = netdsl("predict", str(path), "x.png", "--device", "cpu")
        assert code == 0
        assert given_net.predict("x.png")[0].label in out


def test_bytes_are_prepared_and_floats_are_not(folder: Path) -> None:
    text = TINY.replace("eval_transform = [resize(8), center_crop]", "")
    (folder / "plain.net").write_text(text)
    net = package.load(folder / "plain.net", device="cpu")
    wanted = net(normalised(PICTURES))
    np.testing.assert_allclose(net(PICTURES), wanted, atol=1e-5)
    np.testing.assert_allclose(net(PICTURES[5]), wanted[5:6], atol=1e-5)
    np.testing.assert_allclose(net(normalised(PICTURES).astype(np.float16)), wanted, atol=2e-2)


def test_pictures_are_predicted_as_by_the_command(
    folder: Path, net: package.Net, tmp_path: Path
) -> None:
    shapes = [(6, 6), (9, 7), (20, 30)]
    pictures = [np.resize(PICTURES, (*shape, 3)) for shape in shapes]
    paths = [tmp_path / f"{i}.png" for i in range(len(shapes))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    wanted = list(Predictor(folder / "run", open_backend("cpu")).predict(paths))
    opened = [Image.open(path) for path in paths]
    mixed = [str(paths[0]), opened[1], pictures[2]]
    for given_pictures in (paths, opened, pictures, mixed, tuple(map(str, paths))):
        for found, of_command in zip(net.predict(given_pictures), wanted, strict=True):
            top = [(label, pytest.approx(p, abs=1e-6)) for label, p in of_command.top]
            assert found.top() == top
            assert found.labels == (found.label,)
            assert (found.label, found.probability) == found.top(1)[0]
            assert net.classes[found.index] == found.label
    assert net.predict(paths[1]) == net.predict(opened[1]) == net.predict(pictures[1])
    np.testing.assert_allclose(net.probabilities(paths).sum(axis=1), 1, atol=1e-6)


def test_the_axis_of_a_single_channel_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "grey.net").write_text("net grey { input(4x4x1) -> fc(2) }")
    net = package.load(tmp_path / "grey.net", device="cpu")
    x = np.resize(PICTURES, (3, 4, 4, 1))
    for same in (x, x[..., 0], list(x)):
        np.testing.assert_array_equal(net(same), net(x))
    np.testing.assert_allclose(net(x[1, ..., 0]), net(x[1]), atol=1e-6)
    np.testing.assert_allclose(net(x[1, ..., 0] / 255), net(x[1]), atol=1e-6)
    np.testing.assert_allclose(net(x[..., 0] / 255), net(x), atol=1e-6)
    with pytest.raises(package.NetError, match=r"transpose\(0, 2, 3, 1\)"):
        net(x.transpose(0, 3, 1, 2))
    colours = np.resize(PICTURES, (3, 4, 4, 3))
    with pytest.raises(package.NetError, match="is converted to grey"):
        net(colours)
    assert net([Image.fromarray(x) for x in colours]).shape == (3, 2)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (np.zeros((2, 6, 6, 4), np.uint8), "2x6x6x4, but the net takes height x width x 3"),
        (np.zeros((2, 6, 6), np.uint8), "the images are 2x6x6, but the net takes height x width"),
        (np.zeros((2, 6, 6), np.uint8), r"np.repeat\(images\[..., None\], 3, axis=-1\)"),
        (np.zeros((2, 6, 6, 1), np.uint8), r"np.repeat\(images, 3, axis=-1\)"),
        (np.zeros((2, 6, 6, 4), np.uint8), r"images\[..., :3\]"),
        (PICTURES.transpose(0, 3, 1, 2), r"images.transpose\(0, 2, 3, 1\)"),
        (PICTURES[0].transpose(2, 0, 1), r"images.transpose\(1, 2, 0\)"),
        (PICTURES.transpose(0, 3, 1, 2) / 255, r"images.transpose\(0, 2, 3, 1\)"),
        (PICTURES.astype(np.int64), r"images.astype\(np.uint8\)"),
        ([[1.0], [2.0, 3.0]], "cannot be converted to an array"),
        (b"PNG", "PIL.Image.open"),
        (io.BytesIO(b"PNG"), "PIL.Image.open"),
        (np.array(["nowhere.png"]), "there is no picture nowhere.png"),
        (np.full((1, 6, 6, 3), np.inf), "a score of image 0 is not a number"),
        (np.zeros((2, 0, 6, 3), np.uint8), "but the net takes"),
        (np.zeros((2, 7, 6, 3)), "2x7x6x3, but the net takes 6x6x3 for each image"),
        (np.zeros((2, 6, 6, 3), np.int32), "2x6x6x3 int32"),
        (np.zeros((2, 6, 6, 3), bool), "bool"),
        (None, "NoneType"),
        ([PICTURES[0], 3], "type int, which is not a picture"),
        ([np.zeros((6, 6, 1), np.uint8)], "6x6x1, but the net takes"),
        ("nowhere.png", "there is no picture nowhere.png"),
        (["nowhere.png"], "there is no picture nowhere.png"),
        ({"a": 1}, "the inputs of `tiny` are `input`, not `a`"),
        ({}, "are `input`, not none"),
        (np.full((1, 6, 6, 3), np.nan), "a score of image 0 is not a number"),
    ],
)
def test_what_is_no_image_is_refused(net: package.Net, images: Any, complaint: str) -> None:
    for compute in (net.predict, net.probabilities):
        with pytest.raises(package.NetError, match=complaint):
            compute(images)


def test_no_images_have_no_predictions(net: package.Net) -> None:
    for nothing in ([], (), iter(()), np.zeros((0, 6, 6, 3), np.uint8)):
        assert net.predict(nothing) == []
    assert net.probabilities([]).shape == net([]).shape == (0, 3)
    assert net([], at="stem").shape == (0, 6, 6, 4)


def test_pictures_may_come_from_an_iterator_or_an_array_of_paths(
    net: package.Net, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, PICTURES, strict=False):
        Image.fromarray(picture).save(path)
    wanted = net.predict(paths)
    strings = np.array([str(path) for path in paths])
    for same in (iter(paths), (Image.open(p) for p in paths), strings, strings.astype(object)):
        assert net.predict(same) == wanted


def test_how_many_classes_are_asked_for_is_no_negative_number(net: package.Net) -> None:
    found = net.predict(PICTURES[0])[0]
    assert (found.top(0), len(found.top(99))) == ([], 3)
    with pytest.raises(package.NetError, match="a number of classes, not -1"):
        found.top(-1)


@pytest.mark.parametrize("name", ["x.onnx", "x.pth", "x", "x.net"])
def test_a_checkpoint_has_its_suffix(net: package.Net, tmp_path: Path, name: str) -> None:
    with pytest.raises(package.NetError, match=r"does not end in `.safetensors`"):
        net.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_not_there_is_an_error_with_help(net: package.Net) -> None:
    for wrong, complaint in [("", "has no place ``"), (0, "type int"), (["stem"], "type list")]:
        with pytest.raises(package.NetError, match=complaint):
            net(PICTURES, at=wrong)  # type: ignore[arg-type]
    with pytest.raises(package.NetError, match="has no place `conv1`") as e:
        net(PICTURES, at="conv1")
    assert "stem.conv1" in str(e.value)


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("nowhere.safetensors", "there is no checkpoint"),
        ("nowhere.net", "cannot read nowhere.net"),
        ("x.onnx", "netdsl import"),
        (".", "there is no checkpoint"),
    ],
)
def test_what_is_no_net_is_refused(
    place: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(package.NetError, match=complaint):
        package.load(place)


# ---- threads, memory, copies


def test_threads_that_share_a_net_get_what_one_gets(folder: Path) -> None:
    batches = [PICTURES[:n] for n in (1, 3, 40, 17)]
    wanted = [package.load(folder / "run", device="cpu")(batch) for batch in batches]
    shared = package.load(folder / "run", device="cpu")
    start, wrong = threading.Barrier(4), []

    def predict(first: int) -> None:
        start.wait()
        for i in range(12):
            number = (first + i) % len(batches)
            if not np.array_equal(shared(batches[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_threads_run_while_a_net_computes(tmp_path: Path) -> None:
    """A thread that asks for the time again and again never waits for most of a kernel's. One of
    several attempts is enough: the machine may be busy with others."""
    (tmp_path / "slow.net").write_text("net slow { input(64x64x64) -> conv(256, 5x5) }")
    net, x = package.load(tmp_path / "slow.net", device="cpu"), np.ones((4, 64, 64, 64), np.float32)
    net(x, at="conv1")
    assert min(measure_longest_wait(lambda: net(x, at="conv1")) for _ in range(4)) < 0.4


def measure_longest_wait(compute: Callable[[], Any]) -> float:
    """How long this thread has to wait at most while another one computes, as a share of that."""
    thread = threading.Thread(target=compute)
    longest, start = 0.0, time.perf_counter()
    thread.start()
    last = start
    while thread.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest / (time.perf_counter() - start)


def test_a_net_that_is_dropped_is_freed(folder: Path) -> None:
    net = package.load(folder / "run", device="cpu")
    net(PICTURES)
    net(normalised(PICTURES), at="stem")
    runner = net._runner
    compiled = next(iter(runner._compiled.values()))
    array = next(iter(runner._state.arrays.values()))
    followed = [weakref.ref(x) for x in (net, runner, compiled, array)]
    del net, runner, compiled, array
    assert [x() is None for x in followed] == [True] * 4


def test_a_copy_has_the_same_values(folder: Path, net: package.Net) -> None:
    drawn = package.load(folder / "tiny.net:quick", device="cpu")
    for given_net in (net, drawn):
        for same in (pickle.loads(pickle.dumps(given_net)), copy.deepcopy(given_net)):
            assert (same.name, same.classes) == (given_net.name, given_net.classes)
            assert same.metrics == given_net.metrics
            np.testing.assert_array_equal(same(PICTURES), given_net(PICTURES))


def test_an_error_can_be_read_and_pickled(tmp_path: Path) -> None:
    (tmp_path / "wrong.net").write_text("net a { input(8) -> fcc(3) }")
    with pytest.raises(package.NetError) as e:
        package.load(tmp_path / "wrong.net")
    text = str(e.value)
    assert not text.startswith("error")
    assert "wrong.net:1:21" in text
    assert "help: did you mean `fc`?" in text
    assert str(pickle.loads(pickle.dumps(e.value))) == text


# ---- training


def run_tiny(folder: Path, out: Path, **options: Any) -> package.TrainingResult:
    data = options.pop("data", (PICTURES, LABELS))
    return package.train(folder / "tiny.net", data=data, out=out, device="cpu", **options)


def test_a_run_gives_plain_results_and_prints_nothing(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Mapping[str, Any]] = []
    result = run_tiny(folder, tmp_path / "run", on_epoch=seen.append)
    assert capfd.readouterr() == ("", "")
    assert [m["epoch"] for m in seen] == [m["epoch"] for m in result.history] == [1, 2, 3]
    assert result.metrics["best_epoch"] in (1, 2, 3)
    assert result.directory == tmp_path / "run"
    assert result.checkpoint == tmp_path / "run" / "best.safetensors"
    assert result.ok
    assert result.expectations == ()
    assert result.net.metrics["epoch"] == result.metrics["best_epoch"]
    assert result.net is result.net
    run_tiny(folder, tmp_path / "loud", verbose=True, set={"train.epochs": 1})
    printed, _ = capfd.readouterr()
    assert "data: as given, 3 classes: 0, 1, 2" in printed
    assert "epoch 1/1  loss" in printed


def test_a_run_is_that_of_the_command(netdsl: Any, tmp_path: Path) -> None:
    text = TINY.replace("data {", 'data {\n  source = arrays("x.npz")')
    (tmp_path / "tiny.net").write_text(text)
    np.savez(tmp_path / "x.npz", images=PICTURES, labels=LABELS)
    code, _, _ = netdsl("train", "tiny.net:quick", "--out", "a", "--set", "train.epochs=2")
    assert code == 0
    result = package.train(tmp_path / "tiny.net:quick", out="b", set={"train.epochs": 2})
    assert (tmp_path / "a" / "recipe.net").read_text() == (
        tmp_path / "b" / "recipe.net"
    ).read_text()
    for name in ("best", "last"):
        ours, other = (checkpoint.load(tmp_path / x / f"{name}.safetensors") for x in "ab")
        assert ours.progress["history"] == other.progress["history"]
        assert all((ours.states[k] == other.states[k]).all() for k in ours.states)
    memory = run_tiny(tmp_path, tmp_path / "c", set={"train.epochs": 2, "train.seed": 7})
    assert list(memory.history) == [dict(m) for m in result.history]
    assert f'path="{tmp_path / "x.npz"}"' in result.net.text
    assert "source = none" in memory.net.text


def test_a_run_ends_early_where_on_epoch_says_so_and_goes_on(folder: Path, tmp_path: Path) -> None:
    whole = run_tiny(folder, tmp_path / "whole")
    short = run_tiny(folder, tmp_path / "short", on_epoch=lambda m: m["epoch"] == 2)
    assert len(short.history) == 2
    assert list(short.history) == list(whole.history[:2])

    def crash(metrics: dict[str, Any]) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError):
        run_tiny(folder, tmp_path / "crashed", on_epoch=crash)
    with pytest.raises(package.NetError, match="`on_epoch` returned a value of type int"):
        run_tiny(folder, tmp_path / "counted", on_epoch=lambda m: 12)
    with pytest.raises(package.NetError, match="`on_epoch` is of type int"):
        run_tiny(folder, tmp_path / "none", on_epoch=3)
    stopped = run_tiny(folder, tmp_path / "stopped", on_epoch=lambda m: np.float32(m["epoch"]) > 1)
    assert list(stopped.history) == list(short.history)
    for name in ("short", "crashed", "counted"):
        resumed = package.train(resume=tmp_path / name, data=(PICTURES, LABELS), device="cpu")
        assert list(resumed.history) == list(whole.history)
        assert all((resumed.net.weights[k] == v).all() for k, v in whole.net.weights.items())


@pytest.fixture
def plain_interrupt() -> Iterator[None]:
    """SIGINT as Python handles it, also if the tests run where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("plain_interrupt")
def test_an_interrupted_run_is_saved_and_goes_on(folder: Path, tmp_path: Path) -> None:
    assert find_plain_interrupt() == (signal.SIGINT,)

    def interrupt(metrics: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as e:
        run_tiny(folder, tmp_path / "run", on_epoch=interrupt)
    assert "netdsl.train(resume=" in e.value.__notes__[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (tmp_path / "run" / "last.safetensors").exists()
    resumed = package.train(resume=tmp_path / "run", data=(PICTURES, LABELS), device="cpu")
    assert len(resumed.history) == 3


def test_a_program_keeps_its_own_handler_of_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    previous = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        assert find_plain_interrupt() == ()
    finally:
        signal.signal(signal.SIGINT, previous)


def test_floats_are_learned_as_they_are(folder: Path, tmp_path: Path) -> None:
    plain = TINY.replace("eval_transform = [resize(8), center_crop]", "")
    (tmp_path / "tiny.net").write_text(plain)
    as_bytes = run_tiny(tmp_path, tmp_path / "a")
    as_floats = run_tiny(tmp_path, tmp_path / "b", data=(normalised(PICTURES), LABELS))
    for one, two in zip(as_bytes.history, as_floats.history, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-3)
    np.testing.assert_allclose(as_floats.net(PICTURES), as_bytes.net(PICTURES), atol=2e-2)
    with pytest.raises(package.NetError, match="`eval_transform` changes pictures of bytes"):
        run_tiny(folder, tmp_path / "c", data=(normalised(PICTURES), LABELS))


def test_labels_may_be_names_and_parts_are_used(folder: Path, tmp_path: Path) -> None:
    names = np.array(["cat", "ant", "bee"])[LABELS]
    parts = {"train": slice(0, 32), "val": slice(32, 40), "test": slice(40, 48)}
    data: dict[str, Any] = {f"x_{k}": PICTURES[part] for k, part in parts.items()}
    data |= {f"y_{k}": names[part] for k, part in parts.items()}
    result = run_tiny(folder, tmp_path / "run", data=data, set={"train.epochs": 8})
    assert result.net.classes == ("ant", "bee", "cat")
    assert result.metrics["test_images"] == 8
    assert result.metrics["test_accuracy"] > 0.7
    found = [p.label for p in result.net.predict(PICTURES)]
    assert np.mean(np.array(found) == names) > 0.7


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ((PICTURES, LABELS[:-1]), "48 x_train and 47 y_train"),
        ((PICTURES, LABELS - 1), "`y_train` holds the label -1"),
        ((PICTURES, LABELS * 2), "0, 2, 4, and none is 1, 3"),
        ((PICTURES, LABELS * 0), "are of one class"),
        (
            {"x_train": PICTURES, "y_train": LABELS % 2, "classes": ["a", "b", "c"]},
            "there are 3 classes, but no training images of c",
        ),
        ((PICTURES, LABELS / 2), "`y_train` is 48 float64, but labels must be integers or names"),
        ((PICTURES, LABELS * 1.0), r"y_train.astype\(int\)"),
        ((PICTURES, np.eye(3)[LABELS]), r"exactly one label: `labels.argmax\(axis=1\)`"),
        ((PICTURES, LABELS[:, None]), r"y_train.ravel\(\)"),
        ((PICTURES, None), "`y_train` is scalar object"),
        ((PICTURES.astype(np.int64), LABELS), r"x_train.astype\(np.uint8\)"),
        (([PICTURES[0], PICTURES[0, :5]], LABELS[:2]), "`x_train` cannot be converted to an array"),
        ((PICTURES.transpose(0, 3, 1, 2), LABELS), r"images.transpose\(0, 2, 3, 1\)"),
        (
            (np.where(PICTURES == 0, np.nan, PICTURES), LABELS),
            "`x_train` holds NaN, first in image",
        ),
        ((PICTURES * 1e300, LABELS), "`x_train` holds an infinity, first in image 0"),
        (
            {"x_train": PICTURES, "y_train": LABELS, "classes": ["a", "b", "a"]},
            "two of `classes` are called `a`",
        ),
        ({"x_train": PICTURES, "y_train": LABELS, "classes": "abc"}, "`classes` is of type str"),
        ({"x_train": PICTURES, "y_train": LABELS, "classes": 3}, "`classes` is of type int"),
        (
            {"x_train": PICTURES, "y_train": LABELS, "classes": ["a", "b", "c" * 2000]},
            "has 2,000 characters",
        ),
        ((PICTURES[:, 0, 0, 0], LABELS), "`x_train` is 48 uint8"),
        ((PICTURES[:0], LABELS[:0]), "holds no images"),
        ((PICTURES, LABELS, LABELS), "images and labels"),
        ({"x_train": PICTURES}, "`y_train` is missing"),
        ({"x_test": PICTURES, "y_test": LABELS}, "`x_train` is missing"),
        ({"images": PICTURES, "labels": LABELS}, "no data set `images`"),
        ({"x_train": PICTURES, "y_train": LABELS, "classes": ["a", "b"]}, "holds the label 2"),
        (
            {"x_train": PICTURES, "y_train": LABELS.astype(str), "classes": ["0", "1"]},
            "`2`, which is not one of `classes`",
        ),
        (
            {"x_train": PICTURES, "y_train": LABELS, "x_val": PICTURES[:, :5], "y_val": LABELS},
            "must all have the same size",
        ),
        ((PICTURES[:, :5], LABELS), "are 5x6x3, but the net needs 6x6x3"),
        ((PICTURES, LABELS % 2), "the net gives 3 scores"),
        (123, "images and labels"),
        ("nowhere", "there is no folder nowhere"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, data: Any, complaint: str
) -> None:
    with pytest.raises(package.NetError, match=complaint):
        run_tiny(folder, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_what_is_expected_of_a_test_set_is_not_judged_without_one(
    folder: Path, tmp_path: Path
) -> None:
    text = "train { epochs = 1, expect test_accuracy >= 2, expect val_accuracy >= 0 }"
    (tmp_path / "tiny.net").write_text(TINY.partition("train")[0] + text)
    note = "`expect test_accuracy >= 2` is not checked: the data set has no `x_test`"
    with pytest.raises(LookupError):
        run_tiny(tmp_path, tmp_path / "run", on_epoch=lambda m: {}["stop"])
    for options in ({}, {"set": {"train.epochs": 2}}):
        result = package.train(resume=tmp_path / "run", data=(PICTURES, LABELS), **options)
        assert result.ok
        assert [x.text for x in result.expectations] == ["val_accuracy >= 0"]
    first = run_tiny(tmp_path, tmp_path / "again", data=(PICTURES, LABELS))
    assert first.warnings[-1] == note
    data = {"x_train": PICTURES, "y_train": LABELS, "x_test": PICTURES, "y_test": LABELS}
    assert not run_tiny(tmp_path, tmp_path / "judged", data=data).ok


def test_data_that_are_not_named_are_asked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(package.NetError, match="has no `source`"):
        package.train(folder / "tiny.net", out=tmp_path / "run")
    with pytest.raises(package.NetError, match="no file to train"):
        package.train()
    with pytest.raises(package.NetError, match="has its own file"):
        package.train(folder / "tiny.net", resume=folder / "run")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (np.int64(5), "5"),
        (0.1, "0.1"),
        (np.float64(0.1), "0.1"),
        (1e-5, "1e-05"),
        (True, "yes"),
        (None, "none"),
        ("adam(lr=0.1)", "adam(lr=0.1)"),
        ([], "[]"),
        (("hflip", "cutout(8)"), "[hflip, cutout(8)]"),
        ([[1, 2.5], [3, False]], "[[1, 2.5], [3, no]]"),
    ],
)
def test_settings_are_written_as_in_a_file(value: Any, text: str) -> None:
    assert format_setting(value) == text


def test_a_setting_that_is_no_value_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(package.NetError, match="not a dict"):
        run_tiny(folder, tmp_path / "run", set={"train.epochs": {}})
    with pytest.raises(package.NetError, match="epohcs"):
        run_tiny(folder, tmp_path / "run", set={"train.epohcs": 1})


def test_sigmoids_are_probabilities_and_one_score_is_none(tmp_path: Path) -> None:
    text = "net a {{ input(4) -> fc({}) {} }}"
    floats = np.random.default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)
    for count in (1, 3):
        (tmp_path / "a.net").write_text(text.format(count, "-> sigmoid"))
        net = package.load(tmp_path / "a.net", device="reference")
        np.testing.assert_array_equal(net.probabilities(floats), net(floats))
    (tmp_path / "a.net").write_text(text.format(1, ""))
    net = package.load(tmp_path / "a.net", device="reference")
    with pytest.raises(package.NetError, match="a softmax of one is always 1"):
        net.predict(floats)
