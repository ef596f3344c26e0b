"""Validation of JSON read from a file: bounded size, types and ranges."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

MAX_JSON_VALUES = 4_000_000
MAX_JSON_NUMBER = 1e300
_SURROGATE = re.compile("[\ud800-\udfff]")


class SchemaError(ValueError):
    """The input does not match the schema; the message names the path and the value."""


class Schema(Protocol):
    """A set of JSON values."""

    def check(self, value: Any, path: str) -> None:
        """Raises SchemaError if a value, found at `path`, does not match."""
        ...


@dataclass(frozen=True)
class JsonInteger:
    """An integer in [low, high]."""

    low: int = 0
    high: int = 2**31 - 1

    def check(self, value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            _raise_mismatch(value, path, "an integer")
        if not self.low <= value <= self.high:
            _raise_mismatch(value, path, f"from {self.low:,} to {self.high:,}")


@dataclass(frozen=True)
class JsonNumber:
    """A finite number in [low, high]."""

    low: float = -MAX_JSON_NUMBER
    high: float = MAX_JSON_NUMBER

    def check(self, value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _raise_mismatch(value, path, "a number")
        if not self.low <= value <= self.high:  # NaN fails this too
            _raise_mismatch(value, path, f"a number from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class JsonString:
    """A string of at most `max_length` characters. With `is_one_line` it may contain no line break.
    Only a file name may use `allow_surrogates`, for bytes that are not UTF-8."""

    max_length: int
    is_one_line: bool = False
    allow_surrogates: bool = False

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, str):
            _raise_mismatch(value, path, "a string")
        if len(value) > self.max_length:
            raise SchemaError(f"`{path}` has {len(value):,} characters, over {self.max_length:,}")
        if self.is_one_line and len(value.splitlines()) > 1:
            _raise_mismatch(value, path, "one line")
        if not self.allow_surrogates and _SURROGATE.search(value):
            _raise_mismatch(value, path, "readable text")


@dataclass(frozen=True)
class Nullable:
    """null, or a value of another schema."""

    schema: Schema

    def check(self, value: Any, path: str) -> None:
        if value is not None:
            self.schema.check(value, path)


@dataclass(frozen=True)
class JsonValue:
    """A finite number, a string, true, false or null; or lists and objects of them, nested up to
    `max_depth`."""

    max_depth: int = 0

    def check(self, value: Any, path: str) -> None:
        if isinstance(value, str):
            JsonString(1000).check(value, path)
        elif isinstance(value, list | dict):
            if self.max_depth == 0:
                _raise_mismatch(value, path, "a number or a string")
            for item in value.values() if isinstance(value, dict) else value:
                JsonValue(self.max_depth - 1).check(item, path)
        elif value is not None and not isinstance(value, bool):
            JsonNumber().check(value, path)


@dataclass(frozen=True)
class JsonArray:
    """A list of `min_length` to `max_length` entries, all of one schema."""

    item_schema: Schema
    max_length: int
    min_length: int = 0

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, list | tuple):
            _raise_mismatch(value, path, "a list")
        if len(value) > self.max_length:
            raise SchemaError(f"`{path}` has {len(value):,} entries, over {self.max_length:,}")
        if len(value) < self.min_length:
            raise SchemaError(f"`{path}` has {len(value):,} entries, under {self.min_length:,}")
        for i, item in enumerate(value):
            self.item_schema.check(item, f"{path}[{i}]")


@dataclass(frozen=True)
class JsonObject:
    """An object with named entries. `additional` is the schema of entries with other names; if it
    is None, these are ignored, since a later version may have written them."""

    required: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)
    additional: Schema | None = None
    max_entries: int = 1000

    def check(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            _raise_mismatch(value, path, "an object")
        if len(value) > self.max_entries:
            raise SchemaError(f"`{path}` has {len(value):,} entries, over {self.max_entries:,}")
        for name in self.required:
            if name not in value:
                raise SchemaError(f"`{path}` has no `{name}`")
        for name, entry in value.items():
            schema = self.required.get(name) or self.optional.get(name) or self.additional
            if schema is not None:
                schema.check(entry, f"{path}.{name[:40]}")


def read_json(content: str | bytes, is_nan_null: bool = False) -> Any:
    """Parses a JSON text. Raises SchemaError if it is invalid, or too large or too deeply nested to
    be ours, or if it contains NaN or an infinity, unless `is_nan_null` reads those as null."""
    try:
        text = content if isinstance(content, str) else content.decode()
        if sum(map(text.count, ",:[{")) > MAX_JSON_VALUES:
            raise SchemaError(f"it has more than {MAX_JSON_VALUES:,} values")
        return json.loads(
            text, parse_constant=_replace_with_null if is_nan_null else _reject_non_finite
        )
    except RecursionError:
        raise SchemaError("it is nested too deeply") from None
    except ValueError as e:
        raise SchemaError(str(e)) from None


def _replace_with_null(name: str) -> None:
    return None


def _reject_non_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _raise_mismatch(value: Any, path: str, expected: str) -> NoReturn:
    raise SchemaError(f"`{path}` is {_describe_value(value)}, not {expected}")


def _describe_value(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        excerpt = value if len(value) <= 40 else f"{value[:40]}..."
        return json.dumps(excerpt, ensure_ascii=False)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"{'-' * (value < 0)}10^{math.log10(abs(value)):.0f}"
    return json.dumps(value)
