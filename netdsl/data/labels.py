"""Labels as arrays, one class or several labels per image, and the names of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from netdsl.errors import fail
from netdsl.limits import MAX_CLASS_NAME
from netdsl.text_escaping import escape_line
from netdsl.types import Array

MAX_LABEL = 99_999


def read_labels(labels: Array, title: str) -> Array:
    """Labels as samples hold them: integers [N] as int32, or 0 and 1 of any type, [N, classes], as
    uint8. Raises NetError for other values."""
    if labels.ndim == 2:
        is_wrong = (labels != 0) & (labels != 1)
        if is_wrong.any():
            image, column = (int(i) for i in np.argwhere(is_wrong)[0])
            wrong = labels[image, column]
            raise fail(
                f"{title} contains {wrong} for image {image:,} and class {column:,}; with several "
                f"labels per image, use 1 where an image has the label and 0 elsewhere",
                help="for scores of which only the highest counts, `labels.argmax(axis=1)` "
                "converts them to one class per image; `labels > 0.5` keeps several",
            )
        return labels.astype(np.uint8)
    if labels.size and (labels.min() < 0 or labels.max() > MAX_LABEL):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        message = f"{title} contains the label {wrong}"
        help = f"labels must be integers from 0 to {MAX_LABEL:,}"
        if wrong < 0:
            help = f"classes are numbered from 0: `labels + {-wrong}`, or leave such images out"
        raise fail(message, help=help)
    return labels.astype(np.int32)


def name_classes(labels: Mapping[str, Array], names: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the classes of labels, by their titles; numbers unless `names` are given. Raises
    NetError if the labels do not have the same classes, or if these are not those of the names."""
    (first, model), *others = labels.items()
    for title, x in others:
        if x.ndim != model.ndim:
            one, several = (title, first) if model.ndim == 2 else (first, title)
            message = f"{one} has one class per image, but {several} has several labels"
            raise fail(
                message, help="give all labels as integers [N], or all as 0 and 1 [N, classes]"
            )
        if x.ndim == 2 and x.shape[1] != model.shape[1]:
            columns = f"{model.shape[1]:,} columns and {title} {x.shape[1]:,}"
            raise fail(f"{first} has {columns}; each column is a class")
    if model.ndim == 2:
        count = model.shape[1]
        if count > 1 + MAX_LABEL:
            most = 1 + MAX_LABEL
            raise fail(f"{first} has {count:,} columns, but there can be at most {most:,} classes")
        if names and len(names) != count:
            raise fail(f"{first} has {count:,} columns, but there are {len(names):,} `classes`")
    else:
        count = 1 + max(int(x.max(initial=0)) for x in labels.values())
        if names and count > len(names):
            title = max(labels, key=lambda k: labels[k].max(initial=0))
            message = (
                f"{title} contains the label {count - 1}, but there are {len(names)} `classes`"
            )
            least = min(int(x.min(initial=count)) for x in labels.values())
            help = f"labels count from 0: `labels - {least}`" if least else None
            raise fail(message, help=help)
    return tuple(names) or tuple(map(str, range(count)))


def read_names(given: Any, title: str = "`classes`") -> list[str]:
    """The names of classes as given. Raises NetError if they could not be those of a checkpoint: a
    run must not find that out at its end."""
    if given is None:
        return []
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise fail(f"{title} is of type {kind}", help='give a list of names: ["ant", "bee"]')
    names = list(map(str, given))
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        help = (
            "class names must be unique; without `classes`, the numbers of the classes are "
            "their names"
        )
        raise fail(f"two of {title} are called `{escape_line(twice)}`", help=help)
    long = next((name for name in names if len(name) > MAX_CLASS_NAME), None)
    if long is not None:
        message = f"a name of {title} has {len(long):,} characters"
        raise fail(message, help=f"names have at most {MAX_CLASS_NAME:,}")
    return names
