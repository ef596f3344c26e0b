"""Nets made small: which counts change, which stay, how small images become, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netdsl.errors import NetError
from netdsl.insight.gradcheck import gradcheck
from netdsl.language.elaborate import Settings, ShrinkSettings, elaborate
from netdsl.language.network import Network
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.types import dims
from tests.conftest import ROOT

MODELS = ROOT / "models"


def small(text: str, by: int = 4, images: bool = True) -> Network:
    settings = Settings(training=True, batch=2, shrink=ShrinkSettings(by, images))
    return elaborate(build_program(parse(text)), None, settings)


def calls(network: Network) -> list[str]:
    return [x.call for x in network.layers]


def test_counts_are_divided_and_rounded_up_but_those_of_inputs_and_outputs() -> None:
    net = small("net a { input(8x8x3); conv(16, 3x3) -> conv(3, 1x1) -> conv(9, 1x1) -> fc(10) }")
    assert calls(net) == ["conv(4, 3x3)", "conv(3, 1x1)", "conv(3, 1x1)", "fc(10)"]
    assert dims(net.graph["input"].type.shape) == "2x4x4x3"


def test_only_channels_change_where_the_images_stay() -> None:
    net = small("net a { input(8x8x3); conv(16, 3x3, stride=2) -> fc(10) }", images=False)
    assert calls(net) == ["conv(4, 3x3, stride=2)", "fc(10)"]
    assert dims(net.graph["input"].type.shape) == "2x8x8x3"


def test_what_the_text_asked_of_the_whole_net_is_settled() -> None:
    """`in.channels` and `if` speak of the whole net: no count is divided twice."""
    net = small(
        """
block half { conv(in.channels/2, 1x1) }
block down(c) {
  if in.channels == c { identity }
  else { add { conv(c, 1x1) | slice(step=1) -> pad(channels=[0, c - in.channels]) } }
}
net a { input(4x4x3); conv(64, 1x1) -> half -> down(32) -> down(48) -> fc(2) }
"""
    )
    assert calls(net) == [
        "conv(16, 1x1)",
        "conv(8, 1x1)",
        "identity",
        "conv(12, 1x1)",
        "slice",
        "pad(channels=[0, 4])",
        "add",
        "fc(2)",
    ]


@pytest.mark.parametrize(
    ("before", "chain", "after"),
    [
        (12, "conv(24, 3x3, pad=1, groups=12)", "conv(6, 3x3, pad=1, groups=3)"),
        (12, "conv(6, 1x1, groups=2)", "conv(2, 1x1)"),
        (16, "conv(32, 1x1, groups=2)", "conv(8, 1x1, groups=2)"),
        (64, "groupnorm", "groupnorm(groups=16)"),
        (64, "groupnorm(8)", "groupnorm(8)"),
        (10, "groupnorm(5)", "groupnorm(3)"),
        (12, "depthwise(3x3, multiplier=2)", "depthwise(3x3, multiplier=2)"),
        (12, "shuffle(4)", "shuffle(3)"),
        (16, "shuffle(2)", "shuffle(2)"),
        (8, "slice(channels=[4, 8])", "slice(channels=[1, 2])"),
        (8, "slice(channels=[0, 1])", "slice(channels=[0, 1])"),
        (8, "pad(channels=8)", "pad(channels=[2, 2])"),
        (8, "pad(channels=[0, 8])", "pad(channels=[0, 2])"),
        (8, "pad(height=1)", "pad(height=1)"),
        (8, "pad(channels=[0, 8], mode=edge)", "pad(channels=[0, 2], mode=edge)"),
        (16, "pixel_shuffle(2)", "pixel_shuffle(2)"),
        (16, "reshape(4x4x64)", "reshape([4, 4, 16])"),
        (8, "constant([1, 2, 3, 4, 5, 6, 7, 8])", "constant([1, 2])"),
        (8, "constant(3)", "constant(3)"),
        (12, "convtranspose(24, 2x2, groups=12)", "convtranspose(6, 2x2, groups=3)"),
        (8, "convtranspose(5, 2x2, stride=2)", "convtranspose(2, 2x2, stride=2)"),
        (8, "local(5, 2x2)", "local(2, 2x2)"),
        (8, "lrn", "lrn"),
    ],
)
def test_every_layer_that_counts_channels(before: int, chain: str, after: str) -> None:
    net = small(f"net a {{ input(8x8x3); conv({before}, 1x1) -> {chain} -> fc(2) }}")
    assert calls(net)[1] == after


def test_cuts_that_met_still_meet() -> None:
    net = small(
        """
