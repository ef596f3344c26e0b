"""Output that nobody takes, signals and streams as they come: a command does its work, and its exit
code says how that went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netdsl.cli.app import BAD_INPUT, CHECK_FAILED, INTERNAL_ERROR, INTERRUPTED, OK
from netdsl.standard_streams import OutputStream
from tests.conftest import ROOT
from tests.processes import (
    NETDSL,
    NO_OUTPUT,
    TIME_LIMIT,
    run_in_threads,
    run_process,
    start_process,
    wait_for,
)
from tests.test_cli import DIGITS, LENET
from tests.test_resume import NET, kept

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def command(*args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    return run_process(*NETDSL, *args, **options)


@contextmanager
def without_reader() -> Iterator[int]:
    """A pipe whose reader has gone."""
    there, here = os.pipe()
    os.close(there)
    yield here
    os.close(here)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose recipe expects what cannot be missed."""
    path = tmp_path_factory.mktemp("net") / "small.net"
    path.write_text(NET.replace("patience = 2", "expect test_accuracy >= 0"))
    return path


@pytest.fixture(scope="module")
def whole(text: Path) -> Path:
    """A run that was printed in full."""
    out = text.parent / "whole"
    found = command("train", str(text), "--out", str(out), "--device", "reference")
    assert found.returncode == OK
    return out


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("check", DIGITS),
        ("summary", DIGITS),
        ("summary", DIGITS, "--json"),
        ("fmt", "-"),
        ("test", DIGITS),
        ("eval", "WHOLE", "--device", "reference"),
        ("eval", "WHOLE", "--device", "reference", "--json"),
    ],
    ids=" ".join,
)
def test_a_reader_that_has_gone_changes_no_exit_code(args: tuple[str, ...], whole: Path) -> None:
    given = [str(whole) if a == "WHOLE" else a for a in args]
    with without_reader() as pipe:
        content = Path(DIGITS).read_bytes()
        found = command(*given, given=content, stdout=pipe)
    assert found.returncode == OK, found.stderr
    assert b"error" not in found.stderr.lower()


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_change_no_exit_code(closed: tuple[int, ...]) -> None:
    found = command("check", DIGITS, closing=closed)
    assert found.returncode == OK
    found = command("check", "nowhere.net", closing=closed)
    assert found.returncode == BAD_INPUT


def test_there_may_be_nothing_to_read() -> None:
    found = command("check", "-", closing=[0])
    assert found.returncode == BAD_INPUT
    assert found.stderr.startswith(b"error: there is no standard input")
    with open(os.devnull, "wb") as unreadable:
        found = command("check", "-", stdin=unreadable)
    assert found.returncode == BAD_INPUT
    assert found.stderr.startswith(b"error: cannot read standard input: ")


def test_a_filter_needs_an_output() -> None:
    content = Path(DIGITS).read_bytes()
    found = command("fmt", "-", given=content, closing=[1])
    assert found.returncode == BAD_INPUT
    assert found.stderr == b"error: there is no standard output to write to\n"
    assert command("fmt", "-", "--check", given=content, closing=[1]).returncode == OK


@needs_full
@pytest.mark.parametrize("args", [("fmt", "-"), ("summary", DIGITS), ("check", DIGITS, "--json")])
def test_a_result_that_a_full_disk_did_not_take_is_no_success(args: tuple[str, ...]) -> None:
    with FULL.open("wb") as full:
        content = Path(DIGITS).read_bytes()
        found = command(*args, given=content, stdout=full)
    assert found.returncode == BAD_INPUT
    assert found.stderr.splitlines()[-1] == b"error: standard output: No space left on device"


@contextmanager
def _streams(how: str) -> Iterator[dict[str, Any]]:
    if how == "closed":
        yield {"closing": (1, 2)}
    elif how == "no reader":
        with without_reader() as pipe:
            yield {"stdout": pipe, "stderr": pipe}
    else:
        with FULL.open("wb") as full:
            yield {"stdout": full, "stderr": full}


@pytest.mark.parametrize("how", ["closed", "no reader", pytest.param("full", marks=needs_full)])
def test_a_run_does_not_depend_on_its_output(
    text: Path, whole: Path, tmp_path: Path, how: str
) -> None:
    """Its results lie in files: they are the same, and the exit code is that of the run."""
    out = tmp_path / "out"
    with _streams(how) as streams:
        given = ("train", str(text), "--out", str(out), "--device", "reference")
        assert command(*given, **streams).returncode == OK
    assert kept(out) == kept(whole)


def test_an_expectation_that_fails_without_a_reader_is_one(text: Path, tmp_path: Path) -> None:
    missed = tmp_path / "missed.net"
    missed.write_text(text.read_text().replace("test_accuracy >= 0", "test_accuracy > 1"))
    with without_reader() as pipe:
        found = command(
            *("train", str(missed), "--out", str(tmp_path / "out"), "--device", "reference"),
            stdout=pipe,
            stderr=pipe,
        )
    assert found.returncode == CHECK_FAILED


