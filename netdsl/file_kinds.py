"""What a file is, by its content and its suffix, and which command takes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from netdsl.errors import fail
from netdsl.file_io import open_regular_file
from netdsl.json_schema import SchemaError
from netdsl.pickles import HEAD_SIZE, is_pickle, pickle_error
from netdsl.safetensors_file import read_header

METADATA_KEY = "netdsl"
"""What the metadata of a safetensors file have that is a checkpoint."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file: what one is called, and what to do with one, where `{}` is its name."""

    name: str
    help: str


NET = FileKind(
    "a .net file",
    "`netdsl train {}` trains its weights, `netdsl import MODEL --into {} -o x.safetensors` "
    "imports them from another model",
)
CHECKPOINT = FileKind(
    "a checkpoint",
    "`netdsl predict`, `eval`, `summary`, `draw`, `filters` and `export` read it, and a recipe can "
    'start from it with `init = weights("{}")`',
)
TENSORS = FileKind(
    "a file of weights without a net",
    "`netdsl import {} --into FILE.net:NET -o x.safetensors` fits them to a net",
)
ONNX = FileKind("an ONNX model", "`netdsl import {} -o x.net --weights x.safetensors` converts it")
KERAS = FileKind(
    "a model of Keras or TensorFlow",
    'export it to ONNX first: `model.export("x.onnx", format="onnx")` in Keras 3, or tf2onnx',
)
ARRAY = FileKind("a single array", "`np.savez(FILE, **arrays)` saves arrays by name")
RUN = FileKind(
    "the folder of a run",
    "`netdsl train --resume {}`, `eval`, `report`, `draw`, `filters` and `export` take it",
)
FOLDER = FileKind("a folder", "name a file in it")
PICTURE = FileKind("a picture", "`netdsl predict WEIGHTS {}` prints its most likely classes")
PICKLE = FileKind("a pickle", "")
_MAGIC = {
    b"\x89HDF": KERAS,
    b"\x93NUMPY": ARRAY,
    b"\x89PNG": PICTURE,
    b"\xff\xd8\xff": PICTURE,
    b"GIF8": PICTURE,
}
_SUFFIXES = {
    ".net": NET,
    ".onnx": ONNX,
    ".npz": TENSORS,
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".tflite", ".pb"), KERAS),
}
_HEAD_SIZE = 512
_ONNX_FIELDS = b"\x12\x1a\x22\x28\x32\x3a\x42\x72"
"""What may follow the version of its format in a model."""


def recognise(path: Path) -> FileKind | None:
    """The kind of a file or folder; None if it is not there or none of those here. Raises NetError
    if it cannot be read."""
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # a folder on the way that may not be searched
        return None
    if is_folder:
        if (path / "saved_model.pb").is_file():
            return KERAS
        return RUN if (path / "best.safetensors").is_file() else FOLDER
    if not is_file:
        return None
    with open_regular_file(path) as f:
        head = f.read(_HEAD_SIZE)
        if head[8:9] == b"{":
            f.seek(0)
            try:
                metadata = read_header(f, os.fstat(f.fileno()).st_size).metadata
            except (SchemaError, OSError, RecursionError):
                return None
            return CHECKPOINT if METADATA_KEY in metadata else TENSORS
    first_member = head[30:][: int.from_bytes(head[26:28], "little")] if head[:2] == b"PK" else b""
    if is_pickle(path, head[:HEAD_SIZE]) or first_member.endswith(b".pkl"):
        return PICKLE
    if first_member in (b"metadata.json", b"config.json"):
        return KERAS
    if first_member.endswith(b".npy"):
        return TENSORS
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if found is None and head[:1] == b"\x08" and head[2:3] and head[2] in _ONNX_FIELDS:
        return ONNX
    return found or _SUFFIXES.get(path.suffix.lower())


def check_kind(path: Path, *wanted: FileKind) -> None:
    """Raises NetError if a file is of another kind than those wanted, with what takes it. What is
    of no known kind, or not there, is left to the reader."""
    kind = recognise(path)
    if kind is None or kind in wanted:
        return
    if kind is PICKLE:
        raise pickle_error(path)
    names = " or ".join(x.name for x in wanted)
    raise fail(f"{path} is {kind.name}, not {names}", help=kind.help.replace("{}", str(path)))
