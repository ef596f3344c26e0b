"""Checkpoints: states in a safetensors file that carries its own .net and its own checksum."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from netdsl import __version__
from netdsl.errors import fail, internal_error
from netdsl.file_io import replace_non_finite, write_atomically
from netdsl.json_schema import (
    JsonArray,
    JsonInteger,
    JsonNumber,
    JsonObject,
    JsonString,
    JsonValue,
    Nullable,
    SchemaError,
    read_json,
)
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, reject_read
from netdsl.language.syntax import File
from netdsl.language.upgrade import FORMAT, upgrade
from netdsl.limits import MAX_EPOCHS, MAX_FILE_CHARACTERS
from netdsl.text_escaping import escape_line
from netdsl.types import Array, dims

METADATA_KEY = "netdsl"
SUFFIX = ".safetensors"
EMA_SUFFIX = ".ema"


@dataclass(frozen=True)
class Checkpoint:
    """States by name, and all that is needed to use them."""

    states: Mapping[str, Array]
    net_text: str
    classes: tuple[str, ...]
    metrics: Mapping[str, Any]
    progress: Mapping[str, Any]
    origin: str = "checkpoint"
    format: int = FORMAT

    def program(self) -> Program:
        """Raises NetError for all that is wrong in the text, which uses no other file: it came with
        weights, perhaps from a stranger."""
        return build_program(self.syntax_tree(), reject_read)

    def syntax_tree(self) -> File:
        return upgrade(parse(self.net_text, f"{self.origin} (.net inside)"), self.format)


def inference_states(states: Mapping[str, Array]) -> dict[str, Array]:
    """The states that a net is judged and used with: of weights that are averaged, the average."""
    plain = {k: v for k, v in states.items() if not k.endswith(EMA_SUFFIX)}
    return plain | {
        k.removesuffix(EMA_SUFFIX): v for k, v in states.items() if k.endswith(EMA_SUFFIX)
    }


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint. Raises NetError if it cannot, or where `load` would refuse it; what was
    there then stays."""
    about = {
        "version": __version__,
        "format": checkpoint.format,
        "net": checkpoint.net_text,
        "classes": checkpoint.classes,
        "metrics": replace_non_finite(dict(checkpoint.metrics)),
        "progress": checkpoint.progress,
    }
    states = {name: np.asarray(v, order="C") for name, v in checkpoint.states.items()}
    names = sorted(states)
    try:
        _CONTENT_SCHEMA.check(about, "metadata")
        text = json.dumps(about, sort_keys=True, allow_nan=False)
        metadata = {METADATA_KEY: json.dumps({"about": text, "sha256": _checksum(text, states)})}
        header = _encode_header(metadata, [(name, states[name]) for name in names])
        _read_header(BytesIO(header), len(header) + sum(a.nbytes for a in states.values()))
    except ValueError as e:
        raise fail(f"{path} could not be read back, so it is not written: {e}") from None
    # piece by piece: weights are not copied once more to be written
    write_atomically(path, header, *(_as_bytes(states[name]) for name in names))


def _encode_header(metadata: Mapping[str, str], states: Sequence[tuple[str, Array]]) -> bytes:
    """What a safetensors file begins with, whose arrays follow in this order."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in states:
        if array.dtype != np.float32:
            raise internal_error(f"{name} is {array.dtype}, and checkpoints hold float32")
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    return len(text).to_bytes(8, "little") + text


def _as_bytes(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _checksum(text: str, states: Mapping[str, Array]) -> str:
    """The checksum of all that a checkpoint says."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(states):
        array = states[name]
        digest.update(f"{name} {array.dtype} {dims(array.shape)}".encode())
        digest.update(_as_bytes(array))
    return digest.hexdigest()


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises NetError where the file is missing, damaged or not ours. Every
    size is held against the file's own before anything of that size is made."""
    if not path.is_file():
        raise fail(f"there is no checkpoint {path}", help="a run keeps its in best.safetensors")
    try:
        with path.open("rb") as f:
            header, start = _read_header(f, os.fstat(f.fileno()).st_size)
            metadata = header.pop("__metadata__", {})
            if METADATA_KEY not in metadata:
                help = "weights carry their .net; `netdsl train` writes such files"
                raise fail(f"{path} holds weights, but not of netdsl", help=help)
            states = {name: _read_tensor(f, start, name, entry) for name, entry in header.items()}
        return _decode(metadata[METADATA_KEY], states, str(path))
    except ValueError as e:
        raise fail(f"{path} is no checkpoint, or damaged: {e}", help=_RECOVERY) from None
    except OSError as e:
        raise fail(f"cannot read {path}: {e.strerror or e}") from None


_RECOVERY = "is there another of its run: last, best, or one of `keep_every`?"


