"""What was found of a data set: classes, counts by part and class, what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netdsl.data.samples import Dataset, Samples
from netdsl.text_escaping import escape_line

LEARN, VALIDATE, TEST = "to learn from", "to validate with", "to test with"
MOST_NAMED = 10


@dataclass(frozen=True)
class Inventory:
    """`counts` are the images of each part by class, in the order of `classes`; `held_out` says
    whether those to validate with are taken from those to learn from."""

    source: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    held_out: bool
    left_out: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()

    @property
    def lacking(self) -> dict[str, tuple[str, ...]]:
        """The classes that a part has no image of, by part; a part without images has none."""
        found = {
            part: tuple(c for c, n in zip(self.classes, numbers, strict=True) if not n)
            for part, numbers in self.counts.items()
            if any(numbers)
        }
        return {part: names for part, names in found.items() if names}

    def lines(self) -> tuple[str, ...]:
        """The inventory for people."""
        first = f"data: {self.source}, {_counted(len(self.classes), 'class')}: {few(self.classes)}"
        parts = [f"  {part}: {self._part(part)}" for part in self.counts]
        lacking = [f"  no images {part}: {few(names)}" for part, names in self.lacking.items()]
        left_out = [f"  left out: {line}" for line in self.left_out]
        return (first, *parts, *lacking, *left_out, *skipped_lines(self.bad))

    def _part(self, part: str) -> str:
        numbers = self.counts[part]
        text = f"{sum(numbers):,}"
        if part == VALIDATE and self.held_out and any(numbers):
            text += ", held out"
        if not any(numbers):
            return text
        if len(numbers) <= MOST_NAMED:
            each = (f"{escape_line(c)} {n:,}" for c, n in zip(self.classes, numbers, strict=True))
            return f"{text} ({', '.join(each)})"
        low, high = min(numbers), max(numbers)
        return f"{text} ({low:,}{f' to {high:,}' if high > low else ''} of each class)"

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "classes": list(self.classes),
            "counts": {part: list(numbers) for part, numbers in self.counts.items()},
            "held_out": self.held_out,
            "left_out": list(self.left_out),
            "bad_pictures": list(self.bad),
        }


def inventory(source: str, dataset: Dataset, train: Samples, validation: Samples) -> Inventory:
    """What was found of a data set that is divided so."""
    parts = {LEARN: train, VALIDATE: validation}
    if dataset.read_test is not None:
        parts[TEST] = dataset.read_test()
    counts = {
        part: tuple(int(n) for n in np.bincount(x.labels, minlength=len(dataset.classes)))
        for part, x in parts.items()
    }
    held_out = dataset.validation is None
    return Inventory(source, dataset.classes, counts, held_out, dataset.left_out, dataset.faults)


def skipped_lines(faults: Sequence[str]) -> list[str]:
    """How many pictures are skipped, and the first ones with what is wrong with them."""
    if not faults:
        return []
    lines = [f"  skipped: {_counted(len(faults), 'bad picture')}"]
    lines += [f"    {escape_line(fault)}" for fault in faults[:MOST_NAMED]]
    more = len(faults) - MOST_NAMED
    return [*lines, f"    and {more:,} more"] if more > 0 else lines


def _counted(n: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{n:,} {what}{plural if n != 1 else ''}"


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    shown = [escape_line(n) for n in names[:MOST_NAMED]]
    more = [f"and {len(names) - MOST_NAMED:,} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*shown, *more])