net a {
  input(4x4x3)
  x: conv(40, 1x1)
  add { concat { x -> slice(channels=[0, 12]) | x -> slice(channels=[12, 40]) } | x } -> fc(2)
}
"""
    )
    assert [c for c in calls(net) if "slice" in c] == [
        "slice(channels=[0, 3])",
        "slice(channels=[3, 10])",
    ]


@pytest.mark.parametrize(
    ("size", "chain", "smallest"),
    [
        ("224x224x3", "conv(8, 3x3, stride=2, pad=same) -> maxpool(2x2)", "7x7x3"),
        ("64x32x1", "conv(8, 3x3, stride=2, pad=same)", "5x3x1"),
        ("16x16x1", "conv(8, 3x3, pad=same) -> avgpool(8x8)", "16x16x1"),
        ("9x9x1", "conv(8, 3x3, pad=same) -> globalavgpool", "2x2x1"),
        ("24x24x1", "slice(height=[0, 12])", "12x12x1"),
        ("300x300x1", "conv(8, 3x3, pad=same) * 200 -> avgpool(281x281)", "281x281x1"),
        ("1x1x20", "conv(8, 1x1)", "1x1x20"),
        ("20", "fc(8)", "20"),
    ],
)
def test_images_become_the_smallest_that_all_layers_take(
    size: str, chain: str, smallest: str
) -> None:
    net = small(f"net a {{ input({size}); {chain} -> fc(2) }}")
    assert dims(net.graph["input"].type.shape[1:]) == smallest


def test_skips_keep_the_multiples_that_they_want() -> None:
    net = small(
        """
net a {
  input(96x96x1)
  d: conv(8, 3x3, pad=same)
  maxpool(2x2) -> maxpool(2x2) -> conv(8, 1x1)
  concat { d | convtranspose(8, 4x4, stride=4) } -> conv(2, 1x1)
}
"""
    )
    side = net.graph["input"].type.shape[1]
    assert (side % 4, side <= 12) == (0, True)


def test_counts_that_no_longer_fit_are_reported_with_a_divisor_that_works() -> None:
    text = """
net a {
  input(4x4x30)
  add { conv(60, 1x1) | pad(channels=[0, 30]) } -> fc(2)
}
"""
    with pytest.raises(NetError) as e:
        small(text, by=8)
    told = e.value.render()
    assert "the two branches of `add` differ: 4x4x8 and 4x4x30" in told
    assert "in `a` with its channels divided by 8" in told
    assert "help: dividing them by 2 works" in told
    assert small(text, by=2).params


def test_no_divisor_is_named_if_none_works() -> None:
    text = "net a { input(4x4x30); add { conv(33, 1x1) | pad(channels=[3, 0]) } -> fc(2) }"
    with pytest.raises(NetError) as e:
        small(text, by=8)
    assert "help: change the channel counts, or check the net at its full size" in e.value.render()


HALVES = "add { x -> slice(channels=[0, 10]) | x -> slice(channels=[10, 20]) }"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (f"x: conv(20, 1x1)\n{HALVES}", 3),
        ("x: conv(6, 1x1)\ny: conv(4, 1x1)\nadd { concat { x | x } | concat { y | y | y } }", 6),
        ("concat { conv(15, 1x1) | conv(15, 1x1) } -> add { identity | conv(30, 1x1) }", 30),
        ("conv(10, 1x1) -> add { depthwise(1x1, multiplier=3) | conv(30, 1x1) }", 30),
        ("conv(9, 1x1) -> add { depthwise(1x1, multiplier=3) | conv(27, 1x1) }", 9),
    ],
)
@pytest.mark.parametrize("by", [2, 4, 8, 16])
def test_parts_shrink_in_proportion_where_nothing_else_fits(body: str, found: int, by: int) -> None:
    """Halves of 20, thirds and halves of 12, parts of the input's 30."""
    net = small(f"net a {{ input(4x4x30)\n{body}\nglobalavgpool -> fc(2) }}", by=by, images=False)
    if by == 4:
        assert net.layers[-2].output_type.shape[-1] == found


