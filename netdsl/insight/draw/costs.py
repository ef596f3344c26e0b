"""What each layer costs: parameters, multiply-accumulates, memory of its output, or time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from netdsl.insight.draw.tree import Group, Item, NetTree
from netdsl.insight.profiler import Profile
from netdsl.insight.summary import summarise
from netdsl.language.network import Network
from netdsl.types import format_bytes

CostKind = Literal["params", "macs", "memory", "time"]
COST_LIMITS = (0.01, 0.02, 0.05, 0.1, 0.25)
"""The shares of the total that separate the colours."""


@dataclass(frozen=True)
class Costs:
    """The cost of each layer by its path. `title` says what it is, `format` writes an amount with
    its unit."""

    title: str
    by_path: Mapping[str, float]
    format: Callable[[float], str]

    @property
    def total(self) -> float:
        return sum(self.by_path.values())

    def sum_over(self, item: Item) -> float:
        """The cost of a box, or of all boxes in a group."""
        return sum(self.by_path.get(box.path, 0.0) for box in item.boxes)

    def find_level(self, item: Item) -> int:
        """The number of the colour, from 0 for little."""
        share = self.sum_over(item) / (self.total or 1.0)
        return sum(share >= limit for limit in COST_LIMITS)

    def describe(self, item: Item) -> str:
        """The amount and its share of the total; nothing if there is none."""
        amount = self.sum_over(item)
        if not amount:
            return ""
        return f"{self.format(amount)} · {_format_share(amount / self.total)}"

    @property
    def legend(self) -> tuple[str, ...]:
        """What each colour means, beginning with the least."""
        marks = [f"{100 * limit:g}" for limit in COST_LIMITS]
        middle = [f"{a}–{b} %" for a, b in pairwise(marks)]
        return (f"below {marks[0]} %", *middle, f"{marks[-1]} % and more")


def find_costs(network: Network, kind: Literal["params", "macs", "memory"]) -> Costs:
    """The costs of one image that follow from the shapes."""
    rows = summarise(network).layers
    if kind == "params":
        return Costs("parameters", {r.name: r.params for r in rows}, format_count)
    if kind == "macs":
        amounts = {r.name: float(r.macs) for r in rows}
        return Costs("multiply-accumulates", amounts, format_count)
    by_path = {r.name: float(r.bytes) for r in rows}
    return Costs("memory of outputs", by_path, lambda x: format_bytes(round(x)))


def find_time_costs(profile: Profile) -> Costs:
    """The time of each layer: that of the kernels whose main operation is its own."""
    amounts = {row.name: row.measurement.seconds for row in profile.layers}
    title = f"time, {profile.device}, batch {profile.batch}"
    return Costs(title, amounts, _format_time)


def describe_items(tree: NetTree, costs: Costs) -> tuple[dict[str, str], dict[str, int]]:
    """The line of text and the number of the colour of every box and group, by key."""
    notes, levels = {}, {}
    items: list[Item] = [*tree.root.groups, *tree.root.boxes]
    for item in items:
        notes[item.key] = costs.describe(item)
        if isinstance(item, Group) or item.family not in ("input", "output"):
            levels[item.key] = costs.find_level(item)
    return notes, levels


def format_count(x: float) -> str:
    """A count with three digits: `1.82 G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if x >= 0.9995 * size:
            return f"{x / size:.3g} {unit}"
    return f"{x:.3g}"


def _format_time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.3g} µs"


def _format_share(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"
