"""What a data set holds: classes, counts by part and class, what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.data.array_advice import ONE_HOT_ADVICE, describe_doubts
from netdsl.data.samples import Dataset, Samples
from netdsl.text_escaping import escape_line, quote_name

TRAIN_SET, VALIDATION_SET, TEST_SET = "to learn from", "to validate with", "to test with"
MAX_LISTED = 10


@dataclass(frozen=True)
class Inventory:
    """`images` are the number of images of each part, and `counts` those of each class or label, in
    the order of `classes`; `is_held_out` says whether the validation images are held out from the
    training images."""

    source: str
    classes: tuple[str, ...]
    images: Mapping[str, int]
    counts: Mapping[str, tuple[int, ...]]
    is_held_out: bool
    is_multi_label: bool = False
    is_one_hot: bool = False
    """Whether each of the training images, which could have several labels, has exactly one."""
    ignored_files: tuple[str, ...] = ()
    bad_pictures: tuple[str, ...] = ()
    unlimited: int | None = None
    """The number of training images of which a limit takes a part, if there is one."""
    is_balanced: bool = False
    doubts: tuple[str, ...] = ()
    """What is probably not meant with the images."""
    """Whether an epoch has as many images of each class."""

    @property
    def missing_classes(self) -> dict[str, tuple[str, ...]]:
        """The classes without images in each part; parts without any images are left out."""
        found = {
            part: tuple(c for c, n in zip(self.classes, numbers, strict=True) if not n)
            for part, numbers in self.counts.items()
            if any(numbers)
        }
        return {part: names for part, names in found.items() if names}

    def lines(self) -> tuple[str, ...]:
        """The inventory as lines of text."""
        noun = "label" if self.is_multi_label else "class"
        count = _pluralize(len(self.classes), noun)
        if self.is_multi_label:
            count += ", several per image"
        first = f"data: {self.source}, {count}: {abbreviate(self.classes)}"
        parts = [f"  {part}: {self._format_part(part)}" for part in self.counts]
        if self.is_balanced:
            parts.insert(1, f"  in an epoch: {self._format_epoch()}")
        if self.is_one_hot:
            help = f"{ONE_HOT_ADVICE}, among which `loss = cross_entropy` chooses"
            parts.append(f"  every image has exactly one label: {help}")
        parts += [f"  note: {doubt}" for doubt in self.doubts]
        missing = [
            f"  no images {part}: {abbreviate(names)}"
            for part, names in self.missing_classes.items()
        ]
        ignored = [f"  left out: {line}" for line in self.ignored_files]
        return (first, *parts, *missing, *ignored, *format_skipped_pictures(self.bad_pictures))

    def _format_epoch(self) -> str:
        """What an epoch of balanced sampling has."""
        numbers = self.counts[TRAIN_SET]
        low, more = divmod(sum(numbers), sum(n > 0 for n in numbers))
        each = f"{low:,} or {low + 1:,}" if more else f"{low:,}"
        return f"{sum(numbers):,}, {each} of each class (`sampling = balanced`)"

    def _format_part(self, part: str) -> str:
        images, numbers = self.images[part], self.counts[part]
        text = f"{images:,}"
        if not images:
            return text
        if part == VALIDATION_SET and self.is_held_out:
            text += ", held out"
        if part == TRAIN_SET and self.unlimited is not None:
            text += f" of {self.unlimited:,}, by `limit`"
        if self.is_multi_label:
            mean = f"{sum(numbers) / images:.3g}"
            text += f", {mean} label{'s' * (mean != '1')} per image"
        return f"{text} ({self._format_counts(numbers)})"

    def _format_counts(self, numbers: tuple[int, ...]) -> str:
        """The images of each class, or how many the rarest and the most frequent have."""
        if len(numbers) <= MAX_LISTED:
            each = (f"{quote_name(c)} {n:,}" for c, n in zip(self.classes, numbers, strict=True))
            return ", ".join(each)
        low, high = min(numbers), max(numbers)
        if self.is_multi_label:
            rarest = quote_name(self.classes[numbers.index(low)])
            return f"{low:,}, of {rarest}, to {high:,} of each label"
        return f"{low:,}{f' to {high:,}' if high > low else ''} of each class"

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "classes": list(self.classes),
            "several_labels": self.is_multi_label,
            "images": dict(self.images),
            "counts": {part: list(numbers) for part, numbers in self.counts.items()},
            "held_out": self.is_held_out,
            "unlimited": self.unlimited,
            "balanced": self.is_balanced,
            "notes": list(self.doubts),
            "left_out": list(self.ignored_files),
            "bad_pictures": list(self.bad_pictures),
        }


def make_inventory(
    source: str,
    dataset: Dataset,
    train: Samples,
    validation: Samples,
    is_limited: bool = False,
    is_balanced: bool = False,
) -> Inventory:
    """The inventory of a data set with this split, of whose training images a limit may have taken
    a part, and whose epochs may be balanced."""
    parts = {TRAIN_SET: train, VALIDATION_SET: validation}
    if dataset.read_test is not None:
        parts[TEST_SET] = dataset.read_test()
    counts = {
        part: tuple(int(n) for n in x.count_by_class(len(dataset.classes)))
        for part, x in parts.items()
    }
    is_held_out = dataset.validation is None
    unlimited = len(dataset.train) - is_held_out * len(validation) if is_limited else None
    return Inventory(
        source,
        dataset.classes,
        {part: len(x) for part, x in parts.items()},
        counts,
        is_held_out,
        train.is_multi_label,
        train.is_one_hot,
        dataset.ignored_files,
        dataset.picture_errors,
        unlimited,
        is_balanced,
        describe_doubts(train.images),
    )


def format_skipped_pictures(errors: Sequence[str]) -> list[str]:
    """The number of skipped pictures, and the errors of the first ones."""
    if not errors:
        return []
    lines = [f"  skipped: {_pluralize(len(errors), 'bad picture')}"]
    lines += [f"    {escape_line(error)}" for error in errors[:MAX_LISTED]]
    more = len(errors) - MAX_LISTED
    return [*lines, f"    and {more:,} more"] if more > 0 else lines


def _pluralize(n: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{n:,} {noun}{plural if n != 1 else ''}"


def abbreviate(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = [quote_name(n) for n in names[:MAX_LISTED]]
    more = [f"and {len(names) - MAX_LISTED:,} more"] if len(names) > MAX_LISTED else []
    return ", ".join([*shown, *more])
