"""The class names of imported weights: from a file with one on each line, else their numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from netdsl.errors import fail
from netdsl.file_io import read_regular_file
from netdsl.text_escaping import escape_line

MAX_CLASSES = 100_000
_MAX_FILE_BYTES, _MAX_NAME, _MAX_SHOWN = 10 * 2**20, 200, 4


@dataclass(frozen=True)
class ClassNames:
    """The names of classes in the order of the scores; `note` says which of them were renamed."""

    names: tuple[str, ...]
    note: str = ""


def read_class_names(path: Path | None, count: int) -> ClassNames:
    """The names of `count` classes: the lines of a file, or without one the numbers from 0, which
    ImageNet's classes are known by. Names that occur twice, as ImageNet's cranes do, get a number.
    Raises NetError if there are more or fewer lines."""
    if count > MAX_CLASSES:
        raise fail(f"the net gives {count:,} scores; at most {MAX_CLASSES:,} classes have names")
    if path is None:
        return ClassNames(tuple(map(str, range(count))))
    try:
        text = read_regular_file(path, _MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fail(f"{path} is not UTF-8 text", help="write one class name per line") from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    if len(names) != count:
        raise fail(
            f"{path} has {len(names):,} lines, but the net gives {count:,} scores",
            help="write one class name per line, in the order of the scores",
        )
    for i, name in enumerate(names):
        if not 0 < len(name) <= _MAX_NAME:
            raise fail(
                f"line {i + 1:,} of {path} has {len(name):,} characters, too many for a name"
            )
    found = _distinct(names)
    renamed = [new for new, old in zip(found, names, strict=True) if new != old]
    if not renamed:
        return ClassNames(found)
    shown = ", ".join(f"`{escape_line(n)}`" for n in renamed[:_MAX_SHOWN])
    rest = ", ..." * (len(renamed) > _MAX_SHOWN)
    return ClassNames(found, f"{path} contains repeated names, which get a number: {shown}{rest}")


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
