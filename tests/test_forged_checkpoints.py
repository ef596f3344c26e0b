"""Forged checkpoints: each is refused in a sentence or means what it says. No traceback, no hang,
no memory that nothing explains."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl import cli
from netdsl.backends import open_backend
from netdsl.data.pictures import write_picture
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.run.trainer import Trainer
from tests.forged_checkpoints import NET_EDITS, CheckpointParts, forge

LAST = "run/last.safetensors"
NET = """net a { input(8x8x1); c: conv(2, 3x3) -> relu -> fc(10) }
data { source = digits, batch = 200 }
train { epochs = 2, optimizer = adam }
"""
DEVICE = ("--device", "reference")
COMMANDS: dict[str, tuple[str, ...]] = {
    "resume": ("train", "--resume", "run", "--set", "train.epochs=3", *DEVICE),
    "resume as it is": ("train", "--resume", "run", *DEVICE),
    "eval": ("eval", LAST, *DEVICE),
    "predict": ("predict", LAST, "x.png", *DEVICE),
    "filters": ("filters", LAST, "-o", "f.png"),
    "activations": ("activations", LAST, "x.png", "c", "-o", "a.png", *DEVICE),
    "visualize": (
        "visualize",
        LAST,
        "c:0",
        "--steps",
        "2",
        "-o",
        "v.png",
        *DEVICE,
    ),
    "diff": ("diff", LAST, "whole.net"),
    "init": ("train", "init.net", "--out", "new", *DEVICE),
}


class Hang(BaseException):
    pass


def _hang(number: int, frame: Any) -> None:
    raise Hang


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run that was stopped within its second epoch, and what is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # it is no part of what is tried
    asked = iter([False] * 10 + [True])
    trainer = Trainer(build_program(parse(NET)), None, open_backend("reference"))
    with pytest.raises(KeyboardInterrupt):
        trainer.run(tmp_path / "run", lambda p: None, lambda m: None, lambda: next(asked))
    write_picture(tmp_path / "x.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "whole.net").write_text(NET)
    init = NET.replace("epochs = 2", 'epochs = 1, init = weights("run/last.safetensors")')
    (tmp_path / "init.net").write_text(init)
    return tmp_path / "run"


Netdsl = Callable[..., tuple[int, str]]


@pytest.fixture
def netdsl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Netdsl]:
    """A command in this process: its exit code and all it printed. It may take 5 s of CPU."""

    def go(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["netdsl", *args])
        began = time.process_time()
        signal.alarm(60)
        try:
            with pytest.raises(SystemExit) as e:
                cli.main()
        finally:
            signal.alarm(0)
        assert time.process_time() - began < 5
        out, err = capfd.readouterr()
        assert isinstance(e.value.code, int)
        return e.value.code, out + err

    before = signal.signal(signal.SIGALRM, _hang)
    yield go
    signal.signal(signal.SIGALRM, before)


def trials(run: Path, netdsl: Netdsl, count: int, seed: int) -> Counter[tuple[str, int]]:
    """How forged checkpoints end, by what was forged."""
    whole = {p.name: p.read_bytes() for p in run.iterdir()}
    parts, rng = CheckpointParts.of(whole["last.safetensors"]), random.Random(seed)
    assert all(old in parts.about["net"] for old, _ in NET_EDITS)
    ends: Counter[tuple[str, int]] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        for name, content in whole.items():
            (run / name).write_bytes(content)
        what, content = forge(parts, rng)
        (run / "last.safetensors").write_bytes(content)
        command = list(COMMANDS)[i % len(COMMANDS)]
        code, printed = netdsl(*COMMANDS[command])
        assert code in (0, 2), (what, command)
        assert "\x1b" not in printed, (what, command)
        assert len(printed) < 20_000, (what, command)
        ends[what.split(":")[0].split("=")[0], code] += 1
        for beside in (run.parent / "new", run.parent / "runs"):
            if beside.exists():
                os.rename(beside, run.parent / f"{beside.name}-{i}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    return ends


def test_forged_checkpoints(run: Path, netdsl: Netdsl) -> None:
    ends = trials(run, netdsl, 200, seed=1)
    codes = Counter(code for _, code in ends.elements())
    assert codes[2] > 100
    assert codes[0] > 6


@pytest.mark.slow
def test_two_thousand_forged_checkpoints(run: Path, netdsl: Netdsl) -> None:
    ends = trials(run, netdsl, 2000, seed=2)
    print(sorted(ends.items()))
