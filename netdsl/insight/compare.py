"""Two nets side by side: their figures, what differs, and which weights of one fit the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netdsl.language.network import LayerInfo, Network
from netdsl.types import dims


@dataclass(frozen=True)
class Change:
    """A layer or a weight that the two nets do not share: what it is in each (None: not there)."""

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class Difference:
    """Two nets compared. `transfers` are the states, by name, that fit both, `weights` those that
    do not; `transferred` counts learnable values."""

    nets: tuple[str, str]
    params: tuple[int, int]
    macs: tuple[int, int]
    layers: tuple[Change, ...]
    transfers: tuple[str, ...]
    weights: tuple[Change, ...]
    transferred: int

    @property
    def same(self) -> bool:
        return not self.layers and not self.weights

    def as_json(self) -> dict[str, Any]:
        changes = {"layers": self.layers, "weights": self.weights}
        return {
            "params": list(self.params),
            "macs": list(self.macs),
            "transfers": list(self.transfers),
            "transferred_params": self.transferred,
            **{k: [{"name": c.name, "a": c.a, "b": c.b} for c in v] for k, v in changes.items()},
        }


def compare(a: Network, b: Network) -> Difference:
    """What differs between two nets."""
    layers = [{x.path: _layer(x) for x in net.layers} for net in (a, b)]
    states = [{n.name: dims(n.type.shape) for n in net.graph.states} for net in (a, b)]
    transfers = tuple(n for n, shape in states[0].items() if states[1].get(n) == shape)
    sizes = {n.name: n.type.size for n in a.parameters}
    return Difference(
        (a.name, b.name),
        (a.params, b.params),
        (a.macs, b.macs),
        _changes(*layers),
        transfers,
        _changes(*states),
        sum(sizes.get(n, 0) for n in transfers),
    )


def _layer(x: LayerInfo) -> str:
    return f"{x.call}  {dims(x.output_type.shape[1:])}"


def _changes(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Change, ...]:
    names = list(dict.fromkeys((*a, *b)))
    return tuple(Change(n, a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n))
