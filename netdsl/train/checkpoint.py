"""Checkpoints: states in a safetensors file that carries its own .net and its own checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from netdsl import __version__
from netdsl.errors import fail
from netdsl.files import finite, write_atomically
from netdsl.language.parse import parse
from netdsl.language.program import Program, program
from netdsl.types import Array, dims

KEY = "netdsl"
SUFFIX = ".safetensors"
AVERAGE = ".ema"
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """States by name, and all that is needed to use them."""

    states: Mapping[str, Array]
    net_text: str
    classes: tuple[str, ...]
    metrics: Mapping[str, Any]
    progress: Mapping[str, Any]
    origin: str = "checkpoint"

    def program(self) -> Program:
        return program(parse(self.net_text, f"{self.origin} (.net inside)"))


def usable(states: Mapping[str, Array]) -> dict[str, Array]:
    """The states that a net is judged and used with: of weights that are averaged, the average."""
    plain = {k: v for k, v in states.items() if not k.endswith(AVERAGE)}
    return plain | {k.removesuffix(AVERAGE): v for k, v in states.items() if k.endswith(AVERAGE)}


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
    states = {name: np.asarray(v, order="C") for name, v in checkpoint.states.items()}
    text = json.dumps(about, sort_keys=True)
    # one key, since safetensors writes several in an order of its own each time
    metadata = {KEY: json.dumps({"about": text, "sha256": _digest(text, states)})}
    write_atomically(path, to_bytes(states, metadata))


def _digest(text: str, states: Mapping[str, Array]) -> str:
    """The checksum of all that a checkpoint says."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(states):
        array = states[name]
        digest.update(f"{name} {array.dtype} {dims(array.shape)}".encode())
        digest.update(memoryview(array.reshape(-1).view(np.uint8)))
    return digest.hexdigest()


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises NetError where the file is missing, damaged or not ours."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise fail(f"there is no checkpoint {path}", help="a run keeps its in best.safetensors")
    try:
        with safe_open(path, framework="numpy") as f:
            metadata = f.metadata() or {}
            if KEY not in metadata:
                help = "weights carry their .net; `netdsl train` writes such files"
                raise fail(f"{path} holds weights, but not of netdsl", help=help)
            states = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as e:
        raise fail(f"{path} is no checkpoint, or damaged: {e}", help=_OTHERS) from None
    try:
        return _read(metadata[KEY], states, str(path))
    except (KeyError, ValueError, RecursionError) as e:
        raise fail(f"{path} is damaged: {e}", help=_OTHERS) from None


_OTHERS = "is there another of its run: last, best, or one of `keep_every`?"


def _read(metadata: str, states: Mapping[str, Array], origin: str) -> Checkpoint:
    outer = _checked(json.loads(metadata), dict)
    if "sha256" not in outer:
        raise ValueError("it has no checksum")
    text = _checked(outer["about"], str)
    if outer["sha256"] != _digest(text, states):
        raise ValueError("its checksum is not that of its content")
    about = _checked(json.loads(text), dict)
    return Checkpoint(
        states,
        _checked(about["net"], str),
        tuple(str(c) for c in _checked(about["classes"], list)),
        _checked(about["metrics"], dict),
        _checked(about["progress"], dict),
        origin,
    )


def _checked(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{str(value)[:40]} is no {kind.__name__}")
    return value
