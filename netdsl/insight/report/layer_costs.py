"""Time and memory of each layer of a run's net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from netdsl.insight.profiler import Profile, TimedLayer
from netdsl.insight.summary import Summary


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs: `params` is its number of weights, `macs` its multiply-accumulates for
    one image, `bytes` the memory of its output for one image, 0 for what is no layer, such as the
    loss. Seconds are those of a training step, None if it was not timed."""

    name: str
    output: str = ""
    params: int = 0
    macs: int = 0
    bytes: int = 0
    forward_seconds: float | None = None
    backward_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Both directions, with the update of its weights; 0 if it was not timed."""
        return (self.forward_seconds or 0) + (self.backward_seconds or 0)


@dataclass(frozen=True)
class NetCosts:
    """The layers of a net in its order, then what else a training step does, slowest first;
    `profile` is None if nothing was timed."""

    layers: tuple[LayerCost, ...]
    summary: Summary
    profile: Profile | None = field(repr=False)

    @property
    def largest_seconds(self) -> float:
        """The seconds of the slowest row."""
        return max((x.seconds for x in self.layers), default=0.0)

    @property
    def most_expensive(self) -> list[LayerCost]:
        """The rows by time, or if nothing was timed, by memory; the largest first."""
        return sorted(self.layers, key=lambda x: -(x.seconds if self.profile else x.bytes))

    def as_json(self) -> dict[str, Any]:
        timed = self.profile
        step = (
            {
                "step_ms": 1e3 * timed.seconds,
                "images_per_second": timed.images_per_second,
                "batch": timed.batch,
                "device": timed.device,
            }
            if timed
            else {}
        )
        layers = [
            {"name": x.name, "params": x.params, "macs": x.macs, "bytes": x.bytes}
            | ({"ms": 1e3 * x.seconds} if timed else {})
            for x in self.layers
        ]
        return {"params": self.summary.params, "macs": self.summary.macs, **step, "layers": layers}


def combine_costs(summary: Summary, profile: Profile | None) -> NetCosts:
    """The figures of a net with the times of its training step, if that was timed."""
    timed = {layer.name: layer for layer in profile.layers} if profile else {}
    rows = [
        LayerCost(r.name, r.output, r.params, r.macs, r.bytes, *_list_seconds(timed, r.name))
        for r in summary.layers
    ]
    known = {r.name for r in summary.layers}
    rest = [
        LayerCost(name, "", 0, 0, 0, *_list_seconds(timed, name))
        for name in timed
        if name not in known
    ]
    return NetCosts((*rows, *rest), summary, profile)


def _list_seconds(timed: Mapping[str, TimedLayer], name: str) -> tuple[float | None, float | None]:
    """Forward and backward; a layer whose work is fused into others takes none."""
    if not timed:
        return None, None
    if name not in timed:
        return 0.0, 0.0
    layer = timed[name]
    return (
        layer.phase_seconds("forward"),
        layer.phase_seconds("backward") + layer.phase_seconds("update"),
    )
