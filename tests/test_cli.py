"""The command line as people meet it: output, exit codes, sentences instead of tracebacks."""

from __future__ import annotations

import ast
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from netdsl import cli
from netdsl.cli.command_groups import GROUPS
from tests.conftest import ROOT
from tests.processes import NETDSL, TIME_LIMIT, run_process, start_process, wait_for

MODELS = ROOT / "models"
DIGITS = str(MODELS / "digits.net")
LENET = str(MODELS / "lenet.net")


def test_help_teaches_with_an_example_for_each_command(netdsl: Any) -> None:
    code, out, _ = netdsl("--help")
    assert code == 0
    commands = "check fmt test summary compile explain time train sweep eval predict gradcheck"
    for command in commands.split():
        assert command in out
        code, text, _ = netdsl(command, "--help")
        assert code == 0
        assert f"Example: netdsl {command}" in text


def test_help_fits_a_terminal() -> None:
    """Typer fills the first paragraph, and keeps the line breaks of the others."""
    for command in cli.app.registered_commands:
        for paragraph in inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")[1:]:
            lines = paragraph.splitlines()
            assert len(lines) == 1 or max(map(len, lines)) < 79, (command.callback, paragraph)


def test_help_lists_each_command_in_a_group_with_one_sentence() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert [c.name for c in cli.app.registered_commands] == names
    for command in cli.app.registered_commands:
        text = str(command.short_help)
        assert text[0].isupper()
        assert len(text) < 120, text
        assert text.count("`") % 2 == text.count("(") - text.count(")") == 0, text


def loaded(script: str, modules: tuple[str, ...]) -> list[str]:
    """Which of these modules a script has imported when it is over."""
    script = f"import sys\n{script}\nprint([m for m in {modules} if m in sys.modules])"
    out = run_process(sys.executable, "-c", script, text=True)
    return ast.literal_eval(out.stdout.splitlines()[-1])


def command(*args: str) -> str:
    """A script that runs a command."""
    run = "from netdsl.__main__ import main\ntry: main()\nexcept SystemExit: pass"
    return f"sys.argv = ['netdsl', *{args}]\n{run}"


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "networkx", "lark", "rich.table")
    assert loaded("import netdsl.cli", heavy) == []
    assert loaded("import netdsl; netdsl.__all__", heavy) == []


