"""Values of a place as rows for people: a block for each channel, without the middle of what is
long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netdsl.types import dims

if TYPE_CHECKING:
    from netdsl.types import Array

_GAP = "..."


@dataclass(frozen=True)
class Limits:
    """The most that is printed of each axis; what is longer loses its middle."""

    columns: int = 10
    rows: int = 10
    channels: int = 4
    images: int = 4


UNLIMITED = Limits(*[2**62] * 4)


def format_values(
    place: str, values: Array, is_batch: bool, limits: Limits = Limits()
) -> Iterator[str]:
    """The lines for the values of a place: [H,W,C], [rows, columns] or [C] for one image, with a
    first axis of images if `is_batch`."""
    yield f"{place}: {dims(values.shape)}"
    if not is_batch:
        yield from _format_image(values, limits)
        return
    for i in _choose(len(values), limits.images):
        yield _GAP if i is None else f"image {i}"
        yield from () if i is None else _format_image(values[i], limits)


def is_shortened(values: Array, is_batch: bool, limits: Limits = Limits()) -> bool:
    """Whether `format_values` leaves out values."""
    if is_batch:
        return len(values) > limits.images or is_shortened(values[0], False, limits)
    image = _drop_single_position(values)
    most: tuple[int, ...] = (limits.rows, limits.columns, limits.channels)
    most = (limits.columns,) if image.ndim == 1 else most[: image.ndim]
    return any(n > limit for n, limit in zip(image.shape, most, strict=True))


def _drop_single_position(values: Array) -> Array:
    """Channels at a single position, [1,1,C], as a vector [C]."""
    return values[0, 0] if values.ndim == 3 and values.shape[:2] == (1, 1) else values


def _format_image(values: Array, limits: Limits) -> Iterator[str]:
    values = _drop_single_position(values)
    if values.ndim < 3:
        yield from _format_table(values.reshape(-1, values.shape[-1] if values.ndim else 1), limits)
        return
    count = values.shape[2]
    for channel in _choose(count, limits.channels):
        if count > 1:
            yield _GAP if channel is None else f"channel {channel}"
        if channel is not None:
            yield from _format_table(values[..., channel], limits)


def _format_table(values: Array, limits: Limits) -> Iterator[str]:
    """Rows of numbers, right-aligned in columns of one width."""
    columns = _choose(values.shape[1], limits.columns)
    rows = [
        None
        if i is None
        else [_GAP if j is None else _format_number(values[i, j]) for j in columns]
        for i in _choose(values.shape[0], limits.rows)
    ]
    width = max((len(cell) for row in rows if row for cell in row), default=0)
    for row in rows:
        yield f"  {_GAP}" if row is None else "".join(f"  {cell:>{width}}" for cell in row)


def _choose(count: int, limit: int) -> Sequence[int | None]:
    """The indices that are printed, with None for the gap."""
    if count <= limit:
        return range(count)
    last = limit // 3
    return [*range(limit - 1 - last), None, *range(count - last, count)]


def _format_number(value: Any) -> str:
    number = float(value)
    if number.is_integer() and abs(number) < 1e6:
        return str(int(number))
    return f"{number:.4g}"
