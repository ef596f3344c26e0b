"""Where a run is, while it says nothing else: on a terminal, in a file, and from Python."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import netdsl as api
from netdsl.backends import open_backend
from netdsl.cli import progress
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.run import heartbeat
from netdsl.training.run.callbacks import StepReport, format_epoch
from netdsl.training.run.heartbeat import Heartbeat, WorkTracker
from netdsl.training.run.phase import Phase
from netdsl.training.run.trainer import Trainer
from netdsl.training.store import checkpoint
from netdsl.training.store.resume import load_continuation
from tests.processes import NETDSL, TIME_LIMIT, start_process

NET = """net small { input(8x8x1); fc(10) }
data { source = digits, batch = 64 }
train { epochs = 2 }
"""
REFERENCE = open_backend("reference")


def test_what_a_line_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tracker = WorkTracker()
    assert tracker.describe() == ""
    tracker.on_phase(Phase("reading data"))
    assert tracker.describe() == "reading data"
    now += 61
    assert tracker.describe() == "reading data, 61 s so far"
    tracker.on_step(StepReport(0, 2, 1, 1000, None, 640.0))
    assert tracker.describe() == "epoch 1/2, step 1 of 1,000, 640 images/s"
    now += 100
    tracker.on_step(StepReport(0, 2, 201, 1000, 1.25, 640.0))
    line = "epoch 1/2, step 201 of 1,000, loss 1.2500, 640 images/s, about 15 min left"
    assert tracker.describe() == line
    for done in (0, 512):
        tracker.on_phase(Phase("validating", done, 500, "epoch 1/2"))
        now += 30
    assert tracker.describe() == "epoch 1/2: validating, 500 of 500 images, 60 s so far"
    tracker.on_step(StepReport(0, 2, 1, 1000, 2.0, 640.0))  # of the next run of a sweep
    now += 10
    tracker.on_step(StepReport(0, 2, 2, 1000, 2.0, 640.0))
    assert tracker.describe().endswith("about 5.5 h left")


def test_a_line_is_printed_only_after_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    with Heartbeat(lines.append) as beating:
        beating.title = "[1/2] "
        beating.on_phase(Phase("planning"))
        end = time.monotonic() + TIME_LIMIT
        while len(lines) < 2 and time.monotonic() < end:
            time.sleep(0.01)
    assert set(lines) == {"[1/2] planning"}
    lines.clear()
    monkeypatch.setattr(heartbeat, "INTERVAL", TIME_LIMIT)
    with Heartbeat(lines.append) as beating:
        beating.on_phase(Phase("planning"))
        beating.print("a line")
    assert lines == ["a line"]


def test_a_run_in_a_file_gives_a_sign_of_life(
    netdsl: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, which leaves one object on standard output; from Python by `verbose`."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.002)
    Path("a.net").write_text(NET)
    code, out, err = netdsl("train", "a.net", "--json", "--device", "reference", "--out", "run")
    assert code == 0, err
    assert json.loads(out)["epochs"] == 2
    assert re.search(r"^epoch [12]/2", err, re.M)
    assert "reading data" in err
    code, out, err = netdsl("eval", "run", "--json", "--device", "reference")
    assert json.loads(out)["images"] == 359
    assert "compiling kernels" in err
    monkeypatch.setattr(heartbeat, "INTERVAL", 60.0)
    for verbose in (False, True):
        api.train("a.net", device="reference", out=f"run-{verbose}", verbose=verbose)
        out = capsys.readouterr().out
        assert (
            bool(re.search(r"^epoch 2/2  loss [\d.]+  accuracy [\d.]+%  val", out, re.M)) == verbose
        )


def test_the_phases_of_a_run(tmp_path: Path) -> None:
    phases: list[Phase] = []
    program = build_program(parse(NET))
    trainer = Trainer(program, None, REFERENCE, on_phase=phases.append)
    trainer.run(tmp_path / "run", lambda step: None, lambda metrics: None)
    assert list(dict.fromkeys(str(Phase(p.name, epoch=p.epoch)) for p in phases)) == [
        "reading data",
        "initializing weights",
        "planning",
        "compiling kernels",
        *(f"epoch {n}/2: {what}" for n in (1, 2) for what in ("starting", "validating", "saving")),
        "testing",
    ]
    assert str(phases[-1]) == "testing, 359 of 359 images"


def test_an_epoch_resumed_in_validation_has_no_rate(tmp_path: Path) -> None:
    """Its updates were made before; it ends as if it had not been interrupted."""
    phases: list[Phase] = []
    lines: list[dict[str, Any]] = []
    program = build_program(parse(NET))

    def is_validating() -> bool:
        return (phases[-1].name, phases[-1].epoch) == ("validating", "epoch 2/2")

    whole = Trainer(program, None, REFERENCE)
    whole.run(tmp_path / "whole", lambda step: None, lambda metrics: None)
    trainer = Trainer(program, None, REFERENCE, on_phase=phases.append)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(tmp_path / "run", lambda step: None, lambda metrics: None, is_validating)
    found = load_continuation(tmp_path / "run", ())
    again = Trainer(found.program, None, REFERENCE, saved=found.saved)
    again.run(tmp_path / "run", lambda step: None, lines.append)
    (metrics,) = lines
    assert metrics["images_per_second"] is None
    assert "images/s" not in format_epoch(metrics, again.recipe)
    assert again.progress.history == whole.progress.history
    last = [checkpoint.load(tmp_path / x / "last.safetensors") for x in ("run", "whole")]
    assert all((last[0].states[k] == v).all() for k, v in last[1].states.items())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_shows_what_a_run_does(tmp_path: Path) -> None:
    """A spinner and a bar that are gone in the end; what is printed stays, unbroken."""
    import fcntl
    import pty
    import struct
    import termios

    (tmp_path / "a.net").write_text(NET)
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.getcwd()}
    with start_process(
        *NETDSL,
        *("train", "a.net", "--device", "reference", "--out", "run"),
        stdout=side,
        stderr=side,
        cwd=tmp_path,
        env=environment,
    ) as process:
        os.close(side)
        written = b""
        while piece := _read(terminal):
            written += piece
        assert process.wait(TIME_LIMIT) == 0
    os.close(terminal)
    text = written.decode()
    assert re.search(r"[-\\|/] (reading data|initializing weights|compiling)", text)
    assert re.search(r"epoch 2/2  loss [\d.]+  accuracy [\d.]+%  val loss [^\r\n]* s\r\n", text)
    assert text.index("\x1b[?25l") < text.index("\x1b[?25h") < text.index("weights in run/best")


def test_predict_shows_what_it_does_before_its_first_line(
    tmp_path: Path, netdsl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []

    @contextmanager
    def show(phase: str) -> Iterator[Any]:
        phases.append(phase)
        yield SimpleNamespace(on_phase=lambda found: phases.append(found.name))

    (tmp_path / "a.net").write_text(NET.replace("epochs = 2", "epochs = 1"))
    assert netdsl("train", "a.net", "--device", "reference", "--out", "run")[0] == 0
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    monkeypatch.setattr(progress, "show_progress", show)
    code, out, _ = netdsl("predict", "run", "x.png", "--device", "reference")
    assert code == 0
    assert out.startswith("x.png: ")
    assert phases == ["reading weights", "compiling kernels"]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the other side is closed
        return b""
