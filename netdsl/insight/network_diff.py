"""Compares two nets: their figures, what differs, and which weights of one fit the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netdsl.language.network import LayerInfo, Network
from netdsl.types import dims


@dataclass(frozen=True)
class DiffEntry:
    """A layer or weight that differs between the nets: what it is in each (None: missing there)."""

    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class NetworkDiff:
    """A comparison of two nets. `transferable_weights` are the names of the states that fit both,
    `differing_weights` those that do not; `transferable_params` counts learnable values."""

    net_names: tuple[str, str]
    params: tuple[int, int]
    macs: tuple[int, int]
    differing_layers: tuple[DiffEntry, ...]
    transferable_weights: tuple[str, ...]
    differing_weights: tuple[DiffEntry, ...]
    transferable_params: int

    @property
    def is_identical(self) -> bool:
        return not self.differing_layers and not self.differing_weights

    def as_json(self) -> dict[str, Any]:
        changes = {"layers": self.differing_layers, "weights": self.differing_weights}
        return {
            "params": list(self.params),
            "macs": list(self.macs),
            "transfers": list(self.transferable_weights),
            "transferred_params": self.transferable_params,
            **{k: [{"name": c.name, "a": c.a, "b": c.b} for c in v] for k, v in changes.items()},
        }


def compare_networks(a: Network, b: Network) -> NetworkDiff:
    """The differences between two nets."""
    layers = [{x.path: _format_layer(x) for x in net.layers} for net in (a, b)]
    states = [{n.name: dims(n.type.shape) for n in net.graph.states} for net in (a, b)]
    transferable = tuple(n for n, shape in states[0].items() if states[1].get(n) == shape)
    sizes = {n.name: n.type.size for n in a.parameters}
    return NetworkDiff(
        (a.name, b.name),
        (a.params, b.params),
        (a.macs, b.macs),
        _diff_entries(*layers),
        transferable,
        _diff_entries(*states),
        sum(sizes.get(n, 0) for n in transferable),
    )


def _format_layer(x: LayerInfo) -> str:
    return f"{x.call}  {dims(x.output_type.shape[1:])}"


def _diff_entries(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[DiffEntry, ...]:
    names = list(dict.fromkeys((*a, *b)))
    return tuple(DiffEntry(n, a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n))
