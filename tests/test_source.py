"""Generated code as text: `compile --emit source`, and all stages of a run by NETDSL_DUMP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from llvmlite import binding as llvm

from netdsl.backends.cpu.backend import CpuBackend, make_kernel_tasks
from netdsl.backends.cpu.llvm_listing import list_called_functions
from netdsl.backends.cuda import nvrtc
from netdsl.backends.cuda.backend import CUDA_FUSION
from netdsl.backends.cuda.cuda_source import MULTIPROCESSORS, generate_cuda_source
from netdsl.backends.cuda.prelude import PRELUDE
from netdsl.errors import NetError
from netdsl.ir.printer import to_text
from netdsl.ir.text_parser import parse_graphs
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import load_program
from netdsl.plan.placement import ARENA
from netdsl.plan.plan import Plan, make_plan
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph
from tests.graphs import BLOCKS, assert_same_graph
from tests.mock_gpu import open_mock_backend
from tests.test_cli import DIGITS, LENET
from tests.test_cli_compile import RESNET
from tests.test_without_gpu import bound, graphs, joined, recipe


def functions(text: str, comment: str) -> dict[str, str]:
    """The functions of a listing, by what its kernels call them."""
    parts = re.split(rf"^{comment} (function|kernel) (.*)$\n", text, flags=re.MULTILINE)[1:]
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {name: body.strip() for kind, name, body in triples if kind == "function"}


def called(text: str, comment: str) -> set[str]:
    calls = re.findall(rf"^{comment}   (\w+ \d+)\b", text, flags=re.MULTILINE)
    return set(calls)


# ---- LLVM


def cpu_plan(graph: Graph) -> Plan:
    return make_plan(graph, CpuBackend().fusion)


def small_step() -> Graph:
    return next(iter(graphs(Path(LENET))))


def test_a_cpu_kernel_s_functions_are_those_that_it_runs() -> None:
    """The addresses of a plan that is never allocated lead to the same functions, in order."""
    backend, plan = CpuBackend(), cpu_plan(small_step())
    memory = {n: backend.allocate(s) for n, s in {ARENA: plan.arena_bytes, **plan.buffers}.items()}
    expected, labels = dict[str, str](), backend.generate_source(plan)
    for kernel in plan.kernels:
        launch = make_kernel_tasks(plan, kernel, memory)
        if launch:
            expected |= {c.text.strip(): c.name for c in list_called_functions(launch)}
    found = functions(labels, ";")
    assert list(found.values()) == list(expected)
    assert [name.split()[0] for name in found] == list(expected.values())
    assert called(labels, ";") == set(found)


def test_cpu_source_is_what_llvm_reads(netdsl: Any) -> None:
    exit_code, out, _ = netdsl("compile", DIGITS, "--emit", "source", "--device", "cpu")
    assert exit_code == 0
    found = functions(out, ";")
    assert {"product 1", "tile 1", "rows 1"} <= found.keys()
    for name, text in found.items():
        module = llvm.parse_assembly(text)
        module.verify()
        assert module.get_function(name.split()[0])
    assert "; kernel conv1.conv1" in out


# ---- CUDA


@pytest.mark.parametrize("low", ["full", "mixed"])
@pytest.mark.parametrize("net", ["residual", "googlenet", "covering"])
def test_cuda_source_is_what_the_engine_compiles(
    net: str, low: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plan for an H100: all but the copies that a library's call may want."""
    network = elaborate(load_program(BLOCKS), net, Settings(batch=2, training=True))
    graph, backend = compile_step(network, recipe(low)), open_mock_backend(monkeypatch)
    bound(graph, backend)
    text = generate_cuda_source(make_plan(graph, CUDA_FUSION), MULTIPROCESSORS["sm_90"])
    assert text.startswith(PRELUDE)
    found = functions(text, "//")
    assert called(text, "//") == found.keys()
    assert "references" not in text
    taken = {s.removeprefix(PRELUDE).strip() for s in backend.device.sources}
    missing = taken - set(found.values())
    assert all("o0[j] = x0[j];" in copy for copy in missing)
    assert len(missing) < len(taken) / 4


def test_cuda_source_compiles(netdsl: Any) -> None:
    try:
        nvrtc.load_library()
    except NetError as e:
        pytest.skip(str(e))
    _, out, _ = netdsl("compile", DIGITS, "--emit", "source", "--device", "cuda")
    sources = [f"{PRELUDE}{text}" for text in functions(out, "//").values()]
    assert len(sources) > 3
    assert nvrtc.compile_source(joined(sources), "sm_90")


def test_cuda_source_is_that_of_a_gpu(netdsl: Any) -> None:
    """Blocks are as many as its multiprocessors want."""
    args = ("compile", RESNET, "--train", "--emit", "source", "--device", "cuda")
    texts = {arch: netdsl(*args, "--arch", arch)[1] for arch in MULTIPROCESSORS}
    assert texts["sm_90"] == netdsl(*args)[1]
    assert len(set(texts.values())) == len(texts)
    assert "cuDNN: conv2d_wgrad" in texts["sm_90"]
    assert "cuBLASLt: matmul with bias" in texts["sm_90"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--device", "model"), "`model` does not generate code"),
        (("--device", "reference"), "`reference` does not generate code"),
        ((), "`model` does not generate code"),
        (("--device", "cpu", "--arch", "sm_90"), "`--arch` names a GPU"),
        (("--device", "cuda", "--arch", "sm_9"), "unknown GPU architecture `--arch sm_9`"),
        (("--device", "cuda", "--arch", "\x1b"), "unknown GPU"),
        (("--device", "tpu"), "no device `tpu`"),
    ],
)
def test_what_has_no_source_is_told(netdsl: Any, args: tuple[str, ...], message: str) -> None:
    exit_code, out, err = netdsl("compile", DIGITS, "--emit", "source", *args)
    assert (exit_code, out) == (2, "")
    assert message in err
    assert "help: " in err


