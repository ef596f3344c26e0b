"""The canonical layout: means the same, stays the same, keeps comments."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.language import syntax as s
from netdsl.language.diagnose import RESERVED_WORDS
from netdsl.language.format import WIDTH, format_file, format_text
from netdsl.language.parse import parse
from tests.conftest import ROOT
from tests.syntax_trees import STATEMENTS, WORDS, files

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
    commands = re.compile(r"# +netdsl ")  # one line each, so that they can be copied
    assert max(len(x) for x in text.splitlines() if not commands.match(x)) <= WIDTH


def test_empty_brackets_stay_beyond_the_width() -> None:
    text = f"net a {{ input(3); output {'b' * 95}: relu() -> tanh }}"
    assert parse(format_text(text)) == parse(text)


def test_an_index_in_brackets_is_an_index() -> None:
    text = "net a { input(3) -> fc(([[2, 3]][0])[(([0, 1])[1])]) }\n"
    formatted = format_text(text)
    assert formatted == "net a { input(3) -> fc([[2, 3]][0][[0, 1][1]]) }\n"
    assert parse(formatted) == parse(text)


PLACES = {
    "step": "if 1 == 1 { relu }; %s -> relu",
    "branches": "if 1 == 1 { relu }; %s { relu | tanh }",
    "label": "relu; %s: fc(3); relu",
    "reference": "let q = 3; %s -> fc(q)",
    "shared": "shared %s = fc(3); relu",
    "output": "relu; output %s: fc(3)",
    "let": "relu; let %s = 3; fc(4)",
    "loop": "for %s in [1, 2] { relu }; tanh",
    "argument": "fc(3, %s=2); relu",
    "value": "relu; fc(%s); relu",
    "member": "relu; fc(in.%s); relu",
}
ITEMS = {
    "block": "block %s { relu }; net a { input(3) }",
    "net": "net %s { input(3) }; net b = %s; test %s { params == 0 }",
    "parameter": "block b(%s, c=1) { relu }",
    "recipe": "train %s { epochs = 3 }; data %s { batch = 3 }",
    "entry": "train { epochs = 3; %s = 2; seed = 1 }",
    "expectation": "test a { params == 3; %s == 2; macs == 4 }",
    "expected": "train { epochs = 3; expect %s == 2; seed = 1 }",
}


@pytest.mark.parametrize("word", [*WORDS, "identity", "label"])
def test_a_word_of_the_grammar_is_kept_as_a_name_or_refused(word: str) -> None:
    """However its text is broken into lines."""
    texts = [f"net a {{ input(3); {x} }}" for x in PLACES.values()] + list(ITEMS.values())
    kept = 0
    for pattern in texts:
        for stop in (";", "\n", "; \n"):
            for opened in ("{", "{\n"):
                text = pattern.replace("%s", word).replace("; ", stop).replace("{", opened, 1)
                try:
                    tree = parse(text)
                except NetError:
                    continue
                kept += stop == ";"
                for once in (format_text(text), format_file(tree)):
                    assert parse(once) == tree, text
                    assert format_text(once) == once
    assert (kept == 0) == (word in RESERVED_WORDS)
    assert kept == 2 * len(texts) or word in (*STATEMENTS, *RESERVED_WORDS, "not", "expect")


@pytest.mark.parametrize("word", sorted(RESERVED_WORDS))
@pytest.mark.parametrize("place", [*PLACES, *ITEMS])
def test_a_word_that_goes_on_with_a_line_is_no_name(word: str, place: str) -> None:
    text = (ITEMS | {k: f"net a {{ input(3); {x} }}" for k, x in PLACES.items()})[place]
    with pytest.raises(NetError, match=f"`{word}` is a reserved word, not a name"):
        parse(text.replace("%s", word))


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


ATOMS = st.sampled_from(["1", "0.25", "3x3", '"conv1.*"', "word", "n * 2"])
VALUES = st.recursive(
    ATOMS,
    lambda x: st.one_of(
        st.lists(x, min_size=1, max_size=5).map(lambda v: ("[", v, "]")),
        st.lists(x, min_size=1, max_size=3).map(lambda v: ("f(", v, ")")),
    ),
    max_leaves=12,
)
HOLDERS = [
    "let table = %s\n",
    "net b(depths=%s, n=2) { input(8x8x1) }\n",
    "net b = a(depths=%s, n=2)\n",
    "train {\n  key = %s\n  epochs = 2\n}\n",
    "net a {\n  input(8x8x1)\n  let x = %s\n  fc(3)\n}\n",
    "net a {\n  input(8x8x1)\n  for c in %s as i { conv(c, 3x3) }\n}\n",
    "net a {\n  input(8x8x1)\n  relu -> layer(rate=%s,  # why\n 4) -> tanh -> fc(3)\n}\n",
]


def write_value(value: Any, draw: Any) -> str:
    """The value as text, with line breaks and comments between its entries."""
    if isinstance(value, str):
        return value
    opened, entries, closed = value
    gaps = st.sampled_from(["", "", " ", "\n", "  # why\n", "\n  # whole\n", "\n\n"])
    inside = ",".join(f"{draw(gaps)}{write_value(x, draw)}" for x in entries)
    return f"{opened}{inside}{draw(gaps)}{closed}"


@settings(max_examples=80)
@given(st.sampled_from(HOLDERS), VALUES, st.data())
def test_values_on_several_lines_keep_rows_and_comments(
    holder: str, value: Any, data: st.DataObject
) -> None:
    text = holder % write_value(value, data.draw)
    formatted = format_text(text)
    assert parse(formatted) == parse(text)
    assert format_text(formatted) == formatted
    assert formatted.count("# why") == text.count("# why")
    assert formatted.count("# whole") == text.count("# whole")


def test_rows_of_a_table_stay_rows() -> None:
    table = "let table = [\n  [3, 16], [3, 24],  # small\n  [5, 40]  # large\n]\n"
    assert format_text(table) == table
    assert format_text("let x = [1,\n 2]\n") == "let x = [\n  1,\n  2\n]\n"
    assert format_text("let x = [1,2]\n") == "let x = [1, 2]\n"
    globs = ", ".join(['"*.bias"'] * 12)
    long = f"train {{ optimizer = adamw(lr=0.001, no_decay=[{globs}]) }}\n"
    assert max(map(len, format_text(long).splitlines())) <= WIDTH