def _read_header(f: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """What a file of `size` bytes says that it holds, by name, and where its data begin. Raises
    Invalid where that is not so."""
    length = int.from_bytes(f.read(8), "little")
    if size < 8 or length > size - 8:
        raise SchemaError("it ends within its header")
    if length > MAX_HEADER:
        raise SchemaError(f"its header has {length:,} bytes, over {MAX_HEADER:,}")
    header = read_json(f.read(length))
    _HEADER_SCHEMA.check(header, "header")
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    end = 0
    for begin, after in sorted(tuple(entry["data_offsets"]) for entry in tensors):
        if begin != end or after < begin:
            raise SchemaError("its weights do not lie one after the other")
        end = after
    if end != size - 8 - length:
        raise SchemaError(
            f"it has {size - 8 - length:,} bytes of weights, and its header lists {end:,}"
        )
    return header, 8 + length


def _read_tensor(f: BinaryIO, start: int, name: str, entry: Mapping[str, Any]) -> Array:
    """One of the weights. Raises Invalid where it is no array of float32."""
    if entry["dtype"] != "F32":
        raise SchemaError(f"`{name}` is of type {entry['dtype']}, and weights are float32 (F32)")
    (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
    if end - begin != 4 * math.prod(shape):
        raise SchemaError(
            f"`{name}` has {end - begin:,} bytes, which are not {dims(shape)} float32"
        )
    f.seek(start + begin)
    return np.fromfile(f, np.dtype("<f4"), math.prod(shape)).reshape(shape)


def _decode(metadata: str, states: Mapping[str, Array], origin: str) -> Checkpoint:
    outer = read_json(metadata)
    _METADATA_SCHEMA.check(outer, "metadata")
    text = outer["about"]
    if outer["sha256"] != _checksum(text, states):
        raise SchemaError("its checksum is not that of its content")
    return from_content(read_json(text), states, origin)


def from_content(about: Any, states: Mapping[str, Array], origin: str) -> Checkpoint:
    """The checkpoint of states and of what is said about them, as read from JSON. Raises
    SchemaError where that is not what a checkpoint says, and NetError if a later version wrote
    it."""
    _check_format(about, origin)
    _CONTENT_SCHEMA.check(about, "metadata")
    classes = tuple(about["classes"])
    if len(set(classes)) < len(classes):
        raise SchemaError("two of its classes have the same name")
    net, metrics, progress = about["net"], about["metrics"], about["progress"]
    return Checkpoint(states, net, classes, metrics, progress, origin, about.get("format", 1))


def _check_format(about: Any, origin: str) -> None:
    """Raises NetError if a later version wrote the checkpoint in a format of its own."""
    number = about.get("format") if isinstance(about, dict) else None
    if isinstance(number, int) and number > FORMAT:
        version = escape_line(str(about.get("version", "of a later version")))[:40]
        raise fail(
            f"{origin} has checkpoint format {number:,}; this netdsl reads formats up to {FORMAT}",
            help=f"install a newer netdsl: {version} wrote it",
        )


MAX_HEADER = 64 * 2**20
_HEADER_SCHEMA = JsonObject(
    {},
    {"__metadata__": JsonObject(additional=JsonString(MAX_HEADER, allow_surrogates=True))},
    additional=JsonObject(
        {
            "dtype": JsonString(20),
            "shape": JsonArray(JsonInteger(), 16),
            "data_offsets": JsonArray(JsonInteger(0, 2**60), 2, min_length=2),
        }
    ),
    max_entries=100_000,
)
"""The header of a safetensors file: https://github.com/huggingface/safetensors#format"""
_METADATA_SCHEMA = JsonObject({"about": JsonString(MAX_HEADER), "sha256": JsonString(64)})
_EPOCHS, _COUNT, _STEPS = JsonInteger(0, MAX_EPOCHS), JsonInteger(0, 2**40), JsonInteger(0, 2**30)
_NUMBER, _SHARE = Nullable(JsonNumber()), Nullable(JsonNumber(0, 1.001))  # a mean may be rounded
METRICS_SCHEMA = JsonObject(
    {},
    {
        "epoch": _EPOCHS,
        "step": _STEPS,
        "train_loss": _NUMBER,
        "train_accuracy": _SHARE,
        "val_loss": _NUMBER,
        "lr": _NUMBER,
        "val_accuracy": _SHARE,
        "skipped": _COUNT,
    },
    additional=JsonValue(2),
)
"""What an epoch has measured."""
_PROGRESS_SCHEMA = JsonObject(
    {},
    {
        "epoch": _EPOCHS,
        "seen": _COUNT,
        "step": _STEPS,
        "update": _STEPS,
        "loss": JsonNumber(),
        "hits": JsonNumber(0),
        "batches": _STEPS,
        "lines": _COUNT,
        "history": JsonArray(METRICS_SCHEMA, MAX_EPOCHS),
        "changes": JsonArray(JsonString(100_000, is_one_line=True), 10_000),
        "data": JsonString(1000),
        "pipeline": JsonObject(additional=JsonInteger(1, 1_000_000)),
    },
)
"""Where a run stood. What only evaluates weights needs none of it, so that all is optional here."""
_CONTENT_SCHEMA = JsonObject(
    {
        "net": JsonString(MAX_FILE_CHARACTERS),
        "classes": JsonArray(JsonString(1000, allow_surrogates=True), 100_000),
        "metrics": METRICS_SCHEMA,
        "progress": _PROGRESS_SCHEMA,
    },
    {"version": JsonString(100), "format": JsonInteger(1, FORMAT)},
)
