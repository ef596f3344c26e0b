"""Typed records: what compiled code is given, packed by keyword here and read by name there.

A record is a class whose annotations are its fields: `int` is an i64 (a size, a stride in bytes, an
address), `float` an f64, `Float32` an f32. Loops read it as `Head.at(address).rows`, functions in
LLVM's language as `f.record(Head).rows`; neither knows an offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Annotated, Any, ClassVar, Self, dataclass_transform

import numpy as np

from netdsl.types import Array

Float32 = Annotated[float, "f32"]
"""A float of 32 bits."""

_FIELD_KINDS = {"int": "i64", "float": "f64", "Float32": "f32"}
"""By the text of an annotation."""
_INTEGERS = frozenset((int, bool))
_NUMPY_TYPES = {"i64": np.int64, "f64": np.float64, "f32": np.float32}


@dataclass(frozen=True)
class RecordField:
    """A field of a record: its kind and how many bytes after the record's first it begins."""

    kind: str
    offset: int


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """The base of all records, made by keyword like a dataclass; there are so many that a generic
    constructor saves loading time. Raises TypeError where a field lacks a value, where there is no
    such field, and where an i64 is given what is not an integer."""

    dtype: ClassVar[np.dtype[Any]]
    layout: ClassVar[Mapping[str, RecordField]]
    """The fields by name, in order."""
    defaults: ClassVar[Mapping[str, int | float]]
    has_only_integers: ClassVar[bool]

    def __init_subclass__(cls) -> None:
        kinds = {name: _FIELD_KINDS[text] for name, text in cls.__annotations__.items()}
        cls.dtype = np.dtype([(n, _NUMPY_TYPES[kind]) for n, kind in kinds.items()], align=True)
        offsets: Mapping[str, Any] = cls.dtype.fields or {}
        cls.layout = {n: RecordField(kind, offsets[n][1]) for n, kind in kinds.items()}
        cls.defaults = {n: getattr(cls, n) for n in kinds if hasattr(cls, n)}
        cls.has_only_integers = set(kinds.values()) == {"i64"}

    def __init__(self, **values: int | float) -> None:
        values = {**self.defaults, **values} if self.defaults else values
        if values.keys() != self.layout.keys():
            wrong = ", ".join(sorted(values.keys() ^ self.layout.keys()))
            raise TypeError(f"{type(self).__name__}: missing or unknown fields: {wrong}")
        vars(self).update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(f"{type(self).__name__}.{name} cannot be changed")

    def with_fields(self, **values: int | float) -> Self:
        """The same record with other values of some fields."""
        return type(self)(**{**vars(self), **values})

    @classmethod
    def at(cls, address: int) -> Self:
        """The record at an address, in machine code; see numba_loops.py."""
        raise TypeError(f"{cls.__name__} is read by machine code alone")

    @classmethod
    def nth(cls, address: int, i: int) -> Self:
        """The i-th of the records that begin at an address, in machine code."""
        raise TypeError(f"{cls.__name__} is read by machine code alone")

    def values(self) -> tuple[int | float, ...]:
        """The values of all fields, in order."""
        own = vars(self)
        found = tuple(own[name] for name in self.layout)
        if self.has_only_integers and set(map(type, found)) <= _INTEGERS:  # the common case
            return found
        return tuple(self._values())

    def _values(self) -> Iterator[int | float]:
        for name, field in self.layout.items():
            value = getattr(self, name)
            try:
                yield index(value) if field.kind == "i64" else float(value)
            except TypeError:
                found = f"{type(self).__name__}.{name} is an {field.kind}, not {value!r}"
                raise TypeError(found) from None


def pack_records(records: Sequence[Record]) -> Array:
    """Records of one class, one behind the other, as compiled code reads them. They lie in the
    array's own memory: who gives its address away keeps the array."""
    (kind,) = {type(r) for r in records}
    return np.array([r.values() for r in records], kind.dtype)


class RecordTable:
    """Memory of records and lists of numbers: adding gives the address, `keepalive` owns the
    memory."""

    def __init__(self, keepalive: list[Any]) -> None:
        self.keepalive = keepalive

    def _store(self, table: Array) -> int:
        self.keepalive.append(table)
        return int(table.ctypes.data)

    def add(self, *records: Record) -> int:
        """The address of the first of these records, which are of one class."""
        return self._store(pack_records(records))

    def add_i64s(self, numbers: Sequence[int]) -> int:
        """The address of the first of these i64, all of one meaning."""
        return self._store(np.array([index(n) for n in numbers], np.int64))
