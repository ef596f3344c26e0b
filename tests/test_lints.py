"""What is allowed but unlikely to be meant is warned of, and can be allowed by its name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from netdsl.errors import Diagnostic
from netdsl.insight.program_check import check_program
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.training.recipe.lints import LINTS, recipe_warnings

DATA = "data { source = digits, batch = 32 }\n"


OF_COMMENTS = ("unknown-lint", "unused-allow")


def warned(text: str) -> list[Diagnostic]:
    return check_program(build_program(parse(text, "a.net")))[1]


def names(text: str) -> list[str | None]:
    return [w.lint for w in warned(text)]


def trained(entries: str, body: str = "fc(10)", data: str = "") -> str:
    sections = DATA.replace(" }", f", {data} }}") if data else DATA
    return f"net a {{ input(8x8x1); {body} }}\n{sections}train {{ {entries} }}\n"


def _net(body: str) -> str:
    return f"net a {{ input(8x8x1); {body} }}\n"


@pytest.mark.parametrize("name", LINTS)
def test_its_examples_are_warned_of_and_not(name: str) -> None:
    lint = LINTS[name]
    assert names(lint.right) == []
    (found,) = warned(lint.wrong)
    assert found.lint == name
    assert found.help
    assert found.render().startswith(f"warning[{name}]: ")
    assert f"  a.net:{found.span.position[0]}:" in found.render()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", LINTS)
def test_it_is_allowed_on_its_line_and_on_the_one_above(name: str) -> None:
    wrong = LINTS[name].wrong
    (found,) = warned(wrong)
    assert found.span is not None
    lines, at = wrong.splitlines(), found.span.position[0] - 1
    on_it = [*lines[:at], lines[at] + f"  # as it was published, allow: {name}", *lines[at + 1 :]]
    above = [*lines[:at], f"# allow: {name}", *lines[at:]]
    always = OF_COMMENTS[name == OF_COMMENTS[0]]  # may be allowed where there is nothing to allow
    several = [*lines[:at], f"# allow: {name}, {always}, as it was published", *lines[at:]]
    far_off = [f"# allow: {name}", "", *lines]
    other = [*lines[:at], f"# allow: {always}", *lines[at:]]
    assert names("\n".join(on_it)) == []
    assert names("\n".join(above)) == []
    assert names("\n".join(several)) == []
    assert names("\n".join(other)) == [name]
    if at == 0:
        unused = [] if name in OF_COMMENTS else ["unused-allow"]
        assert names("\n".join(far_off)) == [name, *unused]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (trained("epochs = 2", data="normalize = by(mean=[0.1, 0.2], std=[58.4])"), "refused"),
        (trained("epochs = 2", data="normalize = by(mean=0.5, std=127.5)"), "large-mean"),
        (trained("epochs = 2", data="normalize = by(mean=1, std=1)"), None),
        (trained("epochs = 2", data="normalize = imagenet_mean"), "refused"),
        (trained("schedule = step(at=2.5), epochs = 2"), "late-step"),
        (trained("schedule = step(at=1.5), epochs = 2"), None),
        (trained("schedule = poly(warmup=9), epochs = 2"), "long-warmup"),
        (trained("schedule = plateau(warmup=9, patience=2), epochs = 9"), "long-warmup"),
        (trained("schedule = step(at=[1, 40, 50]), epochs = 2"), "late-step"),
        (trained("schedule = step(at=0), epochs = 2"), "early-step"),
        (trained("schedule = step(at=range(0, 9, 3)), epochs = 9"), "early-step"),
        (trained("schedule = plateau(patience=7), epochs = 9"), "late-step"),
        (trained("schedule = plateau(patience=6), epochs = 9"), None),
        (trained("epochs = 2", data="normalize = by(mean=-127, std=0.5)"), "large-mean"),
        (trained("epochs = 2", data="augment = [random_crop(2), cutout(9)]"), "large-cutout"),
        (trained("schedule = constant(warmup=1.5), epochs = 2"), None),
        (trained("schedule = onecycle, epochs = 1"), None),
        (trained("epochs = 2", data="augment = cutout(8)"), "large-cutout"),
        (trained("epochs = 2", data="augment = cutout(7)"), None),
        (trained("epochs = 2", "fc(10) -> sigmoid"), "squashed-scores"),
        (trained("epochs = 2", "conv(10, 8) -> relu"), "squashed-scores"),
        (trained("epochs = 2", "output o: fc(10) -> relu\n fc(10)"), "squashed-scores"),
        (trained("epochs = 2, loss = mse", "fc(10) -> sigmoid"), None),
        (trained("epochs = 2", "conv(10, 1) -> relu -> globalavgpool"), None),  # as in NIN
        (trained('init = weights("w", except="fc1.*")', "conv(4, 1) -> relu -> fc(10)"), None),
        (trained('init = weights("w")', "conv(10, 1) -> relu -> globalavgpool"), None),
        (trained('init = weights("w", except="fc1.*")', "fc(10) -> relu"), "squashed-scores"),
        (
            trained('init = weights("w", except="h.*")', "h: conv(10, 8) -> relu -> maxpool(to=1)"),
            "dying-scores",
        ),
        ("block h { fc(10) -> clamp(0, 6) }\n" + trained("epochs = 2", "h"), "squashed-scores"),
        (trained("expect 97 <= val_accuracy"), "large-accuracy"),
        (trained("expect val_loss < 2 and (test_accuracy > 50)"), "large-accuracy"),
        (trained("expect val_loss < 2, expect test_accuracy >= 1"), None),
        (trained("loss = [(mse, 1), (cross_entropy, 1)]", "fc(10) -> tanh"), "squashed-scores"),
        (trained('optimizer = adam(no_decay="*.bais")'), "unmatched-glob"),
        (trained('optimizer = adam(no_decay=["*.bias", "fc1.*"])'), None),
        ("net a { input(64x64x3); conv(3, 64) }", "pytorch-order"),
        ("net a { input(64x64x1); conv(1, 6, 5) }", "pytorch-order"),
        ("net a { input(64x64x3); conv(3, 64, stride=3) }", "pytorch-order"),
        ("net a { input(64x64x3); conv(3, 3, 2) -> conv(3, 11x11) -> conv(8, 9, 4) }", None),
        ("net a { input(64x64x3); conv(3, 8, 1) }", "pytorch-order"),
        ("net a { input(64x64x3); conv(16, 3) -> conv(16, 32, 3) }", "pytorch-order"),
        ("net a { input(9x9x3); convtranspose(3, 16, 2) }", "pytorch-order"),
        ("net a { input(64x64x8); conv(8, 31x31) -> conv(8, 1x15) -> conv(8, 15x1, 2) }", None),
        ("net a { input(64x64x8); conv(8, 13, groups=8) -> conv(8, 4, 2) }", None),
        ("net a { input(32x32x64); depthwise(64, pad=same) }", "depthwise-channels"),
        ("net a { input(64x64x64); depthwise(64, 3) }", "depthwise-channels"),
        ("net a { input(64x64x64); depthwise(64, 64, 3) }", "depthwise-channels"),
        ("net a { input(64x64x3); depthwise(64, 3x3) }", "depthwise-channels"),
        ("net a { input(64x64x3); let k = 3; depthwise(64, [k, k]) }", "depthwise-channels"),
        ("net a { input(64x64x16); depthwise(8, 3x3) }", "depthwise-channels"),
        ("net a { input(9x9x3); depthwise(3, 3x3) }", "depthwise-channels"),
        ("net a { input(32x32x3); depthwise(3x3, 16) }", "depthwise-channels"),
        ("net a { input(32x32x3); depthwise(2x2, stride=3) }", "depthwise-channels"),
        ("net a { input(32x32x3); depthwise(3, 2) -> depthwise(1, 2) -> depthwise(4, 4) }", None),
        ("net a { input(64x64x64); depthwise(64x64) }", None),
        ("net a { input(64x64x64); depthwise(31, 1, pad=same) -> depthwise(16, 16) }", None),
        ("net a { input(4x4x3); upsample(8x8) }", "large-upsample"),
        ("net a { input(32x32x3); upsample(16x16) }", "large-upsample"),
        ("net a { input(8x8x3); upsample(64) }", "large-upsample"),
        ("net a { input(8x8x3); upsample(factor=[64, 1], mode=bilinear) }", "large-upsample"),
        ("net a { input(1x1x3); upsample(7x7) -> upsample(32, bilinear) }", None),
        ("net a { input(1x1x3); upsample(65x65) }", None),  # as in DeepLab's pooled branch
        ("net a { input(2x2x3); upsample(4) -> upsample(2x1) }", None),
        ("net a { input(8x8x3); maxpool(to=4x16) }", "enlarging-pool"),
        ("net a { input(8x8x3); maxpool(to=8x8) -> avgpool(to=1x8) }", None),
        ("net a { input(8x8x3); conv(4, 1, bias=xavier) }", "channel-fans"),
        ("net a { input(8x8x3); layernorm(beta=lecun) }", "channel-fans"),
        ("net a { input(8x8x3); fc(3, weight=weightnorm(he), bias=uniform(0.1)) }", None),
        (_net("relu -> drop_path(0.1) -> conv(4, 3) -> batchnorm"), "main-path"),
        (_net("drop_path(0.1) -> add { identity | conv(1, 1) }"), "main-path"),
        (_net("add { identity | conv(1, 1) } -> batchnorm -> drop_path(0.1)"), "main-path"),
        (_net("output aux: fc(3)\n conv(4, 3) -> drop_path(0.1)"), "main-path"),
        (_net("conv(4, 3) -> scale(zeros)"), "main-path"),
        (_net("conv(4, 3) -> scale(1e-6) -> fc(3)"), "main-path"),
        (_net("scale(1/255) -> conv(4, 3) -> scale -> scale(0.1) -> drop_path(0)"), None),
        (_net("add { conv(1, 1) -> scale(1e-6) -> drop_path(0.1) | identity }"), None),
        (_net("sub { identity | conv(1, 1) -> drop_path(0.1) }"), None),
        (_net("x: relu\n maxpool(2) -> drop_path(0.1) -> upsample(2)\n add { x | tanh }"), None),
        (_net("a: relu -> drop_path(0.1)\n b: input(8x8x1)\n concat { a | b }"), None),
        ("net a { input(8); x: fc(3); input(8) -> fc(4) }", "unread"),
        ("net a { input(8); x: fc(3) -> relu; x -> fc(4) }", None),
        ('net a { input(8); x: fc(3); i: input(8); fc(4) }\ntest a { shape("x") == 3 }', None),
        ("net a { input(8); (x: fc(3)) * 2; i: input(8); fc(4) }", "unread"),
        ("block h { x: relu; i: in; fc(4) }\nnet a { input(8); h }", "unread"),
        ("net a { input(8); for n in [3] { x: fc(n); i: input(8) } -> fc(4) }", "unread"),
        ("net a { input(3x64x64) }", "channels-first"),
        ("net a { input(1x28x28) }", "channels-first"),
        ("net a { input(1x128x64) }", None),
        ("block conv(c) { fc(c) }\nnet a { input(8); x: conv(3) }", "hidden-layer"),
        (_net("concat { conv(4, 3x3) -> relu } -> fc(10)"), "single-branch"),
        ("block b { add { conv(1, 1x1) } }\n" + _net("b -> fc(10)"), "single-branch"),
        (_net("let n = 3; concat { for i in range(n) { conv(1, 1x1) } } -> fc(10)"), None),
        (_net("fc(10) -> relu -> tanh * 2 -> fc(10)"), "repeated-activation"),
        ("block h { fc(8) -> relu }\n" + _net("h * 3 -> fc(10)"), None),
        (_net("batchnorm(momentum=0.5) -> batchnorm -> fc(10)"), None),
        (_net("maxpool(1x1) -> fc(10)"), "idle-pool"),
        (_net("for k in [1, 2] { maxpool(k, stride=1) } -> fc(10)"), None),
        ("block p(k=1) { avgpool(k) }\n" + _net("p -> fc(10)"), None),
        (_net("maxpool(2 * 2) -> fc(10)"), "product-for-size"),
        (_net("conv(4, kernel=3*3, pad=same) -> fc(10)"), "product-for-size"),
        (_net("let n = 2; conv(4, n * 2) -> fc(10)"), None),
        (_net("fc(10) -> dropout(0.5)"), None),  # a net without a recipe may be a part
        (trained("epochs = 2, optimizer = adam(lr=0.1)"), "extreme-rate"),
        (trained("epochs = 2, optimizer = adam(lr=1e-3, weight_decay=5)"), "extreme-rate"),
        (trained("epochs = 2, optimizer = adamw(lr=0.02, weight_decay=10)"), "extreme-rate"),
        (trained("epochs = 2, optimizer = adamw(lr=1e-3, weight_decay=1)"), None),  # grokking
        (trained("epochs = 2, optimizer = sgd(lr=0)"), "extreme-rate"),
        (trained("epochs = 2, optimizer = lars(lr=10)"), None),
        (trained("epochs = 2, optimizer = rmsprop(lr=0.3, eps=1)"), None),  # as Inception's
        (trained("schedule = step(at=5, gamma=1)"), None),
        (trained("patience = 3, epochs = 3"), "long-patience"),
        (trained("patience = 3, epochs = 9, validate_every = 4"), None),
        (trained("patience = 4, epochs = 9, validate_every = 4"), "long-patience"),
        (trained("patience = 4, epochs = 9, validate_every = minutes(4)"), None),
        (trained("schedule = plateau(patience=1), epochs = 9, validate_every = 4"), None),
        (trained("schedule = plateau(patience=2), epochs = 9, validate_every = 4"), "late-step"),
        (trained("lr_rule = linear(64, warmup=9), epochs = 9"), "long-warmup"),
        (trained("save_every = epochs(9), epochs = 9"), "long-interval"),
        (trained("save_every = steps(9), validate_every = steps(9), epochs = 9"), None),
        (trained("save_every = 1, validate_every = 1, epochs = 1"), None),
        (trained("lr_rule = linear(8)"), None),  # batch = 32
        (trained("lr_rule = linear(7)"), "sudden-rate"),
        (trained("lr_rule = linear(8), accumulate = 2"), "sudden-rate"),
        (trained("lr_rule = sqrt(2)"), None),
        (trained("lr_rule = linear(7), schedule = onecycle"), None),
        (trained("lr_rule = linear(7), schedule = poly(warmup=1)"), None),
        (trained("schedule = step(at=[0.5, 0.75]), epochs = 100"), "early-step"),
        (trained("schedule = step(at=[0.5, 1.5]), epochs = 2"), None),
        (trained("schedule = step(at=0.5), epochs = 1"), None),
        (trained("epochs = 2", data="validation = 9"), "small-validation"),
        (trained("epochs = 2", data="validation = 10"), None),
        (trained("epochs = 2", data="validation = 0"), None),
        (_net("fc(10)") + DATA + "data mnist { batch = 9 }\ntrain { data = mnist }", None),
    ],
)
def test_siblings(text: str, found: str | None) -> None:
    if found == "refused":
        with pytest.raises(Exception, match="channels"):
            warned(text)
    else:
        assert names(text) == ([found] if found else [])


def test_scores_are_squashed_and_dropped() -> None:
    found = names(trained("epochs = 2", "fc(10) -> relu -> dropout(0.5)"))
    assert found == ["squashed-scores", "dropped-scores"]


def test_check_reports_them_and_strict_fails(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text(trained("schedule = step(at=9), epochs = 2"))
    code, _, err = netdsl("check", "a.net")
    assert code == 0
    assert err.startswith(
        "warning[late-step]: the rate would change after 9 epochs, but the run has 2"
    )
    assert "1 warning" in err
    assert netdsl("check", "a.net", "--strict")[0] == 1
    code, out, _ = netdsl("check", "a.net", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["ok"]
    (warning,) = found["warnings"]
    assert (warning["lint"], warning["line"]) == ("late-step", 3)
    assert netdsl("check", "a.net", "--strict", "--set", "train.epochs=20")[0] == 0


def test_train_and_dry_run_report_them_of_every_stage(netdsl: Any, tmp_path: Path) -> None:
    text = trained("epochs = 1") + (
        "train first { schedule = cosine(warmup=1) }\ntrain then { after = first }\n"
        "train apart { schedule = step(at=5) }\n"
    )
    (tmp_path / "a.net").write_text(text)
    for args in (("--dry-run",), ("--dry-run", "--json"), ()):
        code, out, err = netdsl("train", "a.net:then", *args)
        assert code == 0
        assert "warning[long-warmup]" in err
        assert "late-step" not in err
        if "--json" in args:
            json.loads(out)
    assert [w.lint for w in recipe_warnings(build_program(parse(text)), "apart")] == ["late-step"]


def test_scores_that_a_block_clips_are_mended_in_the_net(tmp_path: Path) -> None:
    """Not in the block, which other layers of the net use too."""
    (tmp_path / "base.net").write_text(
        "block cr(c) { conv(c, 1) -> relu }\n"
        "net base(classes=7) {\n  input(8x8x1)\n  s: cr(4)\n"
        "  h: cr(classes) -> globalavgpool\n}\n"
    )
    recipe = 'train { net = mine, init = weights("w", except="h.*") }'
    path = tmp_path / "mine.net"
    path.write_text(f'use "base.net"\nnet mine = base(classes=10)\n{DATA}{recipe}\n')
    (found,) = check_program(load_program(str(path)))[1]
    assert found.lint == "dying-scores"
    assert found.span is not None
    assert found.span.text.strip() == "h: cr(classes) -> globalavgpool"
    assert "`h: conv(10, 1) -> globalavgpool`" in str(found.help)


@pytest.mark.parametrize("line", ["#" * 300_000, "# allow: " * 40_000, "allow: a " * 40_000 + "#"])
def test_a_comment_of_nothing_but_signs_is_read_soon(line: str) -> None:
    program = build_program(parse(f"net a {{ input(3) -> fc(2) }}\n# {line}\n"))
    started = time.process_time()
    check_program(program)
    assert time.process_time() - started < 5
