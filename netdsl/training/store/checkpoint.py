"""Checkpoints: states in a safetensors file that carries its own .net and its own checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from netdsl import __version__
from netdsl.errors import fail
from netdsl.file_io import replace_non_finite, write_atomically
from netdsl.file_kinds import CHECKPOINT, METADATA_KEY, check_kind
from netdsl.json_schema import (
    JsonArray,
    JsonInteger,
    JsonNumber,
    JsonObject,
    JsonString,
    JsonValue,
    Nullable,
    Schema,
    SchemaError,
    read_json,
)
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, reject_read
from netdsl.language.syntax import File
from netdsl.language.upgrade import FORMAT, upgrade
from netdsl.limits import MAX_CLASS_NAME, MAX_EPOCHS, MAX_FILE_CHARACTERS
from netdsl.safetensors_file import (
    MAX_HEADER,
    TensorEntry,
    as_bytes,
    encode_header,
    read_header,
    read_tensor,
)
from netdsl.text_escaping import escape_line
from netdsl.training.metrics.table import METRIC_NAMES
from netdsl.types import Array, dims

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
        header = encode_header(metadata, [(name, states[name]) for name in names])
    except ValueError as e:
        raise fail(f"{path} could not be read back, so it is not written: {e}") from None
    # piece by piece: weights are not copied once more to be written
    write_atomically(path, header, *(as_bytes(states[name]) for name in names))


def _checksum(text: str, states: Mapping[str, Array]) -> str:
    """The checksum of all that a checkpoint says."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(states):
        array = states[name]
        digest.update(f"{name} {array.dtype} {dims(array.shape)}".encode())
        digest.update(as_bytes(array))
    return digest.hexdigest()


def load_best(path: Path) -> Checkpoint:
    """Reads a checkpoint, or from the directory of a run its best one. Raises NetError as `load`
    does."""
    best = path / f"best{SUFFIX}"
    return load(best if best.is_file() else path)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises NetError where the file is missing, damaged or not ours. Every
    size is held against the file's own before anything of that size is made."""
    if not path.is_file():
        place = f"in the folder {path}" if path.is_dir() else str(path)
        raise fail(f"there is no checkpoint {place}", help=suggest_runs([path]))
    check_kind(path, CHECKPOINT)
    try:
        with path.open("rb") as f:
            header = read_header(f, os.fstat(f.fileno()).st_size)
            states = {e.name: _read_state(f, e) for e in header.entries}
        return _decode(header.metadata.get(METADATA_KEY, ""), states, str(path))
    except ValueError as e:
        raise fail(f"{path} is not a checkpoint, or is damaged: {e}", help=_RECOVERY) from None
    except OSError as e:
        raise fail(f"cannot read {path}: {e.strerror or e}") from None


def suggest_runs(places: Sequence[Path]) -> str:
    """Where checkpoints are, for places that are none: one with a similar name nearby, or the runs
    in the places."""
    missing = [place for place in places if not place.is_dir()]
    for place in missing:
        beside = {_last_names(p): p for p in _find_checkpoints_beside(place)}
        if near := get_close_matches(_last_names(place), beside, n=1, cutoff=_SIMILAR):
            return f"did you mean `{beside[near[0]]}`?"
    found = (p.parent for place in places for p in place.glob(f"*/best{SUFFIX}"))
    runs = sorted(map(str, islice(found, _MAX_RUNS)))
    return (
        f"there are {', '.join(runs)}"
        if runs
        else f"the best weights of a run are in its best{SUFFIX}"
    )


def _find_checkpoints_beside(path: Path) -> Iterator[Path]:
    """The checkpoints in the folder of a path, and the runs there and in the folders next to it."""
    folder = path.parent
    files = folder.glob(f"*{SUFFIX}")
    runs = (p.parent for p in folder.glob(f"*/best{SUFFIX}"))
    others = (p.parent for p in folder.parent.glob(f"*/*/best{SUFFIX}"))
    return islice(chain(files, runs, others), _MAX_NAMES)


def _last_names(path: Path) -> str:
    """The names of a checkpoint and its folder, without those above, which are always alike."""
    return "/".join(path.parts[-2:])


_SIMILAR = 0.8
"""Similarity, as difflib counts it, of the names of a checkpoint to their misspelling."""
_MAX_NAMES = 100
_MAX_RUNS = 8
_RECOVERY = "look for another checkpoint of the run: last, best, or one from `keep_every`"


def _read_state(f: BinaryIO, entry: TensorEntry) -> Array:
    """One of the weights. Raises SchemaError where it is no array of float32."""
    if entry.dtype != "F32":
        raise SchemaError(f"`{entry.name}` is of type {entry.dtype}, and weights are float32 (F32)")
    return read_tensor(f, entry)


def _decode(metadata: str, states: Mapping[str, Array], origin: str) -> Checkpoint:
    outer = read_json(metadata)
    _METADATA_SCHEMA.check(outer, "metadata")
    text = outer["about"]
    if outer["sha256"] != _checksum(text, states):
        raise SchemaError("its checksum does not match its content")
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
        version = escape_line(str(about.get("version", "a later version")))[:40]
        raise fail(
            f"{origin} has checkpoint format {number:,}; this netdsl reads formats up to {FORMAT}",
            help=f"install a newer netdsl: {version} wrote it",
        )


_METADATA_SCHEMA = JsonObject({"about": JsonString(MAX_HEADER), "sha256": JsonString(64)})
_EPOCHS, _COUNT, _STEPS = JsonInteger(0, MAX_EPOCHS), JsonInteger(0, 2**40), JsonInteger(0, 2**30)
_NUMBER, _SHARE = Nullable(JsonNumber()), Nullable(JsonNumber(0, 1.001))  # a mean may be rounded
_METRICS: dict[str, Schema] = {
    name: _SHARE if known.metric.is_share else _NUMBER for name, known in METRIC_NAMES.items()
}
METRICS_SCHEMA = JsonObject(
    {},
    {"epoch": _EPOCHS, "step": _STEPS, "lr": _NUMBER, "skipped": _COUNT, **_METRICS},
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
        "classes": JsonArray(JsonString(MAX_CLASS_NAME, allow_surrogates=True), 100_000),
        "metrics": METRICS_SCHEMA,
        "progress": _PROGRESS_SCHEMA,
    },
    {"version": JsonString(100), "format": JsonInteger(1, FORMAT)},
)
