"""Reads tensors from files of other programs, safetensors and .npz; pickles are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from netdsl.data.npz_archive import open_npz
from netdsl.errors import fail
from netdsl.file_io import open_regular_file
from netdsl.file_kinds import CHECKPOINT, TENSORS, check_kind
from netdsl.json_schema import SchemaError
from netdsl.pickles import PICKLE_SUFFIXES, pickle_error
from netdsl.safetensors_file import FLOAT_TYPES, read_header, read_tensor
from netdsl.types import Array

_NPZ_HELP = "np.savez(FILE, **arrays) writes one"
_ZIP = b"PK"


@dataclass(frozen=True)
class ForeignTensors:
    """The tensors of a file by name: those of floating-point numbers as float32, and the names of
    all others, such as PyTorch's counters. `metadata` is that of a safetensors file."""

    origin: str
    tensors: Mapping[str, Array]
    others: tuple[str, ...]
    metadata: Mapping[str, str]


def read_tensors(path: Path) -> ForeignTensors:
    """Reads a safetensors or .npz file, recognised by content. Raises NetError where it is missing,
    damaged or a pickle. No more memory is taken than the file, unpacked, has bytes, or twice as
    many where its numbers have 16 bits."""
    if not path.exists():
        raise fail(f"there is no file {path}")
    check_kind(path, TENSORS, CHECKPOINT)
    with open_regular_file(path) as f:
        is_archive = f.read(len(_ZIP)) == _ZIP
    return _read_npz(path) if is_archive else _read_safetensors(path)


def _read_safetensors(path: Path) -> ForeignTensors:
    try:
        with open_regular_file(path) as f:
            header = read_header(f, os.fstat(f.fileno()).st_size)
            floats = [e for e in header.entries if e.dtype in FLOAT_TYPES]
            others = tuple(e.name for e in header.entries if e.dtype not in FLOAT_TYPES)
            tensors = {e.name: read_tensor(f, e) for e in floats}
            return ForeignTensors(str(path), tensors, others, header.metadata)
    except SchemaError as e:
        raise fail(f"{path} is not a safetensors file, or is damaged: {e}") from None
    except (OSError, ValueError) as e:
        raise fail(f"cannot read {path}: {e}") from None


def _read_npz(path: Path) -> ForeignTensors:
    with open_npz(path, _NPZ_HELP) as archive:
        if any(name.endswith(PICKLE_SUFFIXES) for name in archive.files()):
            raise pickle_error(path)  # PyTorch's own files are archives too
        members = archive.members(archive.names())
        floats = {n: m for n, m in members.items() if m.dtype.kind == "f"}
        archive.check_size(floats)
        tensors = {n: archive.read(m).astype("float32", copy=False) for n, m in floats.items()}
        return ForeignTensors(str(path), tensors, tuple(members.keys() - floats.keys()), {})
