"""A step that does not fit: its largest tensors are named, and a batch that fits."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl import backends
from netdsl.backends.arrays import ArrayBackend
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import program
from netdsl.plan.fusion import FUSED
from netdsl.train.job import prepare
from netdsl.train.loop import Trainer
from netdsl.train.memory import predicted

NET = """net wide {
  input(8x8x1)
  stem: conv(64, 3x3, pad=same) -> relu
  head: conv(16, 3x3) -> relu -> fc(10)
}
data { source = digits, batch = 512 }
train { epochs = 1, deterministic = yes }
"""


@dataclass(frozen=True)
class Small(ArrayBackend):
    """A machine with so many bytes, all of which are free."""

    bytes: int = 0

    def free_bytes(self) -> int:
        return self.bytes

    def allocate(self, nbytes: int) -> Any:
        if nbytes > self.bytes:
            raise MemoryError
        return super().allocate(nbytes)


def small(size: int) -> Small:
    return Small("small", np, FUSED, size)


def text(batch: int = 512) -> str:
    return NET.replace("512", str(batch))


def needed(batch: int) -> int:
    return predicted(prepare(program(parse(text(batch))), None).step, FUSED).total


def test_what_does_not_fit_is_told_with_what_would() -> None:
    there = needed(512) // 3
    with pytest.raises(NetError) as e:
        Trainer(program(parse(text(), "wide.net")), None, small(there))
    (d,) = e.value.diagnostics
    assert re.match(r"a step takes [\d.]+ MB of memory, and there are [\d.]+ MB", d.message)
    assert "stem" in d.notes[0]
    assert "512x8x8x64 float32, 8.4 MB, wide.net:3" in d.notes[0]
    assert len(d.notes) == 6
    assert d.help
    (fits,) = map(int, re.findall(r"data.batch=(\d+)", d.help))
    assert needed(fits) <= there < needed(fits + fits // 4)
    trainer = Trainer(program(parse(text(fits))), None, small(there))
    assert trainer.stepper.step.plan.arena <= there


def test_where_no_batch_fits_none_is_named() -> None:
    with pytest.raises(NetError) as e:
        Trainer(program(parse(text())), None, small(1000))
    assert "data.batch" not in e.value.render()
    assert "recompute" in e.value.render()


def test_it_ends_the_command_with_a_sentence(
    netdsl: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backends, "open_backend", lambda device: small(2_000_000))
    (tmp_path / "wide.net").write_text(text())
    code, _, err = netdsl("train", "wide.net")
    assert code == 2
    assert "of memory, and there are 2.0 MB" in err
    monkeypatch.undo()
    code, out, _ = netdsl("train", str(tmp_path / "wide.net"), "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["main"]["memory"]["step"] > 2_000_000
