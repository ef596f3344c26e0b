"""What is read back from a file, checked: JSON of a bounded size, and of what types and ranges."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

MOST_VALUES = 4_000_000
LARGEST = 1e300
_SURROGATE = re.compile("[\ud800-\udfff]")


class Invalid(ValueError):
    """What was read is not what the schema says; the text names the place and the value."""


class Schema(Protocol):
    """A set of JSON values."""

    def check(self, value: Any, place: str) -> None:
        """Raises Invalid where a value, which stands at `place`, is none of them."""
        ...


@dataclass(frozen=True)
class Whole:
    """A whole number in [low, high]."""

    low: int = 0
    high: int = 2**31 - 1

    def check(self, value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            _refuse(value, place, "a whole number")
        if not self.low <= value <= self.high:
            _refuse(value, place, f"from {self.low:,} to {self.high:,}")


@dataclass(frozen=True)
class Real:
    """A finite number in [low, high]."""

    low: float = -LARGEST
    high: float = LARGEST

    def check(self, value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse(value, place, "a number")
        if not self.low <= value <= self.high:  # nor is NaN
            _refuse(value, place, f"a number from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Text:
    """A text of so many characters at most; `one_line` has no end of a line within, and only a
    file's name may have `surrogates`, for bytes that are no UTF-8."""

    longest: int
    one_line: bool = False
    surrogates: bool = False

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, str):
            _refuse(value, place, "a text")
        if len(value) > self.longest:
            raise Invalid(f"`{place}` has {len(value):,} characters, over {self.longest:,}")
        if self.one_line and len(value.splitlines()) > 1:
            _refuse(value, place, "one line")
        if not self.surrogates and _SURROGATE.search(value):
            _refuse(value, place, "readable text")


@dataclass(frozen=True)
class Maybe:
    """null, or of another schema."""

    other: Schema

    def check(self, value: Any, place: str) -> None:
        if value is not None:
            self.other.check(value, place)


@dataclass(frozen=True)
class Tree:
    """A finite number, a text, true, false or null; or lists and objects of them, so many deep."""

    depth: int = 0

    def check(self, value: Any, place: str) -> None:
        if isinstance(value, str):
            Text(1000).check(value, place)
        elif isinstance(value, list | dict):
            if self.depth == 0:
                _refuse(value, place, "a number or a text")
            for one in value.values() if isinstance(value, dict) else value:
                Tree(self.depth - 1).check(one, place)
        elif value is not None and not isinstance(value, bool):
            Real().check(value, place)


@dataclass(frozen=True)
class Listing:
    """A list of so many at most, and at least, all of one schema."""

    each: Schema
    most: int
    least: int = 0

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, list | tuple):
            _refuse(value, place, "a list")
        if len(value) > self.most:
            raise Invalid(f"`{place}` has {len(value):,} entries, over {self.most:,}")
        if len(value) < self.least:
            raise Invalid(f"`{place}` has {len(value):,} entries, under {self.least:,}")
        for i, one in enumerate(value):
            self.each.check(one, f"{place}[{i}]")


@dataclass(frozen=True)
class Object:
    """An object with named entries; `others` says what those of other names are. Unless it does,
    nobody reads them, as they may be from a version to come."""

    required: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)
    others: Schema | None = None
    most: int = 1000

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            _refuse(value, place, "an object")
        if len(value) > self.most:
            raise Invalid(f"`{place}` has {len(value):,} entries, over {self.most:,}")
        for name in self.required:
            if name not in value:
                raise Invalid(f"`{place}` has no `{name}`")
        for name, one in value.items():
            schema = self.required.get(name) or self.optional.get(name) or self.others
            if schema is not None:
                schema.check(one, f"{place}.{name[:40]}")


def read_json(content: str | bytes, nan_is_null: bool = False) -> Any:
    """The value of a JSON text. Raises Invalid where it is none, or one that is too large or too
    deep to be ours; where it has a NaN or an infinity, unless they are to be read as null."""
    try:
        text = content if isinstance(content, str) else content.decode()
        if sum(map(text.count, ",:[{")) > MOST_VALUES:
            raise Invalid(f"it has over {MOST_VALUES:,} values")
        return json.loads(text, parse_constant=_null if nan_is_null else _no_number)
    except RecursionError:
        raise Invalid("it nests too deep") from None
    except ValueError as e:
        raise Invalid(str(e)) from None


def _null(name: str) -> None:
    return None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _refuse(value: Any, place: str, wanted: str) -> NoReturn:
    raise Invalid(f"`{place}` is {_shown(value)}, not {wanted}")


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        cut = value if len(value) <= 40 else f"{value[:40]}..."
        return json.dumps(cut, ensure_ascii=False)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"{'-' * (value < 0)}10^{math.log10(abs(value)):.0f}"
    return json.dumps(value)