@pytest.mark.parametrize(
    ("chain", "by", "found"),
    [
        ("conv(64, 1x1) -> conv(9, 1x1) -> pixel_shuffle(3)", 8, "conv(8) conv(9) 3x3x1"),
        ("conv(27, 1x1) -> pixel_shuffle(3)", 8, "conv(27) 3x3x3"),  # 3 is an output's count
        ("conv(36, 1x1) -> pixel_shuffle(3) -> conv(5, 1x1)", 8, "conv(9) conv(5) 3x3x5"),
        ("conv(64, 1x1) -> pixel_shuffle(2) * 2 -> fc(5)", 8, "conv(16) fc(5) 5"),
        ("conv(128, 1x1) -> pixel_shuffle(4x2) -> conv(5, 1x1)", 8, "conv(16) conv(5) 4x2x5"),
        ("fc(100) -> reshape(5x5x4) -> conv(6, 1x1)", 8, "fc(25) conv(6) 5x5x6"),
        ("fc(48) -> reshape(4x4x3) -> conv(6, 1x1)", 8, "fc(48) conv(6) 4x4x6"),
        (
            "fc(48) -> reshape(4x3x4) -> (reshape(4x4x3) -> reshape(4x3x4)) * 9 -> fc(2)",
            8,
            "fc(48) fc(2) 2",
        ),
    ],
)
def test_counts_stay_multiples_of_what_layers_need(chain: str, by: int, found: str) -> None:
    net = small(f"net a {{ input(1x1x3); {chain} }}", by=by)
    layers = [x for x in net.layers if x.layer_type in ("conv", "fc")]
    result = dims(net.graph[net.graph.outputs["main"]].type.shape[1:])
    sizes = [f"{x.layer_type}({x.output_type.shape[-1]})" for x in layers]
    assert " ".join([*sizes, result]) == found


def test_a_concatenation_is_as_wide_as_its_parts() -> None:
    """Here 12 and 12 become 2 and 2, so 24 becomes 4; it is a third of 24 where that fits."""
    text = """
block ghost(c) { conv(c/2, 1x1) -> concat { identity | relu } }
net a { input(4x4x3); conv(24, 1x1) -> add { ghost(24) | identity } -> ghost(48) -> fc(2) }
"""
    calls_by_8 = [c for c in calls(small(text, by=8)) if c.startswith("conv")]
    assert calls_by_8 == ["conv(4, 1x1)", "conv(2, 1x1)", "conv(4, 1x1)"]
    calls_by_3 = [c for c in calls(small(text, by=3)) if c.startswith("conv")]
    assert calls_by_3 == ["conv(8, 1x1)", "conv(4, 1x1)", "conv(8, 1x1)"]


