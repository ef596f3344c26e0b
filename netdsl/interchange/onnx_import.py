"""An ONNX model as a .net, and its weights beside it."""

from __future__ import annotations

from pathlib import Path

from netdsl.errors import fail
from netdsl.interchange.imported_net import ImportedNet, ImportOptions, ImportReport


def read_onnx(path: Path, is_rebuild: bool = False) -> ImportedNet:
    """The net of an ONNX file with its weights. Raises NetError if it is damaged or has operators
    that cannot be expressed."""
    raise fail(f"{path} cannot be read")


def import_onnx(
    source: Path, out: Path, weights: Path | None, options: ImportOptions
) -> ImportReport:
    """Writes the net of an ONNX file to `out` and its weights to `weights`."""
    raise fail(f"{source} cannot be read")