def test_an_architecture_wants_its_source(netdsl: Any) -> None:
    exit_code, _, err = netdsl("compile", DIGITS, "--arch", "sm_90")
    assert exit_code == 2
    assert "add `--emit source`" in err


@pytest.mark.parametrize("args", [("compile", "--emit", "plan"), ("compile",), ("explain",)])
def test_a_plan_for_a_gpu_needs_none(args: tuple[str, ...], netdsl: Any) -> None:
    command, *options = args
    exit_code, out, _ = netdsl(command, DIGITS, "--device", "cuda", *options)
    assert exit_code == 0
    assert "digits" in out


def test_help_names_what_is_emitted(netdsl: Any) -> None:
    text = " ".join(netdsl("compile", "--help")[1].replace("│", " ").split())
    for words in ("--emit WHAT", "json, graphml or dot", "LLVM or CUDA", "--arch SM", "sm_90"):
        assert words in text


# ---- NETDSL_DUMP

SMALL = """net small { input(8x8x1); conv(4, 3x3) -> relu; fc(10) }
data { source = digits, batch = 64 }
train { epochs = 1 }
"""
PLANNED = ["plan", "kernels", "source"]
# the passes of the step and of the evaluation, which have one arena; then the step, and the
# evaluation for validation and for the test, whose weights no kernel prepares
STAGES = [
    *("simplify", "lower", "grad", "simplify"),
    *("simplify", "lower", "fold", "simplify", "simplify"),
    *PLANNED,
    *(2 * ["plan", *PLANNED]),
]


def stages(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir())
    assert [n[:4] for n in names] == [f"{i:03}-" for i in range(1, len(names) + 1)]
    return [n[4:].removesuffix(".txt") for n in names]


@pytest.fixture
def train(netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains a small net on a device, and gives what was written of its stages by name."""
    (tmp_path / "small.net").write_text(SMALL)

    def run(name: str, device: str) -> dict[str, str]:
        monkeypatch.setenv("NETDSL_DUMP", str(tmp_path / name))
        exit_code, _, _ = netdsl("train", "small.net", "--device", device, "--out", f"run {name}")
        assert exit_code == 0
        return {p.name: p.read_text() for p in sorted((tmp_path / name).iterdir())}

    return run


def test_a_run_writes_all_its_stages(train: Any, tmp_path: Path) -> None:
    """Each pass as a text that is read back: before, and after."""
    texts = train("one", "cpu")
    assert stages(tmp_path / "one") == STAGES
    passes = {n: t for n, t in texts.items() if t.startswith("graph ")}
    assert len(passes) == len([s for s in STAGES if s not in PLANNED])
    others = [t for n, t in texts.items() if n not in passes]
    assert all(t.startswith(("plan ", "kernel ", "; kernel ")) for t in others)
    graphs_of = {name: parse_graphs(text, name) for name, text in passes.items()}
    for name, (before, after) in graphs_of.items():
        assert f"{to_text(before)}\n{to_text(after)}" == passes[name]
    first, second, grad, last = list(graphs_of.values())[:4]
    for one, other in ((first, second), (second, grad), (grad, last)):
        assert_same_graph(one[1], other[0])
    assert train("two", "cpu") == texts


@pytest.mark.parametrize("device", ["reference", "model"])
def test_a_device_without_code_writes_no_source(device: str, train: Any, tmp_path: Path) -> None:
    train("dump", device)
    assert stages(tmp_path / "dump") == [s for s in STAGES if s != "source"]


def test_other_commands_write_too(
    netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETDSL_DUMP", str(tmp_path / "dump"))
    assert netdsl("compile", LENET)[0] == 0
    assert stages(tmp_path / "dump") == [
        "simplify",
        "lower",
        "fold",
        "simplify",
        "simplify",
        "plan",
    ]


def test_nothing_is_written_unless_asked_for(
    netdsl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setenv("NETDSL_DUMP", "")
    assert netdsl("compile", LENET)[0] == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", [("compile", LENET), ("train", DIGITS), ("explain", LENET)])
@pytest.mark.parametrize("folder", ["taken", "/dev/null", "taken/inside", "n" * 300])
def test_a_folder_that_cannot_be_written_ends_with_a_sentence(
    folder: str,
    command: tuple[str, ...],
    netdsl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "taken").write_text("a file")
    path = folder if folder.startswith("/") else str(tmp_path / folder)
    monkeypatch.setenv("NETDSL_DUMP", path)
    exit_code, out, err = netdsl(*command)
    assert exit_code == 2
    assert out == ""
    assert re.search(f"error: cannot write {path}/...-simplify.txt: .", err)
    assert (tmp_path / "taken").read_text() == "a file"
