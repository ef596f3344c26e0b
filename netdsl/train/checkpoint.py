"""Checkpoints: states in a safetensors file that carries its own .net."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from netdsl import __version__
from netdsl.errors import fail
from netdsl.files import finite, write_atomically
from netdsl.language.parse import parse
from netdsl.language.program import Program, program
from netdsl.types import Array

KEY = "netdsl"
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """States by name, and all that is needed to use them."""

    states: Mapping[str, Array]
    net_text: str
    classes: tuple[str, ...]
    metrics: Mapping[str, Any]
    progress: Mapping[str, int]
    origin: str = "checkpoint"

    def program(self) -> Program:
        return program(parse(self.net_text, f"{self.origin} (.net inside)"))


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint. Raises NetError if it cannot; what was there then stays."""
    from safetensors.numpy import save as to_bytes

    about = {
        "version": __version__,
        "net": checkpoint.net_text,
        "classes": checkpoint.classes,
        "metrics": finite(dict(checkpoint.metrics)),
        "progress": checkpoint.progress,
    }
    # one key, since safetensors writes several in an order of its own each time
    metadata = {KEY: json.dumps(about, sort_keys=True)}
    write_atomically(path, to_bytes(dict(checkpoint.states), metadata))


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises NetError where the file is missing, damaged or not ours."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise fail(f"there is no checkpoint {path}", help="a run keeps its in best.safetensors")
    try:
        with safe_open(path, framework="numpy") as f:
            metadata = f.metadata() or {}
            states = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as e:
        raise fail(f"{path} is no checkpoint, or damaged: {e}") from None
    if KEY not in metadata:
        help = "weights carry their .net; `netdsl train` writes such files"
        raise fail(f"{path} holds weights, but not of netdsl", help=help)
    try:
        about = _checked(json.loads(metadata[KEY]), dict)
        return Checkpoint(
            states,
            _checked(about["net"], str),
            tuple(str(c) for c in _checked(about["classes"], list)),
            _checked(about["metrics"], dict),
            _checked(about["progress"], dict),
            str(path),
        )
    except (KeyError, ValueError, RecursionError) as e:
        raise fail(f"{path} is damaged: {e}") from None


def _checked(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{str(value)[:40]} is no {kind.__name__}")
    return value
