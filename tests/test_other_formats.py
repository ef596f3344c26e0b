"""Files of other programs: what they are is said without their lines, and what to do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FORMATS = {
    "x.cfg": ("# a comment\n[net]\nbatch=64\nSECRET=1\n", "a Darknet .cfg"),
    "x.yaml": ("nc: 10\nSECRET:\n  - [-1, 1, Conv, [64, 3, 2]]\n", "a YAML file"),
    "x.yml": ("- SECRET: 1\n", "a YAML file"),
    "x.json": ('{"SECRET": {"layers": []}}\n', "a JSON file"),
    "x.prototxt": ('name: "SECRET"\nlayer {\n  name: "a"\n}\n', "a Caffe model"),
    "x.py": ("import torch\nclass SECRET(nn.Module): pass\n", "a Python program"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_another_format_is_named_but_not_quoted(
    netdsl: Any, tmp_path: Path, name: str
) -> None:
    text, kind = FORMATS[name]
    (tmp_path / name).write_text(text)
    code, out, error = netdsl("check", name)
    assert (code, out) == (2, "")
    assert f"help: it looks like {kind}, which netdsl cannot read" in error
    assert "SECRET" not in error
    code, _, error = netdsl("import", name, "-o", "y.net")
    assert code == 2
    assert "help: export the model to ONNX" in error


def test_a_file_of_no_known_format_is_not_named(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("anything else\n")
    code, _, error = netdsl("check", "x.txt")
    assert code == 2
    assert "help: lines are shown only for files that end in .net" in error


def test_a_web_page_in_the_place_of_a_model_is_one(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("<!DOCTYPE html><html>")
    _, _, error = netdsl("import", "x.onnx", "-o", "y.net")
    assert "help: the download returned a web page instead" in error


@pytest.mark.parametrize(
    ("source", "help"),
    [
        ('"data.yaml"', '`folder("DIR")` finds DIR/train/CLASS'),
        ('arrays("names.csv")', '`csv("names.csv")` reads a table'),
        ("imgs", '`folder("imgs")` reads the pictures'),
        ('arrays(images="a.npy", labels="b.npy")', "one file contains all arrays"),
        ('arrays("same.npz")', "`3` is the only CLASS here"),
    ],
)
def test_a_source_that_reads_something_else(
    netdsl: Any, tmp_path: Path, source: str, help: str
) -> None:
    (tmp_path / "names.csv").write_text("image,label\na.jpg,a\n")
    pixels = np.zeros((8, 2, 2, 1), np.uint8)
    np.savez(tmp_path / "same.npz", images=pixels, labels=np.full(8, 3), classes=list("01234"))
    (tmp_path / "f.net").write_text(
        f"net n {{ input(2x2x1); fc(5) }}\ndata {{ source = {source}, batch = 2 }}\ntrain {{ }}\n"
    )
    code, _, error = netdsl("train", "f.net")
    assert code == 2
    assert help in error


@pytest.mark.parametrize("part", ["", "train"])
def test_pictures_with_boxes_are_no_classes(netdsl: Any, tmp_path: Path, part: str) -> None:
    base = tmp_path / "yolo" / part
    for name in ("images", "labels"):
        (base / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(base / "images" / "a.png")
    (base / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "x.net").write_text(
        'net n { input(8x8x3); fc(2) }\ndata { source = folder("yolo") }\ntrain { epochs = 1 }\n'
    )
    code, _, error = netdsl("train", "x.net")
    assert code == 2
    assert "has pictures with annotations in labels, not a folder for each class" in error
    assert "help: boxes of objects are not read; sort the pictures by class" in error
