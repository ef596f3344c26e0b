"""Views: how the axes of an ONNX value lie in those of a netdsl value.

Both consist of the same atoms. An image in ONNX has the axes [n, c, h, w], its value here [n, h, w,
c]. A transposition reorders axes, a reshape groups the atoms anew and splits them where it must. So
a chain of reshapes and transpositions costs nothing until a layer needs a certain order; what it
then amounts to (nothing, `shuffle`, `pixel_shuffle`, `flatten`, ...) is read off the atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from netdsl.types import Array


@dataclass(frozen=True, eq=False)
class Atom:
    """A factor of an axis: larger than 1, and the same object wherever it occurs."""

    size: int


Axis = tuple[Atom, ...]
"""The atoms of an axis, the outermost first; none for an axis of size 1."""
Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Factors and offsets."""
IMAGE_ORDER = (0, 2, 3, 1)
"""The axes of an ONNX image in the order of netdsl's."""


class ViewError(Exception):
    """A view cannot be brought into the form that a layer needs."""


def atoms_of(size: int) -> Axis:
    return (Atom(size),) if size != 1 else ()


def axis_size(axis: Axis) -> int:
    return math.prod(a.size for a in axis)


def flat(axes: Sequence[Axis]) -> Axis:
    return tuple(a for axis in axes for a in axis)


@dataclass(frozen=True)
class View:
    """The ONNX axes of the result of a node: `base` holds the axes there, batch first, and `axes`
    those in ONNX. With `pixels` it is an input of bytes, and the values are its own times a factor,
    plus an offset, for each channel."""

    node: str
    base: tuple[Axis, ...]
    axes: tuple[Axis, ...]
    pixels: Pixels | None = None
    is_integer: bool = False
    """Whether these are integers, with which no layer computes."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(axis_size, self.axes))

    @property
    def rank(self) -> int:
        return len(self.axes)

    def transpose(self, perm: Sequence[int]) -> View:
        return replace(self, axes=tuple(self.axes[p] for p in perm))

    def reshape(self, shape: Sequence[int]) -> View:
        """The view under another shape of as many values. Raises ViewError where an axis cannot be
        split as the shape wants."""
        view, rest, axes = self, list(flat(self.axes)), []
        for size in shape:
            axis: list[Atom] = []
            while size > 1:
                if not rest:
                    raise ViewError
                atom = rest.pop(0)
                if size % atom.size:
                    if atom.size % size:
                        raise ViewError
                    outer, inner = Atom(size), Atom(atom.size // size)
                    view = view._split(atom, outer, inner)
                    rest.insert(0, inner)
                    atom = outer
                axis.append(atom)
                size //= atom.size
            axes.append(tuple(axis))
        if rest:
            raise ViewError
        return replace(view, axes=tuple(axes))

    def _split(self, atom: Atom, outer: Atom, inner: Atom) -> View:
        base = tuple(
            flat([(outer, inner) if a is atom else (a,) for a in axis]) for axis in self.base
        )
        return replace(self, base=base)

    def is_like(self, other: View) -> bool:
        """Whether the axes of both lie in the same way in values of the same shape."""
        return self._wiring() == other._wiring()

    def _wiring(self) -> tuple[object, ...]:
        places = {a: i for i, a in enumerate(flat(self.base))}
        sizes = [tuple(a.size for a in axis) for axis in self.base]
        return (sizes, [tuple(places[a] for a in axis) for axis in self.axes])

    def order(self) -> tuple[int, ...] | None:
        """The axes of ONNX in the order of the base's, if each is one of them; size 1 fits
        anywhere."""
        if len(self.axes) != len(self.base):
            return None
        free = [i for i, axis in enumerate(self.axes) if not axis]
        order = []
        for axis in self.base:
            found = [i for i, other in enumerate(self.axes) if axis and other == axis]
            if not found and (axis or not free):
                return None
            order.append(found[0] if found else free.pop(0))
        return tuple(order)

    def channel_axis(self) -> int | None:
        """The axis of ONNX that is the last of the base, or None."""
        last = self.base[-1]
        found = [i for i, axis in enumerate(self.axes) if axis == last]
        return found[-1] if found else None

    def reorder_values(self, values: Array, axis: Axis) -> Array:
        """An array whose last axis runs over the atoms of `axis`, in the order of the base."""
        order = {a: i for i, a in enumerate(flat(self.base))}
        perm = sorted(range(len(axis)), key=lambda i: order[axis[i]])
        split = values.reshape(*values.shape[:-1], *(a.size for a in axis))
        first = values.ndim - 1
        return np.transpose(split, (*range(first), *(first + p for p in perm))).reshape(
            values.shape
        )


def row_view(node: str, shape: Sequence[int]) -> View:
    """A view whose axes are those of the node."""
    base = tuple(map(atoms_of, shape))
    return View(node, base, base)


def image_view(node: str, shape: Sequence[int]) -> View:
    """The view of an image as [n, c, h, w]."""
    return row_view(node, shape).transpose((0, 3, 1, 2))
