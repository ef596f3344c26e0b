"""compile and explain from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netdsl.backends import DEVICES
from tests.test_cli import DIGITS, LENET, MODELS

RESNET = f"{MODELS / 'resnet.net'}:resnet20"


def test_compile_tells_what_it_saved(netdsl: Any) -> None:
    code, out, _ = netdsl("compile", RESNET, "--train", "--batch", "4")
    assert code == 0
    assert "kernels instead of" in out
    code, out, _ = netdsl("compile", RESNET, "--json")
    found = json.loads(out)
    assert found["kernels"] < found["kernels_unfused"]
    assert found["peak_bytes"] <= found["arena_bytes"] <= 1.1 * found["peak_bytes"]
    assert found["bytes"] < found["bytes_unfused"]


def test_compile_emits_what_it_made(netdsl: Any) -> None:
    _, ir, _ = netdsl("compile", DIGITS, "--train", "--emit", "ir")
    assert ir.startswith("graph digits.train {")
    assert "32x8x8x1 uint8" in ir  # the recipe's own batch, and pixels as they come
    _, plan, _ = netdsl("compile", DIGITS, "--train", "--emit", "plan")
    assert "updates: update.conv1.conv1.weight" in plan
    _, kernels, _ = netdsl("compile", DIGITS, "--emit", "kernels")
    assert "relu(conv1.conv1.add)" in kernels
    assert kernels.count("kernel ") == 5


def test_the_reference_device_fuses_nothing(netdsl: Any) -> None:
    _, out, _ = netdsl("compile", LENET, "--device", "reference", "--json")
    found = json.loads(out)
    assert found["kernels"] == found["kernels_unfused"]


def test_explain_shows_passes_kernels_lines_and_memory(netdsl: Any) -> None:
    code, out, _ = netdsl("explain", RESNET, "--train")
    assert code == 0
    for text in ("simplify:", "lower:", "matmul", "blocks.net:9", "batchnorm -> relu", "arena"):
        assert text in out
    assert "more lines with --full" in out
    _, whole, _ = netdsl("explain", RESNET, "--train", "--full")
    assert len(whole) > 2 * len(out)
    _, out, _ = netdsl("explain", RESNET, "--json")
    found = json.loads(out)
    assert [p["name"] for p in found["passes"]] == ["simplify", "lower", "fold", "simplify"]


def test_the_recipe_of_the_net_is_followed_and_told(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "two.net").write_text(
        "net a { input(8x8x1); fc(10) }\nnet b { input(8x8x1); fc(10) }\n"
        "net soft { input(8x8x1); fc(10) -> softmax }\n"
        "data { source = digits, batch = 16 }\ntrain { net = a }\ntrain second { net = b }\n"
    )
    for name, said in (
        ("a", "a, training by the file's recipe, batch 16"),
        ("b", "b, training by `train second`, batch 16"),
        ("second", "b, training by `train second`, batch 16"),
    ):
        assert said in netdsl("compile", f"two.net:{name}", "--train")[1]
    assert "a, inference, batch 1" in netdsl("explain", "two.net:a")[1]
    code, _, err = netdsl("compile", "two.net:soft", "--train")
    assert code == 2
    assert "softmax" in err


def test_any_convolution_is_shown_as_one_product(netdsl: Any) -> None:
    _, out, _ = netdsl("compile", LENET, "--lower", "im2col", "--emit", "ir")
    assert "conv2d(" not in out
    assert out.count("im2col(") == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("compile", LENET, "--emit", "asm"), "no `--emit asm`"),
        (("explain", LENET, "--lower", "winograd"), "no `--lower winograd`"),
        (("compile", f"{LENET}:lenet6"), "no net called `lenet6`"),
        (("compile", LENET, "--device", "tpu"), "no device `tpu`"),
        (("explain", "missing.net"), "missing.net"),
        (("compile", LENET, "--batch", "0"), "--batch"),
        (("compile", LENET, "--emit", "ir", "--json"), "give only one of them"),
    ],
)
def test_bad_input_is_told(netdsl: Any, args: tuple[str, ...], message: str) -> None:
    code, out, err = netdsl(*args)
    assert code == 2
    assert message in err
    assert out == ""


def test_training_in_fused_kernels_gives_what_the_reference_gives(netdsl: Any) -> None:
    assert "model" in DEVICES
    lines = []
    for device in ("reference", "model"):
        code, out, _ = netdsl(
            "train", DIGITS, "--device", device, "--set", "train.epochs=2", "--json"
        )
        assert code in (0, 1)
        lines.append(json.loads(out))
    one, two = lines
    assert one["val_accuracy"] == pytest.approx(two["val_accuracy"], abs=0.02)
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-3)
