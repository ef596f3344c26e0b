"""The class names of imported weights: from a file with one on each line, else their numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from netdsl.errors import fail
from netdsl.file_io import read_regular_file

MAX_CLASSES = 100_000
_MAX_FILE_BYTES, _MAX_NAME = 10 * 2**20, 200


def read_class_names(path: Path | None, count: int) -> tuple[str, ...]:
    """The names of `count` classes in the order of the scores: the lines of a file, or without one
    the numbers from 0, which ImageNet's classes are known by. Names that occur twice, as ImageNet's
    cranes do, get a number. Raises NetError if there are more or fewer lines."""
    if count > MAX_CLASSES:
        raise fail(f"the net gives {count:,} scores; at most {MAX_CLASSES:,} classes have names")
    if path is None:
        return tuple(map(str, range(count)))
    try:
        text = read_regular_file(path, _MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fail(f"{path} is not UTF-8 text", help="it holds a class name on each line") from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    if len(names) != count:
        raise fail(
            f"{path} has {len(names):,} lines, but the net gives {count:,} scores",
            help="a class name on each line, in the order of the scores",
        )
    for i, name in enumerate(names):
        if not 0 < len(name) <= _MAX_NAME:
            raise fail(f"line {i + 1:,} of {path} has {len(name):,} characters, which is no name")
    return _distinct(names)


def _distinct(names: list[str]) -> tuple[str, ...]:
    taken, seen = set(names), Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        new = name
        while seen[name] > 1 and new in taken:
            new = f"{name} ({seen[name]})"
            seen[name] += new in taken
        taken.add(new)
        found.append(new)
    return tuple(found)