def test_a_reader_that_dies_half_way_does_not_end_a_run(
    text: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ("train", str(text), "--out", str(out), "--device", "reference")
    with start_process(*NETDSL, *args, stderr=subprocess.PIPE) as process:
        stream: Any = process.stderr
        assert any(line.startswith(b"epoch 1/3") for line in iter(stream.readline, b""))
        stream.close()
        assert process.wait(TIME_LIMIT) == OK
    assert kept(out) == kept(whole)


def test_a_run_goes_on_when_its_terminal_closes(tmp_path: Path, text: Path) -> None:
    """One that does not control it, so that no signal comes: only writing fails."""
    import pty

    there, here = pty.openpty()
    out = tmp_path / "out"
    args = ("train", str(text), "--out", str(out), "--device", "reference")
    streams = {"stdin": here, "stdout": here, "stderr": here}
    with start_process(*NETDSL, *args, "--set", "train.epochs=30", **streams) as process:
        os.close(here)
        # nobody reads, and a run waits for a terminal that is full: it is closed before that
        wait_for(out / "last.safetensors", process)
        os.close(there)
        assert process.wait(TIME_LIMIT) == OK
    assert (out / "metrics.jsonl").read_text().count('"epoch"') == 30


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_so(how: signal.Signals, text: Path, tmp_path: Path) -> None:
    """SIGHUP under `nohup`; SIGINT behind a shell's `&`."""
    out = tmp_path / "out"
    args = ("train", str(text), "--out", str(out), "--device", "reference")
    with start_process(
        *NETDSL, *args, "--set", "train.epochs=20", ignoring=[how], **NO_OUTPUT
    ) as process:
        wait_for(out / "last.safetensors", process)
        process.send_signal(how)
        assert process.wait(TIME_LIMIT) == OK


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_without_end_end_a_run_with_130(
    how: signal.Signals, text: Path, tmp_path: Path
) -> None:
    """While it trains, saves, says so, and while Python itself ends."""
    out = tmp_path / "out"
    args = ("train", str(text), "--out", str(out), "--device", "reference")
    streams = {"stderr": subprocess.PIPE}
    with start_process(*NETDSL, *args, "--set", "train.epochs=2000", **streams) as process:
        wait_for(out / "last.safetensors", process)
        while process.poll() is None:
            process.send_signal(how)
            time.sleep(0.005)
        said = process.stderr.read().decode()
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in said
    assert "Exception ignored" not in said


def test_an_interrupt_while_a_class_is_made_ends_with_130(tmp_path: Path) -> None:
    """Python remembers one that came up in `exec`, and would end by a signal."""
    (tmp_path / "module.py").write_text("""
from netdsl import __main__, cli
def interrupted():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
cli.main = interrupted
__main__.main()
""")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    assert run_process(sys.executable, "-m", "module", env=env).returncode == INTERRUPTED


def test_an_output_takes_what_it_can() -> None:
    """All of it, where the other end takes little at a time and does not wait."""
    there, here = os.pipe()
    os.set_blocking(here, False)
    output, content = OutputStream(here), os.urandom(1_000_000)

    def write() -> int:
        with open(here, "wb"):  # closes it, however this ends
            return output.write(content)

    def read() -> bytes:
        with open(there, "rb") as taken:
            return taken.read()

    assert run_in_threads(write, read) == [len(content), content]
    assert output.error is None


def test_an_output_takes_nothing_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    with path.open("rb") as unwritable, path.open("ab") as writable:
        output = OutputStream(unwritable.fileno())
        assert output.write(b"abc") == 3
        assert isinstance(output.error, OSError)
        assert output.reportable_error is None
        output.descriptor = writable.fileno()
        assert output.write(b"abc") == 3
    assert path.read_bytes() == b""


def test_a_fault_in_netdsl_is_no_failed_expectation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from netdsl import cli
    from netdsl.cli import inspection

    def broken(*given: Any) -> Any:
        raise AssertionError("internal error")

    monkeypatch.setattr(inspection, "load_program", broken)
    monkeypatch.setattr(sys, "argv", ["netdsl", "check", DIGITS])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == INTERNAL_ERROR
    assert "this is a bug in netdsl" in capsys.readouterr().err


def test_without_a_home_data_sets_are_not_found(
    netdsl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody_knows() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody_knows)
    for name in ("NETDSL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert netdsl("check", DIGITS)[0] == OK
    code, _, err = netdsl("train", LENET)
    assert code == BAD_INPUT
    assert err.startswith("error: there is no home folder")


ODD = (
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
)


@pytest.mark.parametrize(
    "locale",
    [pytest.param(ODD[0], id="C"), pytest.param(ODD[1], id="ascii", marks=pytest.mark.slow)],
)
def test_names_that_the_locale_does_not_have(
    locale: dict[str, str], text: Path, tmp_path: Path
) -> None:
    not_utf8 = b"gr\xf6\xdfe"
    for name in ("größe".encode(), not_utf8):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".net"))
        path.write_bytes(text.read_bytes().replace(b"small", "größe".encode()))
        out = path.with_suffix("")
        given = ("train", str(path), "--out", str(out), "--device", "reference")
        env = {**os.environ, **locale}
        commands = (given, ("eval", str(out)), ("summary", str(path)), ("check", f"{path}x"))
        for args in commands if name == not_utf8 else commands[:1]:
            found = command(*args, env=env)
            assert found.returncode == (BAD_INPUT if args[0] == "check" else OK), found.stderr
            assert b"Traceback" not in found.stderr