def test_networkx_is_imported_only_where_a_graph_is_made() -> None:
    assert loaded(command("--help"), ("networkx",)) == []
    assert loaded(command("fmt", "--check", LENET), ("networkx",)) == []
    assert loaded(command("check", LENET), ("networkx",)) == ["networkx"]


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("train",),
        ("train", "nowhere.net"),
        ("train", DIGITS, "--device", "tpu"),
        ("train", DIGITS, "--nonsense"),
        ("train", DIGITS + ":nothing"),
        ("train", DIGITS, "--set", "epochs"),
        ("train", DIGITS, "--set", "train.epochs=many"),
        ("train", DIGITS, "--data", "nowhere"),
        ("train", LENET, "--data", "."),
        ("summary", LENET + ":lenet6"),
        ("check", str(ROOT)),
        ("fmt", "nowhere.net"),
        ("eval", "nowhere.safetensors"),
        ("eval", DIGITS),
        ("predict", DIGITS, "x.png"),
        ("gradcheck", DIGITS, "--seed", "-1"),
        ("test", "nowhere"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_2(netdsl: Any, args: tuple[str, ...]) -> None:
    code, out, err = netdsl(*args)
    assert code == 2
    assert not out
    assert err.startswith("error: ")


def test_check(netdsl: Any, tmp_path: Path) -> None:
    assert netdsl("check", LENET)[0] == 0
    code, out, _ = netdsl("check", LENET, "--json")
    found = json.loads(out)
    assert found.pop("nets") == ["lenet5", "caffe_lenet"]
    assert found == {"ok": True, "errors": [], "warnings": []}
    (tmp_path / "wrong.net").write_text("net a { input(8) -> fcc(3) }")
    code, out, _ = netdsl("check", "wrong.net", "--json")
    (error,) = json.loads(out)["errors"]
    assert code == 2
    assert (error["line"], error["column"]) == (1, 21)
    assert "fcc" in error["message"]


def test_standard_input_is_a_file(netdsl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    text = "net a{input(8)->fc(3)}"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert netdsl("fmt", "-")[1] == "net a { input(8) -> fc(3) }\n"


def test_fmt_changes_files_and_check_only_tells(netdsl: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.net"
    path.write_text("net a{input(8)->fc(3)}")
    assert netdsl("fmt", "--check", "a.net")[0] == 1
    assert path.read_text() == "net a{input(8)->fc(3)}"
    assert netdsl("fmt", "a.net")[0] == 0
    assert path.read_text() == "net a { input(8) -> fc(3) }\n"
    assert netdsl("fmt", "--check", "a.net")[0] == 0


def test_test_sections_pass_and_fail(netdsl: Any, tmp_path: Path) -> None:
    code, out, _ = netdsl("test", LENET, DIGITS, "--json")
    assert code == 0
    assert json.loads(out)["passed"] == 3
    (tmp_path / "a.net").write_text("net a { input(8) -> fc(3) }\ntest a { params == 28 }")
    code, out, err = netdsl("test", ".")
    assert code == 1
    assert "params == 28: it is 27" in out
    assert "0 passed, 1 failed" in err


def test_summary(netdsl: Any) -> None:
    code, out, _ = netdsl("summary", LENET)
    assert code == 0
    assert "61,706 params" in out
    code, out, _ = netdsl("summary", LENET + ":caffe_lenet", "--json")
    found = json.loads(out)
    assert found["params"] == 431_080
    assert found["layers"][0]["output"] == "24x24x20"
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]


def test_set_reaches_a_net_s_parameters(netdsl: Any) -> None:
    args = ("summary", str(MODELS / "resnet.net") + ":resnet20", "--set", "n=5", "--json")
    assert json.loads(netdsl(*args)[1])["params"] == 464_154


def test_gradcheck(netdsl: Any) -> None:
    code, out, _ = netdsl("gradcheck", DIGITS, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["ok"]
    assert [x["name"] for x in found["layers"]][:2] == ["conv1.conv1", "conv1.relu1"]


def test_train_eval_predict(netdsl: Any, tmp_path: Path) -> None:
    from PIL import Image

    args = ("train", DIGITS, "--set", "train.epochs=2", "--json")
    code, out, err = netdsl(*args)
    found = json.loads(out)
    assert code == 1  # two epochs do not meet the file's own expectation
    assert "expected test_accuracy >= 0.97" in err
    assert found["epochs"] == 2
    assert found["val_accuracy"] > 0.7
    assert Path(found["checkpoint"]).parent == Path("runs/digits-1")
    assert netdsl(*args)[0] == 1
    assert (tmp_path / "runs" / "digits-2").is_dir()
    code, out, _ = netdsl("eval", found["checkpoint"], "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == pytest.approx(found["test_accuracy"])
    Image.new("L", (20, 20)).save("black.png")
    code, out, _ = netdsl("predict", found["checkpoint"], "black.png", "--json")
    (answer,) = json.loads(out)
    assert answer["image"] == "black.png"
    assert len(answer["top"]) == 5
    code, _, err = netdsl("predict", found["checkpoint"], "nothing.png")
    assert (code, "no picture" in err) == (2, True)


def test_an_earlier_run_is_never_written_over(netdsl: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last.safetensors").write_bytes(b"precious")
    code, _, err = netdsl("train", DIGITS, "--out", "out")
    assert code == 2
    assert "already contains last.safetensors" in err
    assert "--resume" not in err
    assert (tmp_path / "out" / "last.safetensors").read_bytes() == b"precious"
    (tmp_path / "out" / "recipe.net").write_text("")
    code, _, err = netdsl("train", DIGITS, "--out", "out")
    assert code == 2
    assert "continue this run with `--resume out`" in err


def test_cuda_without_cupy_says_what_to_install(
    netdsl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, _, err = netdsl("train", DIGITS, "--device", "cuda")
    assert code == 2
    assert "netdsl[cuda13]" in err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_asks_and_the_second_interrupts(how: int) -> None:
    from netdsl.interrupt import defer_interrupts

    before = signal.signal(how, signal.default_int_handler)  # tests may run behind a shell's `&`
    try:
        with defer_interrupts() as asked:
            assert not asked()
            os.kill(os.getpid(), how)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), how)
        assert signal.getsignal(how) is signal.default_int_handler
    finally:
        signal.signal(how, before)


def test_signals_stay_deferred_for_ranks() -> None:
    from netdsl.interrupt import find_handled_signals, keep_interrupts

    before = {s: signal.getsignal(s) for s in find_handled_signals()}
    announced: list[str] = []
    try:
        asked = keep_interrupts(lambda: announced.append("once"))
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert announced == ["once", "once"]
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def test_a_terminal_that_closes_asks_however_often() -> None:
    from netdsl.interrupt import defer_interrupts

    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with defer_interrupts() as asked:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
                assert asked()
        assert signal.getsignal(signal.SIGHUP) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_ends_with_130(tmp_path: Path, how: int) -> None:
    args = ("train", DIGITS, "--set", "train.epochs=100000", "--data", ".", "--watch", "gradients")
    last = tmp_path / "runs" / "digits-1" / "last.safetensors"
    streams: Any = {"stderr": subprocess.PIPE, "text": True}
    with start_process(*NETDSL, *args, cwd=tmp_path, **streams) as process:
        wait_for(last, process)
        process.send_signal(how)
        _, err = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 130
    same = "--data . --watch gradients --watch-every 100"
    assert f"resume it with `netdsl train --resume runs/digits-1 {same}`" in err
    assert "interrupted" in err
    assert "Traceback" not in err
    from netdsl.training.store import checkpoint

    assert checkpoint.load(last).progress["epoch"] >= 1


def test_overfit_tells_the_first_loss_and_the_last(netdsl: Any, tmp_path: Path) -> None:
    code, out, _ = netdsl("train", DIGITS, "--overfit", "--device", "reference")
    assert code == 0
    assert "guessing gives 2.3026" in out
    assert "accuracy 100.00%" in out
    assert not (tmp_path / "runs").exists()


def test_watch_writes_by_layer(netdsl: Any, tmp_path: Path) -> None:
    args = ("--set", "train.epochs=1", "--watch", "gradients,activations", "--watch-every", "20")
    assert netdsl("train", DIGITS, *args)[0] == 1
    lines = (tmp_path / "runs" / "digits-1" / "metrics.jsonl").read_text().splitlines()
    looks = [x for x in map(json.loads, lines) if "watched_at" in x]
    assert [x["watched_at"] for x in looks] == [0, 20]
    assert set(looks[0]["activations"]["conv1.relu1"]) == {"norm", "mean", "deviation", "dead"}
    assert netdsl("train", DIGITS, "--watch", "weights")[0] == 2


def test_resume_is_told_what_it_goes_on_with(netdsl: Any, tmp_path: Path) -> None:
    for args in (("--resume", "nowhere"), (DIGITS, "--resume", "runs"), ()):
        code, _, err = netdsl("train", *args)
        assert code == 2
        assert err.startswith("error: ")
    assert netdsl("train", DIGITS, "--set", "train.epochs=1", "--out", "a")[0] == 1
    code, _, err = netdsl("train", "--resume", "a", "--set", "train.epochs=2")
    assert code == 1
    assert "train.epochs = 2, was 1" in err
    assert "epoch 2/2" in err
    assert "train.epochs = 2 (was 1)" in (tmp_path / "a" / "recipe.net").read_text()
    assert "the run is complete" not in err
    code, _, err = netdsl("train", "--resume", "a")
    assert code == 1
    assert "the run is complete; setting `train.epochs=N` continues it" in err
    code, _, err = netdsl("train", "--resume", "a", "--set", "train.epochs=1")
    assert code == 2
    assert "has trained 2 epochs already, more than `train.epochs = 1`" in err
