"""The workloads of the CPU benchmark: nets, batches, training or inference, equal for all sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SIZES = {"lenet": (28, 28, 1, 10), "resnet20": (32, 32, 3, 10)}
"""Height, width, channels and classes of nets that do not use those of ImageNet."""


@dataclass(frozen=True)
class Workload:
    """One net at one batch size; `net` is FILE:NET relative to the project's root, `peer` the name
    of the same net in torch_nets.py."""

    name: str
    net: str
    peer: str
    batch: int
    training: bool

    @property
    def drops(self) -> bool:
        """Whether training has dropout, which differs on each side."""
        return self.training and self.peer in ("alexnet", "googlenet", "vgg16")

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images [N,H,W,C] and labels, the same on all sides."""
        height, width, channels, classes = IMAGE_SIZES.get(self.peer, (224, 224, 3, 1000))
        rng = np.random.default_rng(0)
        shape = (self.batch, height, width, channels)
        images = rng.standard_normal(shape, dtype=np.float32)
        return images, rng.integers(0, classes, self.batch).astype(np.int32)


def draw_parameters(state: Any, network: Any) -> list[np.ndarray]:
    """Initialises a net's parameters in `state` and returns them in layer order. No scale of a
    normalisation is zero, or the layers behind it would have no effect."""
    parameters = network.parameters
    state.initialise(parameters, seed=1)
    rng = np.random.default_rng(1)
    for node in parameters:
        if node.name.endswith(".gamma"):
            gamma = rng.uniform(0.5, 1, node.type.shape).astype(node.type.dtype)
            state.backend.write(state.array(node.name), gamma)
    return [state.backend.download(state.array(n.name)) for n in parameters]


MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


def remove_dropout(graph: Any) -> Any:
    """The graph with all dropout rates set to zero."""
    from netdsl.types import Attrs

    nodes = {
        name: replace(n, attrs=Attrs({**n.attrs, "rate": 0.0})) if n.op == "dropout" else n
        for name, n in graph.nodes.items()
    }
    return replace(graph, nodes=nodes)


_NETS = {
    "lenet": "benchmarks/lenet.net:lenet",
    "resnet20": "models/resnet.net:resnet20",
    "resnet50": "models/resnet.net:resnet50",
    "googlenet": "models/googlenet.net:googlenet_bn",
    "alexnet": "models/alexnet.net:alexnet_2014",
    "vgg16": "models/vgg.net:vgg_d",
    "mobilenet": "models/mobilenet_v3.net:mobilenet_v3_large",
    "shufflenet": "models/shufflenet.net:shufflenet_v2",
    "efficientnet": "models/efficientnet.net:efficientnet_b0",
    "convnext": "models/convnext.net:convnext_t",
}


def _make_workload(peer: str, batch: int, training: bool) -> Workload:
    name = f"{peer}-{'train' if training else 'infer'}-{batch}"
    return Workload(name, _NETS[peer], peer, batch, training)


WORKLOADS = {
    w.name: w
    for w in (
        _make_workload("lenet", 64, True),
        _make_workload("resnet20", 128, True),
        _make_workload("resnet50", 8, True),
        _make_workload("googlenet", 8, True),
        _make_workload("alexnet", 8, True),
        _make_workload("vgg16", 4, True),
        _make_workload("resnet50", 8, False),
        _make_workload("alexnet", 8, False),
        _make_workload("vgg16", 8, False),
        _make_workload("resnet50", 1, False),
        _make_workload("mobilenet", 1, False),
        _make_workload("shufflenet", 1, False),
        _make_workload("efficientnet", 1, False),
        _make_workload("convnext", 1, False),
    )
}
