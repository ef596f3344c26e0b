"""Kinds of attributes that several operators have."""

from __future__ import annotations

from netdsl.kinds import Choice, Many, Whole
from netdsl.limits import LARGEST_TENSOR
from netdsl.types import ITEMSIZE

SHAPE = Many(Whole(1, LARGEST_TENSOR))
PAIR = Many(Whole(), 2)
"""Height and width."""
PADS = Many(Many(Whole(0), 2), 2)
"""Top and bottom, left and right."""
COUNTS = Many(Whole(0))
AXES = Many(Whole(0, 64))
DTYPE = Choice(tuple(ITEMSIZE))
