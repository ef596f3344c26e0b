"""The text of a net of a file of several: what reads it uses this net and no other."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netdsl as package
from netdsl.language.format import format_file
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, load_program, reject_read
from netdsl.training.recipe.recipe import recipe_of_net, recipe_of_weights
from netdsl.training.recipe.resolved_recipe import resolve_net_file
from tests.conftest import ROOT

SEVERAL = [
    path for path in sorted((ROOT / "models").glob("*.net")) if path.read_text().count("\nnet ") > 1
]
TWO = "net a { input(4) -> fc(2) }\nnet b { input(4) -> relu -> fc(2) }\nnet c = b\n"
DATA = "data { source = digits }\n"
RECIPES = [
    "",
    DATA,
    DATA + "train { epochs = 2 }\n",
    DATA + "train { net = b }\ntrain quick { epochs = 2 }\n",
    "data x { batch = 5 }\ntrain one { net = c, data = x }\ntrain two { net = a, data = x }\n",
]


def check_text(program: Program, net: str) -> None:
    text = format_file(resolve_net_file(program, net))
    same = build_program(parse(text, "text"), reject_read)
    recipe, own = recipe_of_weights(same), recipe_of_net(program, net)
    assert (recipe.net, recipe.seed, recipe.epochs) == (net, own.seed, own.epochs)
    assert recipe.data == own.data
    assert format_file(resolve_net_file(same, net)) == text


def nets_of(path: Path) -> tuple[Program, list[str]]:
    program = load_program(str(path))
    return program, [name for name in program.nets if program.has_all_defaults(name)]


@pytest.mark.parametrize("path", SEVERAL, ids=lambda path: path.stem)
def test_the_text_of_the_last_net_of_a_file_names_it(path: Path) -> None:
    program, names = nets_of(path)
    check_text(program, names[-1])


@pytest.mark.slow
@pytest.mark.parametrize("path", SEVERAL, ids=lambda path: path.stem)
def test_the_text_of_every_net_of_a_file_names_it(path: Path) -> None:
    program, names = nets_of(path)
    for name in names:
        check_text(program, name)


@pytest.mark.parametrize("recipes", RECIPES)
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_net_is_the_same_after_every_way_through_its_text(
    tmp_path: Path, recipes: str, name: str
) -> None:
    """The three have weights of the same shapes: with another's text they would be loaded too."""
    (tmp_path / "two.net").write_text(TWO + recipes)
    (tmp_path / "user.net").write_text('use "two.net"\nnet own { input(3) -> fc(2) }\n')
    for file in ("two.net", "user.net"):
        net = package.load(f"{tmp_path / file}:{name}", device="reference")
        net.save(tmp_path / "x.safetensors")
        (tmp_path / "text.net").write_text(net.text)
        for same in (
            package.load(tmp_path / "x.safetensors", device="reference"),
            package.load(f"{tmp_path}/text.net:{name}", device="reference"),
            pickle.loads(pickle.dumps(net)),
        ):
            assert (same.name, same.text) == (name, net.text)
            assert [x.call for x in same.layers] == [x.call for x in net.layers]
            np.testing.assert_array_equal(same.weights["fc1.weight"], net.weights["fc1.weight"])


def test_numbers_name_the_classes_where_the_file_has_data_for_another_net(tmp_path: Path) -> None:
    (tmp_path / "x.net").write_text(TWO + "net ten { input(8x8x1) -> fc(10) }\n" + DATA)
    assert package.load(f"{tmp_path}/x.net:a").classes == ("0", "1")
    assert len(package.load(f"{tmp_path}/x.net:ten").classes) == 10


def test_a_net_of_several_comes_back_from_onnx(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "two.net").write_text(TWO.replace("net b { input(4)", "net b { input(4) -> relu"))
    package.load(f"{tmp_path}/two.net:b", device="reference").save(tmp_path / "b.safetensors")
    assert netdsl("export", "b.safetensors", "-o", "b.onnx")[0] == 0
    code, out, _ = netdsl("import", "b.onnx", "-o", "y.net", "--weights", "y.safetensors", "--json")
    assert (code, json.loads(out)["name"]) == (0, "b")
    assert package.load(tmp_path / "y.safetensors").name == "b"
