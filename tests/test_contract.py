"""What people did to it once: each case ended in a wrong result, a traceback or a hang."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.errors import NetError
from netdsl.inference import Predictor
from netdsl.insight.gradcheck import gradcheck
from netdsl.insight.net_tests import run_test
from netdsl.insight.program_check import check_program
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_text
from netdsl.language.parse import parse
from netdsl.language.program import build_program, load_program
from netdsl.ops import OPS
from tests.conftest import ROOT
from tests.forged_checkpoints import DTYPES, CheckpointParts
from tests.processes import NETDSL, run_process

DIGITS = str(ROOT / "models" / "digits.net")
SECTIONS = "data { source = digits }\ntrain { epochs = 1 }\n"


def expecting(condition: str) -> str:
    return SECTIONS.replace("epochs = 1", f"epochs = 1, expect {condition}")


def check(text: str) -> None:
    check_program(build_program(parse(text)))


def test_the_gradient_of_tied_maxima_sums_to_one() -> None:
    from netdsl.ir.autodiff import grad
    from netdsl.ir.builder import Builder
    from netdsl.ir.interpreter import evaluate_graph
    from netdsl.types import TensorType

    b = Builder(dtype="float64")
    x = b.input("x", TensorType((4, 4), "float64"))
    g = grad(b, b.reduce_max(x, axes=(0, 1)), [x])["x"]
    assert evaluate_graph(b.build({}), {"x": np.zeros((4, 4))})[g.name].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("net a { input(8x8x8); conv(8, 1x1); conv1: conv(8, 1x1) }", "two things here"),
        ("net a { input(8); shared e = fc(3); shared e = fc(3); e }", "two things here"),
        ("net a { input(8); output head: fc(3); head: relu -> fc(3) }", "two things here"),
        ("block e { fc(8) }\nnet a { input(8); shared e1 = fc(8); e -> e1 }", "two things here"),
        ("net a { labels: input(8); fc(3) }", "cannot be called `labels`"),
        ("net a { input(8) -> in }", "a net has no `in`"),
        ("net a { input(8x8x1); fc(10); output s: fc(5) }\n" + SECTIONS, "gives 5 scores"),
        (
            "net a { input(8x8x1); pad(channels=[0, 9]) -> avgpool(8) }\n" + SECTIONS,
            "no weights to train",
        ),
        ("net a { input(8x8x1) }\ntrain { epochs = 1 }", "has no `data`"),
        ("net a { input(9x9x1); fc(10) }\n" + SECTIONS, "the images are 8x8x1"),
        ("net a { input(8x8x1); fc(10) }\n" + SECTIONS + "train { seed = 1 }", "have no name"),
        ("net a { input(8x8x1); fc(10) }\n" + expecting("seed > 0"), "no metric"),
        ("net a { input(8x8x1); fc(10) }\n" + expecting("val_loss"), "condition"),
        ("net a { input(8x8x1); fc(10) }\n" + expecting("1/0 > 0"), "by zero"),
        ("data { source = digits, validation = 1.0 }", "below 1"),
        ("net a { input(8x8x3); add { conv(16, 1x1) | globalavgpool } }", "differ"),
        ("net a { for i in range(10000) { for j in range(10000) {} }; input(3) }", "loops"),
        ("net a { let x = [1, 1]; " + "let x = [x, x]; " * 30 + "input(x) }", "a list has at most"),
        ("net a { input(3) -> (relu * 10000) * 4 }", "layers"),
    ],
)
def test_refused_with_a_sentence(text: str, complaint: str) -> None:
    started = time.process_time()
    with pytest.raises(NetError, match=complaint):
        check(text)
    assert time.process_time() - started < 15


def test_names_compare_by_their_name() -> None:
    text = "block b(p) { if p == same { relu } else { tanh } }\nnet a { input(3); b(same) }"
    assert [x.layer_type for x in elaborate(build_program(parse(text))).layers] == ["relu"]


def test_a_loop_gives_back_a_variable_that_held_none() -> None:
    text = "net a { let x = none; input(8x8x1); for x in [1] { relu }; maxpool(2, stride=x) }"
    assert elaborate(build_program(parse(text))).find_node("maxpool1").type.shape[1:3] == (4, 4)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("conv(1, 3x3) -> conv(1, 3x3) -> c: conv(1, 3x3)", "7"),
        ("c: convtranspose(1, 5x5)", "5"),
        ("conv(1, 5x5) -> upsample(2) -> c: conv(1, 3x3)", "6"),
        ("conv(1, 3x3, dilation=2) -> maxpool(2x2) -> c: conv(1, 3x3)", "10"),
    ],
)
def test_receptive_fields(body: str, field: str) -> None:
    *before, last = body.split(" -> ")
    lines = "; ".join([*(" -> ".join(before),), last] if before else [last])
    text = f'net a {{ input(32x32x1); {lines} }}\ntest a {{ receptive_field("c") == {field} }}'
    p = build_program(parse(text))
    assert run_test(p, p.tests[0]).ok


def test_ceil_mode_averages_as_torch_does() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from netdsl.ir.interpreter import evaluate_results

    x = np.random.default_rng(0).standard_normal((1, 6, 5, 2)).astype(np.float32)
    for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 2, 0)):
        for include in (True, False):
            word = "yes" if include else "no"
            call = f"avgpool({k}, stride={s}, pad={p}, ceil=yes, include_pad={word})"
            graph = elaborate(build_program(parse(f"net a {{ input(6x5x2); {call} }}"))).graph
            found = evaluate_results(graph, {"input": x})["main"]
            pool = torch.nn.AvgPool2d(k, s, p, ceil_mode=True, count_include_pad=include)
            expected = pool(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "body", ["fc(16) -> batchnorm -> relu -> fc(3)", "conv(8, 3x3) -> batchnorm -> relu -> fc(3)"]
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gradcheck_accepts_right_nets(body: str, seed: int) -> None:
    rows = list(gradcheck(build_program(parse(f"net a {{ input(8x8x3); {body} }}")), None, seed))
    assert [r for r in rows if not r.ok] == []


def test_files_that_use_each_other_are_read_once_and_circles_are_found(tmp_path: Path) -> None:
    for i in range(20):
        uses = f'use "{i + 1}.net"\n' * 2 if i < 19 else ""
        (tmp_path / f"{i}.net").write_text(f"{uses}block b{i} {{ relu }}")
    assert len(load_program(str(tmp_path / "0.net")).blocks) == 20
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.net").write_text('use "sub/../b.net"\nuse "./sub/../b.net"')
    with pytest.raises(NetError, match="cycle"):
        load_program(str(tmp_path / "b.net"))


@pytest.mark.parametrize("comment", ["#", "# hello world"])
@pytest.mark.parametrize("end", ["-> relu }", "}"])
def test_many_comment_lines_take_no_time(comment: str, end: str) -> None:
    started = time.perf_counter()
    parse("net a { input(3)\n" + f"{comment}\n" * 20_000 + end)
    assert time.perf_counter() - started < 3


def test_many_entries_and_many_sections_take_no_time() -> None:
    started = time.perf_counter()
    with pytest.raises(NetError):
        build_program(parse("train {\n" + "epochs = 1\n" * 20_000 + "}"))
    with pytest.raises(NetError):
        parse("net a { ( }\n" + "net b { input(3) }\n" * 20_000)
    assert time.perf_counter() - started < 15


LONG = "conv(16, 3x3, pad=same, bias=no) -> batchnorm(gamma=0) -> relu"
UNSETTLED = [
    "net n # why\n{}\n",
    "net a { input(0*-[-(1+2)][0]) }",
    "train { optimizer = adam(lr=0.001), seed = 2, epochs = 100, clip = 1, "
    "loss = cross_entropy(smoothing=0.1) }\ntest a { params == 1 }",
    f"net a {{ (conv(4,1x1) -> add {{ identity | {LONG} -> {LONG} -> conv(4,1x1) }}) * 2 }}",
    f"net a {{ concat {{ identity | add {{ identity | relu }} -> ({LONG} -> {LONG}) * 2 }} }}",
]


@pytest.mark.parametrize("text", UNSETTLED)
def test_format_settles_at_once(text: str) -> None:
    once = format_text(text)
    assert format_text(once) == once
    assert parse(once) == parse(text)
    assert max(map(len, once.splitlines())) <= 100


def netdsl(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return run_process(*NETDSL, *args, text=True, **kwargs)


def test_writing_keeps_permissions_and_follows_links(tmp_path: Path) -> None:
    from netdsl.file_io import write_atomically

    real = tmp_path / "real"
    real.write_text("old")
    real.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(real)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    real.chmod(0o444)
    with pytest.raises(NetError, match="read-only"):
        write_atomically(real, b"newer")


def test_a_run_takes_a_folder_of_its_own_and_never_a_user_s_files(tmp_path: Path) -> None:
    (tmp_path / "recipe.net").write_text(Path(DIGITS).read_text())
    found = netdsl("train", "recipe.net", "--out", ".", cwd=tmp_path)
    assert found.returncode == 2
    assert "already contains recipe.net" in found.stderr
    from netdsl.training.store.run_directory import create_run_directory

    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert create_run_directory("a.net", None) != create_run_directory("a.net", None)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    "args",
    [
        ("summary", "x" * 5000),
        ("test", "x" * 5000),
        ("eval", "x" * 5000),
        ("train", DIGITS, "--data", "x" * 5000),
        ("train", DIGITS, "--out", "x" * 5000, "--set", "train.epochs=1"),
        ("check", "/dev/zero"),
        ("gradcheck", DIGITS, "--seed", "18446744073709551616"),
    ],
)
def test_odd_arguments_end_with_a_sentence(args: tuple[str, ...]) -> None:
    found = netdsl(*args)
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert found.stderr.startswith("error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_told() -> None:
    with open("/dev/full", "w") as full:
        found = netdsl("summary", DIGITS, stdout=full)
    assert found.returncode == 2
    assert "No space left" in found.stderr
    assert "Traceback" not in found.stderr


def test_odd_names_reach_an_odd_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.net").write_text("\ufeffnet größe { input(8) -> fc(3) }", encoding="utf-8")
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = netdsl("summary", "a.net", cwd=tmp_path, env=env)
    assert found.returncode == 0, found.stderr
    assert "gr\\xf6\\xdfe" in found.stdout


def test_sixteen_bit_pictures_are_scaled(tmp_path: Path) -> None:
    from PIL import Image

    from netdsl.data.pictures import read_picture

    eight = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(eight).save(tmp_path / "8.png")
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "16.png")
    a, b = (read_picture(tmp_path / name, 1) for name in ("8.png", "16.png"))
    np.testing.assert_array_equal(a, b)


WHOLE = {
    "net": "net a { input(8x8x1); fc(10) }\n" + SECTIONS,
    "classes": [*"0123456789"],
    "metrics": {},
    "progress": {},
}


@pytest.mark.parametrize(
    ("odd", "complaint"),
    [
        ({}, None),
        ({"net": "net a {"}, r"x.safetensors \(.net inside\):1:"),
        ({"net": 5}, "`metadata.net` is 5, not a string"),
        ({"net": WHOLE["net"] + " " * 2**20}, "`metadata.net` has 1,048,6.* characters"),
        ({"net": 'use "x.net"\n' + str(WHOLE["net"])}, "of .*x.net.? in a text that must be self"),
        ({"classes": 5}, "`metadata.classes` is 5, not a list"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["a"]}, "1 class"),
        ({"classes": [*"000000000a"]}, "two of its classes have the same name"),
        ({"classes": [*"012345678", 9]}, r"`metadata.classes\[9\]` is 9, not a string"),
        ({"metrics": []}, "`metadata.metrics` is a list, not an object"),
        ({"metrics": {"val_accuracy": "high"}}, '`metadata.metrics.val_accuracy` is "high"'),
        ({"metrics": {"train_loss": 10**400}}, r"`metadata.metrics.train_loss` is 10\^400"),
        ({"progress": {"step": -1}}, "`metadata.progress.step` is -1, not from 0"),
        ({"progress": {"step": True}}, "`metadata.progress.step` is true, not an integer"),
        ({"progress": {"changes": "x"}}, '`metadata.progress.changes` is "x", not a list'),
        ({"progress": {"changes": ["a\nb"]}}, "changes.*not one line"),
        ({"progress": {"history": [5]}}, r"`metadata.progress.history\[0\]` is 5, not an object"),
        ({"progress": {"loss": float("nan")}}, "NaN is not a JSON number"),
    ],
)
def test_checkpoints_with_odd_metadata_are_told(
    tmp_path: Path, odd: dict[str, Any], complaint: str | None
) -> None:
    """With the right checksum, so that it is the metadata that are refused; whole ones are not."""
    weights = {"fc1.weight": np.zeros((10, 64), np.float32), "fc1.bias": np.zeros(10, np.float32)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(CheckpointParts(WHOLE | odd, weights).whole())
    if complaint is None:
        assert [*trained(path).predict([])] == []
        return
    with pytest.raises(NetError) as e:
        [*trained(path).predict([])]
    assert re.search(complaint, e.value.render()), e.value.render()
    assert "checksum" not in str(e.value)


@pytest.mark.parametrize("code", [c for c in DTYPES if c != "F32"])
def test_weights_of_another_type_are_refused_by_name(tmp_path: Path, code: str) -> None:
    """They were cast in silence."""
    weights = {"fc1.weight": np.zeros((10, 64), np.float32), "fc1.bias": np.zeros(10, DTYPES[code])}
    path = tmp_path / "x.safetensors"
    path.write_bytes(CheckpointParts(WHOLE, weights).whole())
    with pytest.raises(NetError, match=rf"`fc1\.bias` is of type {code}, and weights are float32"):
        trained(path)


def trained(path: Path) -> Predictor:
    return Predictor(path, open_backend("reference"))


def test_metrics_are_json_whatever_happens(tmp_path: Path) -> None:
    import json

    from netdsl.file_io import replace_non_finite

    assert json.dumps(
        replace_non_finite({"a": float("nan"), "b": [float("inf"), 1.0]}), allow_nan=False
    )


def scale_of(body: str, state: str, image: str = "16x16x8") -> float:
    """The parameter of the distribution that a state begins with."""
    network = elaborate(build_program(parse(f"net a {{ input({image}); {body} }}")))
    found: float = network.graph[state].attrs["init"][1]
    return found


@pytest.mark.parametrize(
    ("body", "state", "fan"),
    [
        ("conv(4, 3x3)", "conv1.weight", 72),
        ("conv(8, 3x3, groups=8)", "conv1.weight", 9),
        ("local(4, 4x4, stride=4)", "local1.weight", 128),
        ("convtranspose(4, 2x2, stride=2)", "convtranspose1.weight", 8),
        ("fc(4)", "fc1.weight", 2048),
    ],
)
def test_he_looks_at_what_one_output_sums_up(body: str, state: str, fan: int) -> None:
    assert scale_of(body, state) == pytest.approx((2 / fan) ** 0.5)


@pytest.mark.parametrize("call", ["conv(4, 3x3", "local(4, 4x4", "convtranspose(4, 3x3", "fc(4"])
def test_weight_norm_begins_as_its_initialiser_would(call: str) -> None:
    from netdsl.ir.interpreter import evaluate_graph
    from netdsl.runtime.state import draw_initial_value

    x = np.random.default_rng(0).standard_normal((1, 12, 12, 8)).astype(np.float32)
    spread = []
    for init in ("he", "weightnorm(he)"):
        text = f"net a {{ input(12x12x8); y: {call}, weight={init}, bias=no) }}"
        network = elaborate(build_program(parse(text)))
        given = {n.name: draw_initial_value(n, 1) for n in network.graph.states}
        values = evaluate_graph(network.graph, {**given, "input": x})
        spread.append(float(values[network.graph.outputs["main"]].std()))
    assert spread[1] == pytest.approx(spread[0], rel=0.35)
    with pytest.raises(NetError, match="direction"):
        check(f"net a {{ input(12x12x8); {call}, weight=weightnorm(zeros)) }}")


def test_in_asks_what_flows_into_the_block() -> None:
    text = "block b { conv(8, 1x1) -> conv(in.channels, 1x1) }\nnet a { input(4x4x3); b }"
    assert elaborate(build_program(parse(text))).find_node("b1").type.shape[3] == 3


def test_shared_chains_keep_the_values_that_they_were_written_with() -> None:
    text = "net a { let c = 8; input(4); shared e = fc(c); let c = 16; e }"
    assert elaborate(build_program(parse(text))).find_node("e1").type.shape == (1, 8)


@pytest.mark.parametrize(
    ("expression", "value"), [("round(2.5)", 3), ("round(-0.4) + 1", 1), ("len([1, 2])", 2)]
)
def test_functions(expression: str, value: int) -> None:
    found = elaborate(build_program(parse(f"net a {{ input(4); fc({expression}) }}")))
    assert found.layers[0].output_type.shape == (1, value)


def test_a_bare_number_equals_its_square() -> None:
    text = "block b(k) { if k == 1 { relu } else { tanh } }\nnet a { input(4); b(1x1) -> b(2x1) }"
    assert [x.layer_type for x in elaborate(build_program(parse(text))).layers] == ["relu", "tanh"]


def test_side_outputs_are_not_counted_in_macs() -> None:
    text = "net a { input(8x8x1); conv(3, 1x1); output aux: fc(10); fc(10) }"
    assert elaborate(build_program(parse(text))).macs == 8 * 8 * 3 + 8 * 8 * 3 * 10


def test_transposed_same_padding_multiplies_by_the_stride() -> None:
    for k, s in ((2, 2), (3, 2), (4, 2), (1, 3), (5, 1)):
        text = f"net a {{ input(5x6x1); c: convtranspose(2, {k}, stride={s}, pad=same) }}"
        assert elaborate(build_program(parse(text))).find_node("c").type.shape[1:3] == (
            5 * s,
            6 * s,
        )


def test_one_name_for_two_blocks_of_two_files_is_refused(tmp_path: Path) -> None:
    for name, layer in (("a", "fc(3)"), ("b", "fc(4)")):
        (tmp_path / f"{name}.net").write_text(
            f"block helper {{ {layer} }}\nblock {name} {{ helper }}"
        )
    main = tmp_path / "main.net"
    main.write_text('use "a.net"\nuse "b.net"\nnet n { input(8); a }')
    with pytest.raises(NetError, match="defined in two files"):
        load_program(str(main))


def test_a_run_s_text_spells_out_every_default_and_means_the_same() -> None:
    from netdsl.language.format import format_file
    from netdsl.training.recipe.recipe import SIGNATURE, resolve_recipe
    from netdsl.training.recipe.resolved_recipe import resolve_file

    text = (
        "net first { input(8x8x1); fc(10) }\nnet second(w=4) { input(8x8x1); fc(w) -> fc(10) }\n"
        "data { source = digits, batch = 7 }\ntrain { net = first, expect val_loss < 9 }\n"
        'train fast { net = second, optimizer = adam(no_decay=["*.bias"]), seed = 3 }'
    )
    p = build_program(parse(text))
    for name in (None, "fast"):
        again = build_program(parse(format_file(resolve_file(p, name))))
        assert resolve_recipe(again) == resolve_recipe(p, name)
        assert format_file(resolve_file(again, None)) == format_file(resolve_file(p, name))
        section = again.find_section("train")
        assert section is not None
        assert {e.name for e in section.entries if hasattr(e, "name")} >= {
            q.name for q in SIGNATURE.params
        }


def test_own_expectations_replace_inherited_ones() -> None:
    from netdsl.training.recipe.recipe import resolve_recipe

    text = (
        "net a { input(8x8x1); fc(10) }\ndata { source = digits }\n"
        "train { expect val_accuracy > 0.9 }\ntrain fast { epochs = 1, expect val_accuracy > 0.1 }"
    )
    p = build_program(parse(text))
    assert len(resolve_recipe(p, "fast").expectations) == 1
    assert resolve_recipe(p, "fast").expectations != resolve_recipe(p).expectations


def test_set_reaches_the_net_of_the_recipe(tmp_path: Path) -> None:
    from netdsl.cli.file_arguments import load_recipe

    path = tmp_path / "two.net"
    path.write_text(
        "net a(w=1) { input(8x8x1); fc(w) }\nnet b(w=1) { input(8x8x1); fc(w) -> fc(10) }\n"
        "data { source = digits }\ntrain { net = b }"
    )
    p = load_recipe(str(path), ["w=5"], None)
    assert elaborate(p, "b").layers[0].output_type.shape == (1, 5)
    assert elaborate(p, "a").layers[0].output_type.shape == (1, 1)


def test_sums_of_many_values_are_exact_enough() -> None:
    x = (3 + np.random.default_rng(0).standard_normal((16, 64, 64, 4))).astype(np.float32)
    found = OPS["moments"].reference(np, x, axes=(0, 1, 2))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found[0], exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found[1], exact.var((0, 1, 2)), rtol=1e-6)
    assert found.dtype == np.float32
