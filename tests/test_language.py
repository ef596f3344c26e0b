"""What the language means: flow, labels, repeats, conditions, sharing, sections, overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.errors import NetError
from netdsl.ir.interpreter import evaluate_results
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.format import format_file
from netdsl.language.inline import inline_uses
from netdsl.language.network import Network
from netdsl.language.override import override
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, load_program
from netdsl.training.recipe.recipe import resolve_recipe


def of(text: str) -> Program:
    return build_program(parse(text))


def net(body: str, **settings: Any) -> Network:
    """A net of 8x8x3 images with the given body."""
    return elaborate(of(f"net a {{\n input(8x8x3)\n {body}\n}}"), settings=Settings(**settings))


def ops(network: Network) -> list[str]:
    return [layer.layer_type for layer in network.layers]


def shape(network: Network) -> tuple[int, ...]:
    return network.graph[network.graph.outputs["main"]].type.shape[1:]


def paths(network: Network) -> list[str]:
    return [p.name for p in network.parameters]


def test_statements_chain_and_repeats_bind_tighter_than_arrows() -> None:
    assert ops(net("relu -> tanh * 2\n elu; sigmoid")) == ["relu", "tanh", "tanh", "elu", "sigmoid"]
    assert ops(net("(relu -> tanh) * 2")) == ["relu", "tanh", "relu", "tanh"]
    assert ops(net("relu * 0 -> tanh")) == ["tanh"]


def test_a_line_goes_on_before_an_arrow_a_bar_or_a_brace() -> None:
    assert ops(net("relu\n   -> tanh\n add { relu\n | tanh\n }")) == [
        "relu",
        "tanh",
        "relu",
        "tanh",
        "add",
    ]


def test_siblings_are_numbered_by_name_and_labels_are_scopes() -> None:
    text = """
    block cbr(c) { conv(c, 1x1, bias=no) -> batchnorm }
    net a {
      input(8x8x3)
      stem: cbr(4) -> cbr(5)
      c: conv(6, 1x1, bias=no)
      cbr(2) -> cbr(3) * 2
      add { conv(3, 1x1, bias=no) | x: conv(3, 1x1, bias=no) | y: relu -> conv(3, 1x1, bias=no) }
    }"""
    weights = [p for p in paths(elaborate(of(text))) if p.endswith("weight")]
    assert weights == [
        "stem.cbr1.conv1.weight",
        "stem.cbr2.conv1.weight",
        "c.weight",
        "cbr1.conv1.weight",
        "cbr2.conv1.weight",
        "cbr3.conv1.weight",
        "conv1.weight",
        "x.weight",
        "y.conv1.weight",
    ]


def test_a_label_is_a_value() -> None:
    found = net("a: conv(4, 1x1)\n b: conv(5, 1x1)\n concat { a -> tanh | b | a }")
    assert shape(found) == (8, 8, 4 + 5 + 4)


def test_in_is_what_flows_into_the_block() -> None:
    text = """
    block twice { conv(in.channels, 1x1) -> conv(2*in.channels, 1x1); concat { identity | in } }
    net a { input(8x8x3); conv(5, 1x1) -> twice }"""
    assert shape(elaborate(of(text))) == (8, 8, 15)


def test_labels_in_repeats_are_numbered() -> None:
    found = paths(
        net("(c: conv(4, 1x1, bias=no)) * 2\n for n in [1, 2] { d: conv(n, 1x1, bias=no) }")
    )
    assert found == ["c1.weight", "c2.weight", "d1.weight", "d2.weight"]


def test_if_for_let_and_lists() -> None:
    found = net(
        """let widths = [4, 5] + [6]
        for c in widths {
          if c == 5 { relu } else if c > 5 and not (c == 7) { conv(c, 1x1) }
          else { tanh }
        }
        for c, k in [[9, 1], [8, 3]] { conv(c, k, pad=same) }
        conv(widths[-1] / 2 + len(widths) % 2 + 7 // 2, 1x1)"""
    )
    assert ops(found) == ["tanh", "relu", "conv", "conv", "conv", "conv"]
    assert shape(found) == (8, 8, 7)