def test_the_other_nets_are_tested_if_one_cannot_be_shrunk(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(
        """
net odd { input(4x4x30); add { conv(60, 1x1) | pad(channels=[0, 30]) } -> fc(2) }
net even { input(4x4x3); conv(8, 1x1) -> fc(2) }
test odd { gradients }
test even { gradients }
"""
    )
    code, out, err = netdsl("test", "a.net", "--shrink", "4")
    assert code == 1
    assert "FAIL a.net:odd" in out
    assert "gradients: it cannot be shrunk by 4: the two branches of `add` differ" in out
    assert "ok   a.net:even" in out
    assert "1 passed, 1 failed" in err
    (tmp_path / "b.net").write_text(
        'net a { input(8) -> fc(3) }\ntest a { shape("b") == 3 }\ntest a { params == 27 }\n'
    )
    code, out, err = netdsl("test", "b.net")
    assert (code, "ok   b.net:a" in out, "1 passed, 0 failed" in err) == (2, True, True)


def test_a_shared_chain_and_side_outputs_stay_what_they_are() -> None:
    text = """
net a {
  shared enc = conv(16, 3x3, pad=same) -> relu
  input(8x8x16) -> enc -> enc
  output side(weight=0.5): globalavgpool -> fc(7)
  globalavgpool -> fc(5)
}
"""
    net = small(text)
    assert calls(net)[0] == "conv(16, 3x3, pad=same)"  # as many as its input has
    assert net.loss_weights == {"main": 1.0, "side": 0.5}
    assert all(r.ok for r in gradcheck(build_program(parse(text)), shrink=4))


# ---- the command line


@pytest.mark.parametrize(
    "command", ["summary", "gradcheck", "compile", "explain", "test", "train --dry-run"]
)
def test_every_command_that_takes_a_net_takes_shrink(netdsl: Any, command: str) -> None:
    name, *rest = command.split()
    digits = str(MODELS / "digits.net")
    code, out, _ = netdsl(name, digits, "--shrink", "4", *rest, "--json")
    assert code == 0
    assert out != netdsl(name, digits, *rest, "--json")[1]
    for wrong in ("0", "-1", "many", "2.5"):
        code, out, err = netdsl(name, digits, "--shrink", wrong, *rest)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")


def test_a_small_net_s_gradients_are_checked_and_nothing_that_is_counted(
    netdsl: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.net").write_text(
        "net a { input(8) -> fc(8) -> fc(3) }\ntest a { params == 1, published(top5=0.5) }"
    )
    assert netdsl("test", "a.net")[0] == 1
    code, out, _ = netdsl("test", "a.net", "--shrink", "2", "--json")
    assert code == 0
    (found,) = json.loads(out)["tests"]
    (expectation,) = found["expectations"]
    assert (expectation["text"], expectation["ok"]) == ("gradients", True)
    assert expectation["value"] < 1e-5
    assert found["published"] == {"top5": 0.5}
    assert [(a["top1"], a["top5"]) for a in found["published_accuracies"]] == [(None, 0.5)]


def test_a_small_net_is_trained_kept_and_used(netdsl: Any, tmp_path: Path) -> None:
    args = ("train", str(MODELS / "digits.net"), "--set", "train.epochs=1", "--shrink", "2")
    assert netdsl(*args, "--out", "a")[0] == 1  # one epoch does not meet the expectation
    assert "shrink = 2" in (tmp_path / "a" / "recipe.net").read_text()
    assert netdsl("eval", "a")[0] == 0
    code, out, _ = netdsl("diff", "a", str(MODELS / "digits.net"), "--json")
    assert code == 0
    assert json.loads(out)["params"] == [9_802, 38_282]
    assert netdsl("train", "--resume", "a", "--set", "train.epochs=2")[0] in (0, 1)
    code, _, err = netdsl("train", "--resume", "a", "--shrink", "4")
    assert code == 2
    assert "`train.shrink` cannot be changed in the middle of a run" in err


def test_a_folder_in_one_table(netdsl: Any, tmp_path: Path) -> None:
    code, _, err = netdsl("summary", ".")
    assert (code, "there are no .net files" in err) == (2, True)
    (tmp_path / "a.net").write_text("net a { input(8) -> fc(8) -> fc(3) }")
    code, out, _ = netdsl("summary", ".")
    assert code == 0
    assert "| `a.net:a` |  | 99 | 88 | 11 |  |  |  |" in out
    assert "Published accuracies" not in out
    code, out, _ = netdsl("summary", ".", "--shrink", "4", "--json")
    assert json.loads(out)["nets"][0]["params"] == 99  # 8 is as many as the input has
    code, _, err = netdsl("summary", ".", "--set", "n=3")
    assert (code, "`--set` changes one file" in err) == (2, True)


# ---- what is published


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ("published", "`published` needs an accuracy"),
        ("published()", "`published` needs an accuracy"),
        ("published(top1=76.13)", "must be a number from 0 to 1 (0.7613 is 76.13%)"),
        ("published(top1=-0.1)", "must be a number from 0 to 1"),
        ('published("high")', "must be a number from 0 to 1"),
        ("published(top1=0.9, top5=0.8)", "`top5` is less than `top1`"),
        ("published(top2=0.9)", "has no parameter `top2`"),
        ("published(top1=0.5), published(top5=0.6)", "`published` is given twice for the same"),
        ("published(0.5, crops=10), published(0.6, crops=10)", "is given twice for the same"),
        ("published(top1=0.5, crops=0)", "`crops` of `published` must be"),
        ("published(top1=0.5, crops=many)", "`crops` of `published` must be"),
        ("published(top1=0.5, source=paper)", "`source` of `published` must be a quoted string"),
        ('published(top1=0.5, source="")', "must be a text of at most 60 characters"),
        ("published(top1=0.5, train=[512, 256])", "the ends of an interval ([256, 512])"),
        ("published(top1=0.5, train=[224, 256, 288])", "the ends of an interval ([256, 512])"),
        ("published(top1=0.5, test=[256, 0])", "`test` of `published` must be"),
        ("published(0.5, crops=10, dense)", "`published` takes"),
        ("publish(0.5)", "did you mean `published`?"),
        ("published(0.5) == 0.5", "unknown name `published` in a test"),
    ],
)
def test_what_is_published_is_a_share(netdsl: Any, tmp_path: Path, fact: str, message: str) -> None:
    (tmp_path / "a.net").write_text(f"net a {{ input(8) -> fc(3) }}\ntest a {{ {fact} }}")
    for command in (("check",), ("test",), ("test", "--shrink", "2")):
        code, _, err = netdsl(*command, "a.net")
        is_read = fact.partition("(")[0] == "published" and "==" not in fact
        if is_read or len(command) == 1:  # with --shrink, only what is published is read
            assert code == 2
            assert message in err


