"""The table of a net: layer, output, parameters, multiply-accumulates, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from netdsl.language.network import Network
from netdsl.types import dims


@dataclass(frozen=True)
class LayerRow:
    """One layer, for one image; `bytes` is the memory of its output."""

    name: str
    op: str
    call: str
    output: str
    params: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """The figures of a net for one image in float32. `params` counts all `layers`, of which side
    outputs have `side_params`; `side_macs` is not included in `macs`. No output depends on the
    `unread_layers`."""

    net: str
    params: int
    macs: int
    activations: int
    side_params: int
    side_macs: int
    unread_layers: tuple[str, ...]
    layers: tuple[LayerRow, ...]

    def as_json(self) -> dict[str, Any]:
        layers = [
            {
                "name": r.name,
                "op": r.op,
                "output": r.output,
                "params": r.params,
                "macs": r.macs,
                "bytes": r.bytes,
            }
            for r in self.layers
        ]
        return {
            "params": self.params,
            "macs": self.macs,
            "activations": self.activations,
            "side_params": self.side_params,
            "side_macs": self.side_macs,
            "unread": list(self.unread_layers),
            "layers": layers,
        }


def summarise(network: Network) -> Summary:
    """The figures of a network; no weight is allocated."""
    rows = tuple(
        LayerRow(
            layer.path,
            layer.layer_type,
            layer.call,
            dims(layer.output_type.shape[1:]),
            network.layer_params(layer),
            network.cost(layer).macs // network.batch,
            layer.output_type.nbytes // network.batch,
        )
        for layer in network.layers
    )
    return Summary(
        network.name,
        network.params,
        network.macs,
        network.activations,
        network.side_params,
        network.side_macs,
        tuple(x.path for x in network.unread_layers),
        rows,
    )
