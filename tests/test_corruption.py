"""A thousand damaged files: each is told in a sentence or read rightly; no traceback, no hang."""

from __future__ import annotations

import gzip
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netdsl.backends import open_backend
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.run.trainer import Trainer
from netdsl.training.store import checkpoint
from netdsl.training.store.resume import load_continuation
from tests.test_data import idx, write_mnist

NET = """net a { input(8x8x1); fc(10) }
data { source = digits, batch = 200 }
train { epochs = 1, optimizer = adam }
"""
REFERENCE = open_backend("reference")
RNG = np.random.default_rng(0)


def run(out: Path) -> bytes:
    trainer = Trainer(build_program(parse(NET)), None, REFERENCE)
    trainer.run(out, lambda p: None, lambda m: None)
    return (out / "last.safetensors").read_bytes()


def go_on(folder: Path) -> Any:
    found = load_continuation(folder)
    return Trainer(found.program, None, REFERENCE, saved=found.saved).state.snapshot()


def idx_files() -> dict[str, bytes]:
    images = RNG.integers(0, 256, (9, 28, 28)).astype(np.uint8).tobytes()
    return {"images": idx((9, 28, 28), images), "labels": idx((9,), bytes(range(9)))}


def mnist(folder: Path, content: bytes) -> Any:
    write_mnist(folder, content, idx_files()["labels"])
    dataset = SOURCES["mnist"].load(folder, path=None)
    assert dataset.read_test is not None
    return dataset.read_test()


def zipped(folder: Path, content: bytes) -> Any:
    write_mnist(folder, idx_files()["images"], idx_files()["labels"])
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").unlink()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(content)
    return SOURCES["mnist"].load(folder, path=None)


def cifar(folder: Path, content: bytes) -> Any:
    (folder / "data_batch_1.bin").write_bytes(content)
    return SOURCES["cifar10"].load(folder, path=None)


def arrays(folder: Path, content: bytes) -> Any:
    (folder / "x.npz").write_bytes(content)
    return SOURCES["arrays"].load(folder, path="x.npz")


def npz(folder: Path, save: Callable[..., None]) -> bytes:
    images = RNG.integers(0, 256, (5, 6, 7)).astype(np.uint8)
    save(folder / "whole.npz", images=images, labels=np.arange(5))
    return (folder / "whole.npz").read_bytes()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits turned over, a part cut off, a stretch of noise, or a stretch left out."""
    at = rng.randrange(len(content))
    if rng.random() < 0.5:  # where the headers lie
        at = rng.randrange(min(len(content), 400))
    match rng.randrange(4):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:]
        case 2:
            return content[:at] + content[at + rng.randrange(1, 40) :]
        case _:
            found = bytearray(content)
            for _ in range(rng.choice((1, 1, 8))):
                found[rng.randrange(len(found)) if rng.random() < 0.3 else at] ^= (
                    1 << rng.randrange(8)
                )
            return bytes(found)


def trials(tmp_path: Path, count: int, seed: int) -> dict[str, int]:
    """How many damaged files of each sort were refused."""
    (tmp_path / "run").mkdir()
    last = run(tmp_path / "run")
    states = checkpoint.load(tmp_path / "run" / "last.safetensors").states
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def resumed(folder: Path, content: bytes) -> None:
        (folder / "last.safetensors").write_bytes(content)
        for name, value in go_on(folder).items():
            np.testing.assert_array_equal(value, states[name])

    record = b"".join(bytes([i]) + bytes(3072) for i in range(4))
    sorts: dict[str, tuple[bytes, Callable[[Path, bytes], Any]]] = {
        "checkpoint": (last, resumed),
        "idx": (idx_files()["images"], mnist),
        "idx.gz": (gzip.compress(idx_files()["images"]), zipped),
        "cifar10": (record, cifar),
        "npz": (npz(tmp_path, np.savez), arrays),
        "npz compressed": (npz(tmp_path, np.savez_compressed), arrays),
    }
    rng, refused = random.Random(seed), dict.fromkeys(sorts, 0)
    for i in range(count):
        sort = list(sorts)[i % len(sorts)]
        content, read = sorts[sort]
        folder = tmp_path / str(i)
        folder.mkdir()
        started, told = time.perf_counter(), None
        try:
            read(folder, damaged(content, rng))
        except NetError as e:
            refused[sort] += 1
            told = str(e)
        assert told is None or str(folder) in told
        assert time.perf_counter() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    return refused


def test_damaged_files_are_told(tmp_path: Path) -> None:
    refused = trials(tmp_path, 120, seed=1)
    assert refused["checkpoint"] >= 19
    assert min(refused.values()) > 0


@pytest.mark.slow
def test_a_thousand_damaged_files_are_told(tmp_path: Path) -> None:
    refused = trials(tmp_path, 1000, seed=2)
    print(refused)
    assert sum(refused.values()) > 500