def test_sizes_lists_and_numbers_are_sizes() -> None:
    for kernel in ("3x5", "[3, 5]"):
        assert shape(net(f"conv(4, {kernel})")) == (6, 4, 4)
    assert shape(net("conv(4, 3)")) == (6, 6, 4)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_gives_the_size_over_the_stride(
    kernel: int, stride: int, dilation: int
) -> None:
    found = net(f"conv(4, {kernel}, stride={stride}, pad=same, dilation={dilation})")
    assert shape(found)[:2] == (-(-8 // stride),) * 2


@pytest.mark.parametrize(("ceil", "size"), [("no", 3), ("yes", 4)])
def test_ceil_mode_keeps_the_last_window(ceil: str, size: int) -> None:
    assert shape(net(f"maxpool(3x3, stride=2, ceil={ceil})"))[0] == size
    assert shape(net(f"maxpool(2x2, stride=3, pad=0, ceil={ceil})"))[0] == 3


def test_convtranspose_enlarges_by_its_stride() -> None:
    assert shape(net("convtranspose(4, 2x2, stride=2)")) == (16, 16, 4)
    assert shape(net("convtranspose(4, 3x3, stride=2, pad=1, output_pad=1)")) == (16, 16, 4)


def test_mul_stretches_a_gate_over_the_image() -> None:
    assert shape(net("mul { identity | globalavgpool -> conv(3, 1x1) -> sigmoid }")) == (8, 8, 3)


def test_shared_weights_have_one_state_and_their_own_normalisation() -> None:
    text = """
    net a {
      shared enc = conv(4, 1x1, bias=no) -> batchnorm
      left: input(8x8x3)
      right: input(8x8x3)
      concat { left -> enc | right -> enc }
    }"""
    found = elaborate(of(text), settings=Settings(training=True))
    assert paths(found) == [
        "enc.conv1.weight",
        "enc1.batchnorm1.gamma",
        "enc1.batchnorm1.beta",
        "enc2.batchnorm1.gamma",
        "enc2.batchnorm1.beta",
    ]
    assert [n.name for n in found.graph.inputs] == ["left", "right"]


def test_side_outputs_hang_and_do_not_flow_on() -> None:
    found = net("output side(weight=0.3): fc(2)\n relu")
    assert ops(found) == ["fc", "relu"]
    assert found.loss_weights == {"main": 1.0, "side": 0.3}
    assert shape(found) == (8, 8, 3)


def test_weight_norm_has_direction_and_length() -> None:
    found = net("conv(4, 1x1, weight=weightnorm(xavier), bias=no)")
    assert paths(found) == ["conv1.weight_v", "conv1.weight_g"]


def test_batchnorm_trains_on_the_batch_and_evaluates_on_the_running_moments() -> None:
    training = net("batchnorm", training=True, batch=4)
    assert set(training.graph.updates) == {
        "batchnorm1.running_mean",
        "batchnorm1.running_var",
    }
    assert training.graph.find_by_op("moments")
    evaluating = net("batchnorm", batch=4)
    assert not evaluating.graph.find_by_op("moments")
    assert training.params == evaluating.params == 6


def test_dropout_is_only_in_training_and_two_never_merge() -> None:
    body = "add { dropout(0.5) | dropout(0.5) }"
    assert not net(body).graph.find_by_op("dropout")
    assert len(net(body, training=True).graph.find_by_op("dropout")) == 2


def test_drop_path_keeps_or_drops_whole_samples() -> None:
    """What is kept is divided by the share that is; a rate may be computed."""
    body = "add { drop_path(0.1 * 3 / 4) | drop_path(0) }"
    assert not net(body).graph.find_by_op("dropout")
    assert len(net(body, training=True).graph.find_by_op("dropout")) == 1
    graph = net("drop_path(0.25)", training=True, batch=64).graph
    given = {n.name: np.ones(n.type.shape, n.type.dtype) for n in graph.inputs}
    factors = evaluate_results(graph, given)["main"].reshape(64, -1)
    assert np.array_equal(factors, np.repeat(factors[:, :1], factors.shape[1], axis=1))
    assert set(np.unique(factors)) == {np.float32(0), np.float32(1 / 0.75)}
    assert 32 < np.count_nonzero(factors[:, 0]) < 64


def test_parameters_do_not_depend_on_the_mode() -> None:
    body = "conv(4, 3x3) -> batchnorm -> dropout -> output_is_no_keyword: fc(3)"
    body = body.replace("output_is_no_keyword: ", "")
    assert paths(net(body, training=True, batch=2)) == paths(net(body))


def test_a_user_s_block_hides_an_operator() -> None:
    assert ops(elaborate(of("block relu { tanh }\nnet a { input(3); relu }"))) == ["tanh"]


def test_instances_give_parameters_and_instances_of_instances_override() -> None:
    p = of(
        """
    net a(c=2, d=3) { input(8); fc(c) -> fc(d) }
    net b = a(4)
    net e = b(d=5)
    net f = e(c=6)"""
    )
    found = {name: [x.output_type.shape[1] for x in elaborate(p, name).layers] for name in p.nets}
    assert found == {"a": [2, 3], "b": [4, 3], "e": [4, 5], "f": [6, 5]}


def test_defaults_may_use_earlier_parameters() -> None:
    found = elaborate(
        of("block b(c, d=2*c) { fc(c) -> fc(d) }\nnet a { input(8); b(3) -> b(3, d=1) }")
    )
    assert [x.output_type.shape[1] for x in found.layers] == [3, 6, 3, 1]


def test_an_error_names_the_file_of_a_block_that_another_one_uses(tmp_path: Path) -> None:
    (tmp_path / "blocks.net").write_text("block wide(c) {\n  conv(c, 1x1)\n}\n")
    main = tmp_path / "main.net"
    main.write_text('use "blocks.net"\nnet a { input(4x4x2); add { wide(8) | identity } }')
    with pytest.raises(NetError) as e:
        elaborate(load_program(str(main)))
    there = f"{tmp_path / 'blocks.net'}:2:3"
    assert f"conv(8, 1x1) at {there}, from block wide(c=8) called at 2:29" in e.value.render()
    main.write_text('use "blocks.net"\nnet a { input(8); wide(8) }')
    with pytest.raises(NetError) as e:
        elaborate(load_program(str(main)))
    assert f"in block wide(c=8) called at {main}:2:19" in e.value.render()


def test_use_brings_blocks_and_a_circle_is_shown(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "blocks.net").write_text('use "more.net"\nblock b { more }')
    (tmp_path / "sub" / "more.net").write_text("block more { fc(7) }")
    main = tmp_path / "main.net"
    main.write_text('use "sub/blocks.net"\nnet a { input(8); b }')
    found = load_program(str(main))
    assert shape(elaborate(found)) == (7,)
    alone = build_program(parse(format_file(inline_uses(found))))
    assert shape(elaborate(alone)) == (7,)
    (tmp_path / "sub" / "more.net").write_text('use "blocks.net"\nblock more { fc(7) }')
    with pytest.raises(NetError) as e:
        load_program(str(main))
    assert "cycle" in e.value.render()
    assert "blocks.net uses " in e.value.render()


def test_named_sections_inherit_from_the_unnamed_one() -> None:
    p = of("train { epochs = 3, seed = 4 }\ntrain short { epochs = 1 }")
    section = p.find_section("train", "short")
    assert section is not None
    assert {e.name: format_value(e) for e in section.entries} == {"seed": 4, "epochs": 1}


def format_value(entry: Any) -> Any:
    return entry.value.value


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.epochs=5", "epochs = 5"),
        ("train.optimizer.lr=0.5", "sgd(momentum=0.9, lr=0.5)"),
        ("data.batch=7", "batch = 7"),
        ("c=[1, 2]", "net a(c=[1, 2])"),
        ("a.c=9", "net a(c=9)"),
        ("train.fast.epochs=9", "train fast { epochs = 9 }"),
    ],
)
def test_override(setting: str, expected: str) -> None:
    text = """net a(c=3) { input(8x8x1); fc(c) }
data { source = digits }
train { optimizer = sgd(lr=0.1, momentum=0.9), epochs = 2 }
train fast { epochs = 1 }
"""
    assert expected in format_file(override(parse(text), [setting]))


