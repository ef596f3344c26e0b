"""Attribute types that several operators share."""

from __future__ import annotations

from netdsl.limits import MAX_TENSOR_SIZE
from netdsl.parameter_types import Choice, Integer, ListOf
from netdsl.types import ITEMSIZE

SHAPE = ListOf(Integer(1, MAX_TENSOR_SIZE))
PAIR = ListOf(Integer(), 2)
"""Height and width."""
PADS = ListOf(ListOf(Integer(0), 2), 2)
"""Top and bottom, left and right."""
COUNTS = ListOf(Integer(0))
AXES = ListOf(Integer(0, 64))
DTYPE = Choice(tuple(ITEMSIZE))
