"""Activations that are no operator of their own: ReLU6 and the parametric ReLU."""

from __future__ import annotations

from netdsl.layers.init import ChannelInitialiser
from netdsl.layers.layer import Layer, Site, channel_count
from netdsl.parameter_types import Boolean
from netdsl.signature import BoundCall, Param, Signature
from netdsl.types import Node


def _relu6(site: Site, x: Node) -> Node:
    return site.b.clamp(x, low=0.0, high=6.0)


def _prelu(site: Site, x: Node, slope: BoundCall, shared: bool) -> Node:
    """He et al. 2015: the slope of the negative side is learned, one for each channel or one for
    all."""
    b = site.b
    a = site.add_parameter("slope", (1 if shared else channel_count(x),), slope)
    return b.add(b.relu(x), b.mul(a, b.minimum(x, b.const(0.0))))


LAYERS = (
    Layer(
        "relu6",
        Signature("relu6"),
        _relu6,
        doc="min(max(x, 0), 6) (Krizhevsky 2010)",
    ),
    Layer(
        "prelu",
        Signature(
            "prelu",
            (
                Param("slope", ChannelInitialiser(), 0.25, "initial slope of the negative side"),
                Param("shared", Boolean(), False, "one slope for all channels"),
            ),
        ),
        _prelu,
        doc="x, or a learnable slope * x where negative (He et al. 2015)",
    ),
)
