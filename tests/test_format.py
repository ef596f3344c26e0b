"""The canonical layout: means the same, stays the same, keeps comments."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.language import syntax as s
from netdsl.language.format import WIDTH, format_file, format_text
from netdsl.language.parse import parse
from tests.conftest import ROOT
from tests.trees import files

MODELS = sorted((ROOT / "models").rglob("*.net"))


@settings(max_examples=80)
@given(files)
def test_a_tree_survives_being_written_and_read(tree: s.File) -> None:
    text = format_file(tree)
    again = parse(text)
    assert again == tree
    settled = format_text(text)
    assert parse(settled) == tree
    assert format_text(settled) == settled


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_models_stand_in_canonical_layout(path: object) -> None:
    text = path.read_text()  # type: ignore[attr-defined]
    assert format_text(text) == text
    assert max(map(len, text.splitlines())) <= WIDTH


COMMENT = re.compile(r"# \w+")


@settings(max_examples=60)
@given(st.sampled_from(MODELS), st.data())
def test_comments_are_kept(path: object, data: st.DataObject) -> None:
    lines = path.read_text().split("\n")  # type: ignore[attr-defined]
    for i in data.draw(st.sets(st.integers(0, len(lines) - 1), max_size=5)):
        alone = data.draw(st.booleans())
        lines[i] = f"# note{i}\n{lines[i]}" if alone else f"{lines[i]}  # note{i}"
    text = "\n".join(lines)
    formatted = format_text(text)
    assert parse(formatted) == parse(text)
    assert sorted(COMMENT.findall(formatted)) == sorted(COMMENT.findall(text))
    assert format_text(formatted) == formatted


def test_layout_by_example() -> None:
    ugly = """
net   a( n =3 ){
    # first
    input( 8x8x1 ) ;conv(n*2 , 3x3,)->relu   # second
    longer :tanh
    x: add{identity
       |conv( (n+1)*2,1x1 )->elu}


    fc(10) }
train{epochs=3,seed=2 # third
}
"""
    assert (
        format_text(ugly)
        == """\
net a(n=3) {
  # first
  input(8x8x1)
  conv(n*2, 3x3) -> relu  # second
  longer: tanh
  x:      add { identity
              | conv((n + 1)*2, 1x1) -> elu }

  fc(10)
}

train {
  epochs = 3
  seed = 2  # third
}
"""
    )