def test_what_is_published_is_printed(netdsl: Any, tmp_path: Path) -> None:
    text = (
        "net a { input(8) -> fc(3) }\n\n"
        "test a {\n"
        "  params == 27\n"
        "  published(0.5, top5=0.75)\n"
        '  published(0.6, source="table 4", crops=dense, train=[256, 512], test=[256, 384])\n'
        '  published(top1=0.55, source="a | b", crops=1, train=256, test=256)\n'
        "}\n"
    )
    (tmp_path / "a.net").write_text(text)
    code, out, _ = netdsl("test", "a.net")
    assert code == 0
    assert "a.net:a  1 expectation\n" in out
    assert out.splitlines()[1:4] == [
        "     published: top-1 50.00%, top-5 75.00%",
        "     published: top-1 60.00% (table 4; dense; trained at 256-512; tested at 256, 384)",
        "     published: top-1 55.00% (a | b; 1 crop; trained at 256; tested at 256)",
    ]
    assert netdsl("fmt", "--check", "a.net")[0] == 0
    (found,) = json.loads(netdsl("test", "a.net", "--json")[1])["tests"]
    assert found["published"] == {"top1": 0.5, "top5": 0.75}  # the first, as in the table of nets
    (net,) = json.loads(netdsl("summary", ".", "--json")[1])["nets"]
    assert net["published"] == found["published"]
    assert net["published_accuracies"] == found["published_accuracies"]
    assert found["published_accuracies"][1] == {
        "top1": 0.6,
        "top5": None,
        "source": "table 4",
        "crops": "dense",
        "train": [256, 512],
        "test": [256, 384],
    }
    page = netdsl("summary", ".")[1]
    assert "| `a.net:a` |  | 27 | 24 | 3 | 50.00% | 75.00% |  |" in page
    assert "| `a.net:a` | table 4 | dense | 256-512 | 256, 384 | 60.00% |  |" in page
    assert "| `a.net:a` | a \\| b | 1 | 256 | 256 | 55.00% |  |" in page
