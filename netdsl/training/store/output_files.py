"""What a command must not overwrite: what it reads, and what netdsl's exports have not written."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path

from netdsl.errors import NetError, fail
from netdsl.file_io import open_regular_file
from netdsl.file_kinds import METADATA_KEY
from netdsl.json_schema import SchemaError, read_json
from netdsl.language.program import SUFFIX as NET_SUFFIX
from netdsl.limits import MAX_FILE_BYTES
from netdsl.safetensors_file import read_header
from netdsl.training.store.checkpoint import SUFFIX
from netdsl.training.store.run_directory import RUN_FILES

_IMPORT_MARK = re.compile(rb"# Imported from [^\n]*\. Checksum of the rest: ([0-9a-f]{16})\n")
"""The first line of a .net that an import wrote."""
PRODUCER = {"producer": "netdsl"}
"""What the metadata of weights say that were written for another program."""
_MODEL_MARK = b"\x12\x06netdsl"
"""What follows the version of the format in an exported model: its producer."""


def check_outputs(
    outputs: Sequence[Path], inputs: Iterable[Path] = (), *, is_save: bool = False
) -> None:
    """Raises NetError if an output is a file that the command reads, another output, or a file that
    was there and that no import or export wrote: a run's, one of another program, a net written by
    hand. What a net's own `save` wrote may have been trained, and only `save` writes over it. Also
    raises NetError if its folder does not exist: a misspelt path makes none. To be called before
    anything is written."""
    for out, other in combinations(outputs, 2):
        if _is_same(out, other):
            raise fail(f"{out} is given for two outputs", help="give each output its own file")
    given = tuple(inputs)
    for out in outputs:
        check_name(out)
        _check_folder(out)
        if any(_is_same(out, path) for path in given):
            raise fail(f"{out} is a file that this command reads", help=_OTHER_NAME)
        if out.name in RUN_FILES and (out.parent / RUN_FILES[0]).exists():
            raise fail(f"{out} belongs to the run in {out.parent}", help=_OTHER_NAME)
        if os.path.exists(out) and out.suffix != NET_SUFFIX and not _is_written_here(out, is_save):
            raise fail(_PRESENT.format(out), help=_OTHER_NAME)


def check_suffix(out: Path, suffix: str, help: str) -> None:
    """Raises NetError if a file to be written has another suffix."""
    check_name(out)
    if out.suffix != suffix:
        in_case = " in lower case" * (out.suffix.lower() == suffix)
        raise fail(f"{out} does not end in `{suffix}`{in_case}", help=help)


def check_format(out: Path, suffixes: Sequence[str], help: str | None = None) -> None:
    """Raises NetError if the suffix of a file to be written, in any case, is none of these."""
    if out.suffix.lower() not in suffixes:
        *others, last = suffixes
        listed = f"{', '.join(others)} or {last}" if others else last
        raise fail(f"{out} does not end in {listed}", help=help)


def check_name(out: Path) -> None:
    """Raises NetError if a path has no name of a file, or only a suffix as its name."""
    if not out.name:
        raise fail("the output file has no name", help="give it a name; nothing was written")
    if out.name.startswith(".") and not out.suffix:
        raise fail(f"{out} is a suffix without a name", help=f"write it as in `x{out.name}`")


def _check_folder(out: Path) -> None:
    folder = os.path.dirname(os.path.realpath(out))
    if not os.path.isdir(folder):
        message = f"{out} cannot be written: there is no folder {folder}"
        raise fail(message, help="create the folder first; nothing was written")


def mark_import(origin: str, text: str) -> str:
    """The text of a .net with a first line that says where it comes from, a name on one line, and
    what shows later whether it has been edited."""
    return f"# Imported from {origin}. Checksum of the rest: {_checksum(text.encode())}\n{text}"


def check_net_output(out: Path, content: bytes) -> None:
    """Raises NetError if a .net is there that no import wrote, or that was edited since, unless it
    is the same."""
    if not out.exists():
        return
    with open_regular_file(out) as f:
        present = f.read(MAX_FILE_BYTES + 1)
    if not present.strip() or present == content:
        return
    mark = _IMPORT_MARK.match(present)
    if mark is None:
        message = f"{out} exists, and its content is not what an import wrote"
        raise fail(message, help=_OTHER_NAME)
    if mark[1].decode() != _checksum(present[mark.end() :]):
        raise fail(f"{out} has been edited since it was imported", help=_OTHER_NAME)


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


_OTHER_NAME = "give another name; nothing was written"
_PRESENT = "{} exists, and was not written by an import or export"


def _is_same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return os.path.realpath(a) == os.path.realpath(b)


def _is_written_here(path: Path, is_save: bool) -> bool:
    """Whether an import or export has written a file, or for a `save` also another `save`; an empty
    one counts as such, and every file that is neither a model nor weights."""
    with open_regular_file(path) as f:
        size = os.fstat(f.fileno()).st_size
        if not size or path.suffix.lower() not in (SUFFIX, ".onnx"):
            return True
        if path.suffix.lower() == ".onnx":
            return f.read(2 + len(_MODEL_MARK))[2:] == _MODEL_MARK
        about: object = None
        with suppress(NetError, SchemaError, OSError, TypeError, KeyError):
            metadata = read_header(f, size).metadata
            if PRODUCER.items() <= metadata.items():
                return True
            about = read_json(read_json(metadata[METADATA_KEY])["about"])
    if not isinstance(about, dict) or about.get("progress"):  # that of a run
        return False
    return is_save or not about.get("metrics")