@pytest.mark.parametrize("setting", ["train.epoch=5", "train.optimizer.lrr = 0.5"])
def test_a_wrong_setting_is_marked_from_its_key_on(setting: str) -> None:
    text = "net a { input(8); fc(3) }\ndata { }\ntrain { optimizer = sgd }"
    with pytest.raises(NetError) as e:
        resolve_recipe(build_program(override(parse(text), [setting])))
    span = e.value.diagnostics[0].span
    assert span is not None
    assert span.text == setting


@pytest.mark.parametrize(
    "setting",
    ["epochs", "=3", "train.optimizer.x.y=3", "nothing=3", "c=", "c=1 2", "c=1 } net b {"],
)
def test_odd_overrides_are_refused(setting: str) -> None:
    with pytest.raises(NetError):
        override(parse("net a(c=3) { input(8); fc(c) }\ntrain { optimizer = sgd }"), [setting])


@pytest.mark.parametrize(
    ("setting", "help"),
    [
        ("train.schedule=cosine,warmup=3", "`--set 'train.schedule=cosine(warmup=3)'`"),
        ("train.seed=1,2", "`netdsl sweep FILE --seeds 1,2`"),
        ("train.optimizer='adam'", "write `adam`, without quotes"),
        ("train.epochs='5'", "write `5`, without quotes"),
        ("train.freeze='conv1.*'", 'write `"conv1.*"`'),
    ],
)
def test_a_setting_with_a_comma_or_single_quotes(setting: str, help: str) -> None:
    with pytest.raises(NetError) as e:
        override(parse("net a { input(8); fc(3) }\ntrain { optimizer = sgd }"), [setting])
    assert help in (e.value.diagnostics[0].help or "")


def test_the_same_text_gives_the_same_graph() -> None:
    from netdsl.ir.printer import to_text

    body = "conv(4, 3x3) -> batchnorm -> relu -> dropout -> fc(3)"
    first, second = (to_text(net(body, training=True, batch=2).graph) for _ in range(2))
    assert first == second


WORDS = ("use", "block", "net", "data", "train", "test", "expect")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("gap", [" ", "\n  "])
def test_words_that_begin_sections_are_plain_names_inside_them(word: str, gap: str) -> None:
    text = f"net a {{{gap}input(3){gap[:1]}; {gap}{word}: fc(3) {gap[:1]}; {gap}{word} -> relu }}"
    assert f"{word}.weight" in paths(elaborate(of(text)))
    if word != "expect":
        parse(f"train {{{gap}epochs = 1,{gap}{word} = 3,{gap}{word} = 4 }}")
        parse(f"train {{\n epochs = 1\n {word} = 3\n {word} = 4\n}}")
