"""What a tile does to its sums before it writes them: elementwise nodes, in registers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from netdsl.backends.cpu.emit import Lanes, Value, long
from netdsl.backends.cpu.expression import Expr, Place
from netdsl.backends.cpu.functions import FUNCTIONS

_SHORT = frozenset(
    ("add", "sub", "mul", "neg", "relu", "leaky_relu", "clamp", "maximum", "minimum")
)
"""Operators of so few instructions that a tile may have them for each of its vectors."""

Recipe = tuple[Hashable, ...]


@dataclass(frozen=True)
class Finish:
    """An expression of the tile's own sums, and the other places that it reads."""

    recipe: Recipe
    target: Place
    places: tuple[tuple[str, Place], ...]

    @property
    def reads_rows(self) -> bool:
        """Whether it reads what has an element for each result: the results may lie there too."""
        return any(kind == "full" for kind, _ in self.places)

    def addresses(self, column: int) -> list[int]:
        """Of what the tiles of a column block read: vectors from its first column on, and how far
        from a result what belongs to it lies."""
        begin = {"vector": 4 * column, "full": -self.target.address, "scalar": 0}
        return [p.address + begin[kind] for kind, p in self.places]


def finish_of(e: Expr, target: Place) -> Finish | None:
    """A finish that computes `e` into `target`, if it is short and reads nothing out of line."""
    if target.dtype != "float32" or target.strides[-1] != 1:
        return None
    places: list[tuple[str, Place]] = []
    recipe = _recipe(e, target, places)
    return Finish(recipe, target, tuple(places)) if recipe else None


def _recipe(e: Expr, target: Place, places: list[tuple[str, Place]]) -> Recipe | None:
    if e.op == "const":
        return ("const", float(e.attrs["value"]))
    if e.place is not None:
        return _leaf(e.place, target, places)
    if e.op not in _SHORT:
        return None
    args = [_recipe(a, target, places) for a in e.args]
    return None if None in args else (e.op, tuple(sorted(e.attrs.items())), *args)


def _leaf(p: Place, target: Place, places: list[tuple[str, Place]]) -> Recipe | None:
    if p.local:
        return ("own",)
    if p.pad is not None or p.dtype != "float32":
        return None
    *outer, inner = p.strides
    kind = "full" if p.strides == target.strides else "vector" if inner == 1 else "scalar"
    if kind != "full" and (any(outer) or inner > 1):
        return None
    places.append((kind, p))
    return (kind, len(places) - 1)


def finished(v: Lanes, recipe: Recipe, own: Value, read: Callable[[str, int], Value]) -> Value:
    """The expression for a vector of sums; `read` gives what the other places have beside it."""
    op, *rest = recipe
    if op == "own":
        return own
    if op == "const":
        return v.const(rest[0])  # type: ignore[arg-type]
    if op in ("scalar", "vector", "full"):
        return read(op, rest[0])  # type: ignore[arg-type]
    attrs, *args = rest
    values = [finished(v, a, own, read) for a in args]  # type: ignore[arg-type]
    return FUNCTIONS[str(op)](v, *values, **dict(attrs))  # type: ignore[call-overload]


def reader(
    v: Lanes, recipe: Recipe, reads: Value, far: Value
) -> Callable[[Value, str, int], Value]:
    """What gives the value of a place beside the results at an address. `reads` is the table of
    the places' addresses; of vectors and scalars, which are the same for all rows, those that
    belong to a vector of results `far` bytes into a column block are read at once."""
    f = v.f

    def address(index: int) -> Value:
        return f.long_nth(reads, long(index))

    near = {
        index: v.load(f.b.add(address(index), far))
        if kind == "vector"
        else v.spread(address(index))
        for kind, index in _leaves(recipe)
        if kind != "full"
    }

    def read(to: Value, kind: str, index: int) -> Value:
        return v.load(f.b.add(to, address(index))) if kind == "full" else near[index]

    return read


def _leaves(recipe: Recipe) -> Iterator[tuple[str, int]]:
    op, *rest = recipe
    if op in ("scalar", "vector", "full"):
        yield str(op), rest[0]  # type: ignore[misc]
    elif op not in ("own", "const"):
        for argument in rest[1:]:
            yield from _leaves(argument)  # type: ignore[arg-type]
