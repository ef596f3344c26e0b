"""`use` brings nets, blocks and lets: which net a name means, and texts that need no other file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from netdsl.api.net import load as load_net
from netdsl.errors import NetError, fail
from netdsl.insight.program_check import check_program
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file
from netdsl.language.inline import inline_uses
from netdsl.language.override import override
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, reject_read
from netdsl.training.recipe.net_data import find_data_of_net

LIBRARY = """
let width = 8
let twice(x) = 2 * x
block unit(c) { fc(c) }
net base(classes=10, c=width) { input(4); unit(twice(c)); fc(classes) }
net wide = base(c=16)
net plain(c=1) { input(4); fc(c) }
data unused { source = nothing_here }
train { epochs = 77 }
test base { params == 0 }
"""


def load(files: dict[str, str], main: str) -> Program:
    def read(path: str) -> str:
        if path not in files:
            raise fail(f"cannot read {path}")
        return files[path]

    return build_program(parse(main, "main.net"), read)


def widths(program: Program, net: str | None = None) -> list[int]:
    return [x.output_type.shape[-1] for x in elaborate(program, net).layers]


def inlined(program: Program) -> Program:
    """The program of the self-contained text."""
    return build_program(parse(format_file(inline_uses(program)), "alone.net"), reject_read)


def both(program: Program, net: str) -> list[int]:
    """The channels of the layers of a net, the same in the self-contained text."""
    found = widths(program, net)
    assert widths(inlined(program), net) == found
    return found


def test_use_brings_nets_and_lets_but_nothing_else() -> None:
    main = 'use "lib.net"\nnet mine = wide(classes=twice(3))\nnet own { input(4); unit(width) }'
    program = load({"lib.net": LIBRARY}, main)
    assert both(program, "mine") == [32, 6]
    assert both(program, "own") == [8]
    assert widths(program, "base") == [16, 10], "FILE:NET finds used nets too"
    assert not program.tests
    assert not program.sections("data")
    assert not program.sections("train")
    assert check_program(program)[0] == ["mine", "own"], "a file answers for its own nets"
    assert program.resolve_net_name() == "mine"


def test_a_file_s_own_net_wins_and_a_used_instance_keeps_its_base() -> None:
    main = 'use "lib.net"\nnet base(c=3) { input(4); fc(c) }\nnet a = wide\nnet b = base(c=5)'
    program = load({"lib.net": LIBRARY}, main)
    assert both(program, "base") == [3]
    assert both(program, "a") == [32, 10]
    assert both(program, "b") == [5]
    assert list(inlined(program).nets) == ["base", "a", "b", "wide", "base_2"]


def test_an_instance_may_have_the_name_of_its_used_base() -> None:
    files = {"lib.net": LIBRARY}
    program = load(files, 'use "lib.net"\nnet base = base(c=1)\nnet wide = wide(c=2)\nnet n = wide')
    assert both(program, "base") == [2, 10]
    assert both(program, "n") == both(program, "wide") == [4, 10]
    with pytest.raises(NetError, match="in terms of itself"):
        widths(load(files, 'use "lib.net"\nnet other = other(c=1)'))


def test_a_name_of_two_files_is_an_error_only_where_it_is_used() -> None:
    files = {"a.net": "net n { input(4); fc(1) }\nnet m = n", "b.net": "net n { input(4); fc(2) }"}
    uses = 'use "a.net"\nuse "b.net"\n'
    assert widths(load(files, uses + "net x = m")) == [1]
    for program in (load(files, uses + "net x = n"), load(files, uses + "train { net = n }")):
        with pytest.raises(NetError) as e:
            elaborate(program, "x" if program.nets else "n")
        assert {"at a.net:1:1", "at b.net:1:1"} <= set(e.value.diagnostics[0].notes)
        format_file(inline_uses(program))
    files["between.net"] = 'use "b.net"\nnet second = n'
    program = load(files, 'use "a.net"\nuse "between.net"\nnet x = second\nnet y = m')
    assert (both(program, "x"), both(program, "y")) == ([2], [1])


def test_one_file_by_two_ways_is_no_conflict() -> None:
    files = {
        "lib.net": LIBRARY,
        "a.net": 'use "lib.net"',
        "b.net": 'use "lib.net"\nlet half = width / 2',
    }
    program = load(files, 'use "a.net"\nuse "b.net"\nnet n = wide(c=half)')
    assert both(program, "n") == [8, 10]


def test_a_file_without_nets_says_which_it_uses() -> None:
    program = load({"lib.net": LIBRARY}, 'use "lib.net"')
    with pytest.raises(NetError) as e:
        elaborate(program)
    assert "it uses base, wide, plain" in e.value.render()
    assert check_program(program) == ([], [])


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ("let width = 3", "the let `width` is defined in two files"),
        ("let c = 3\nlet same = 3", "`same` means something else in"),
        ("let normal(x) = x", "`normal` means something else in"),
        ("let normal = 3\nlet in = 2", ""),
    ],
)
def test_a_let_never_changes_another_file(main: str, message: str) -> None:
    used = "let width = 3\nblock b(c=width) { conv(c, 1x1, pad=same, weight=normal(1)) }"
    text = f'use "b.net"\n{main}\nnet n {{ input(8x8x1); b }}'
    if message:
        with pytest.raises(NetError, match=message):
            load({"b.net": used}, text)
    else:
        assert widths(load({"b.net": used}, text)) == [3]


def test_used_nets_that_are_tested_or_trained_are_checked() -> None:
    files = {"lib.net": LIBRARY}
    tested = load(files, 'use "lib.net"\ntest base { params == 314 }\ntest plain { params == 5 }')
    assert check_program(tested)[0] == ["base", "plain"]
    trained = 'use "lib.net"\nnet own = plain\ndata { source = digits }\ntrain { net = base }'
    with pytest.raises(NetError, match="8x8x1"):
        check_program(load(files, trained))


def test_a_block_of_one_s_own_is_the_one_to_rename() -> None:
    with pytest.raises(NetError) as e:
        load({"lib.net": LIBRARY}, 'use "lib.net"\n\nblock unit(c) { relu }')
    (found,) = e.value.diagnostics
    assert str(found.span) == "main.net:3:1"
    assert found.notes == ("at lib.net:4:1",)


def test_a_setting_reaches_a_used_net() -> None:
    files = {"lib.net": LIBRARY}
    main = parse('use "lib.net"\nnet mine = wide\nlet k = 1', "main.net")
    used = load(files, 'use "lib.net"').net_table.used
    cases = [("mine", ["c=1"], [2, 10]), ("wide", ["c=2", "classes=k", "k=3"], [4, 3])]
    for net, settings, expected in cases:
        changed = override(main, settings, net, used)
        assert both(load(files, format_file(changed)), net) == expected
    with pytest.raises(NetError, match="no setting"):
        override(main, ["nothing=1"], "wide", used)


# ---- any files that use each other -------------------------------------------------------------

_NAMES = st.sampled_from("abcd")


@st.composite
def libraries(draw: Any) -> dict[str, str]:
    """Files 0.net to 3.net: each may use those before it, and defines nets of a few names."""
    files = {}
    for i in range(4):
        uses = draw(st.sets(st.integers(0, i - 1))) if i else set()
        lines = [f'use "{u}.net"' for u in sorted(uses)]
        for name in sorted(draw(st.sets(_NAMES, min_size=1))):
            base = draw(st.none() | _NAMES)
            given = f"net {name}(k={10 * i}) {{ input(4); fc({i + 1}); fc(k + 1) }}"
            lines.append(given if base is None else f"net {name} = {base}(k={10 * i + 5})")
        files[f"{i}.net"] = "\n".join(lines)
    return files


@given(libraries())
def test_a_self_contained_text_has_the_same_nets(files: dict[str, str]) -> None:
    """Each net of the last file has the same layers, or the same fault."""
    program = load(files, files["3.net"])
    alone = inlined(program)
    for name in program.nets:
        try:
            expected = widths(program, name)
        except NetError:
            with pytest.raises(NetError):
                widths(alone, name)
        else:
            assert widths(alone, name) == expected


# ---- end to end --------------------------------------------------------------------------------


def test_a_used_net_is_trained_evaluated_and_resumed(netdsl: Any, tmp_path: Path) -> None:
    """With a net of the same name in the file, and with a setting; the library is then deleted."""
    library = Path("lib.net")
    library.write_text(LIBRARY.replace("input(4)", "input(8x8x1)"))
    Path("main.net").write_text(
        'use "lib.net"\nnet base { input(8x8x1); fc(10) }\ndata { source = digits }\n'
        "train { epochs = 1 }\ntrain used { net = wide }\n"
    )
    args = ("--set", "c=2", "--out", "run", "--json")
    code, out, _ = netdsl("train", "main.net:used", *args)
    assert code == 0
    library.unlink()
    found = json.loads(out)
    code, out, _ = netdsl("eval", "run", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == found["test_accuracy"]
    Image.new("L", (8, 8)).save("black.png")
    assert netdsl("predict", "run", "black.png")[0] == 0
    changes = ("--set", "train.epochs=2", "--set", "width=9")
    code, _, err = netdsl("train", "--resume", "run", *changes)
    assert "net = changed" in err, "a let is part of the net"
    assert code == 0
    assert "epoch 2/2" in err
    nets = build_program(parse(Path("run/recipe.net").read_text())).nets
    assert list(nets) == ["base", "wide", "wide_2", "base_2"]
    code, out, _ = netdsl("summary", "run/recipe.net:wide", "--json")
    assert code == 0
    assert json.loads(out)["params"] == (64 + 1) * 4 + (4 + 1) * 10


USED = """
net small(classes=10) { input(8) -> fc(classes) }
net wide(width) { input(8) -> fc(width) -> fc(10) }
"""
RECIPE = 'use "lib.net"\ndata { source = digits }\ntrain { epochs = 1 }\n'
NAMED = RECIPE + "net own = small(classes=5)\ntrain other { net = small }\n"
TEST = 'use "lib.net"\ntest { params == 90 }\n'


@pytest.mark.parametrize(
    ("text", "command", "help"),
    [
        (RECIPE, "summary a.net", "say which one to use, as in `a.net:small`, or write"),
        (RECIPE, "train a.net", "say which one to train: `net = small`, or write `net my = small`"),
        (RECIPE, "check a.net", "say which one to train: `net = small`"),
        (TEST, "test a.net", "say which one to test: `test small { ... }`"),
        (RECIPE, "train a.net:small", "write one for it, `train small { net = small }`, or give"),
        (RECIPE, "sweep a.net:small", "another recipe `--set train.net=small`"),
        ('use "lib.net"', "train a.net:small", "write one for it, `train small { net = small }`"),
        (NAMED, "train a.net:small", "`small` is a net, not a recipe; `a.net:other` trains it"),
        (NAMED, "train a.net:own", "`own` is a net, not a recipe; `a.net` trains it"),
        (NAMED.replace("= small }", "= small() }"), "check a.net", "help: write `net = small`"),
        (
            NAMED.replace("= small }", "= small(classes=3) }"),
            "check a.net",
            "write `net my = small(classes=3)` outside, and here `net = my`",
        ),
        (RECIPE + "net own = wide", "summary a.net", "or write `net own = wide(width=VALUE)`"),
        ('use "lib"', "check a.net", 'did you mean `use "lib.net"`?'),
        (RECIPE, "summary a.net:wide", "set `width=VALUE`, or write `net my = wide("),
    ],
)
def test_how_to_name_a_used_net(
    text: str, command: str, help: str, netdsl: Any, tmp_path: Path
) -> None:
    (tmp_path / "lib.net").write_text(USED)
    (tmp_path / "a.net").write_text(text)
    code, _, err = netdsl(*command.split())
    assert code == 2
    assert help in err


@pytest.mark.parametrize("recipe", ["train { epochs = 1 }", "train { net = no_such }"])
def test_a_used_net_needs_no_recipe(recipe: str, netdsl: Any, tmp_path: Path) -> None:
    """A recipe that names no net, or none that there is, does not concern a net that is named."""
    (tmp_path / "lib.net").write_text(USED)
    (tmp_path / "a.net").write_text(f'use "lib.net"\ndata {{ source = digits }}\n{recipe}')
    code, out, err = netdsl("compile", "a.net:small", "--train")
    assert (code, err) == (0, "")
    assert "plain SGD" in out
    assert load_net("a.net:small").params == 90


def test_a_recipe_that_inherits_its_net_uses_no_data_for_another() -> None:
    """`fast` trains `b`, as the unnamed recipe does; so `a` is for the data that is left."""
    text = """
net a { input(8x8x1) -> fc(10) }
net b { input(28x28x1) -> fc(10) }
data large { source = mnist }
data small { source = digits }
train { net = b, data = large }
train fast { epochs = 2 }
"""
    program = load({}, text)
    data = find_data_of_net(program, "a")
    assert data is not None
    assert data.name == "small"
    assert [program.find_trained_net(x.name) for x in program.sections("train")] == ["b", "b"]
