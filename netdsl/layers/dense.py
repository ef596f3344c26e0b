"""Fully connected layers, and what is left out of training at random."""

from __future__ import annotations

import math
from typing import Any

from netdsl.layers.convolution import BIAS_PARAM, WEIGHT_PARAM, WeightSpec, add_bias, add_weight
from netdsl.layers.init import Fans
from netdsl.layers.layer import Layer, Site
from netdsl.parameter_types import Float, Integer
from netdsl.signature import Param, Signature
from netdsl.types import Node


def flatten(site: Site, x: Node) -> Node:
    """Reshapes to one row of values per sample."""
    n = x.type.shape[0]
    return site.b.reshape(x, shape=(n, math.prod(x.type.shape[1:]))) if x.type.rank != 2 else x


def _fc(site: Site, x: Node, units: int, **states: Any) -> Node:
    x = flatten(site, x)
    inputs = x.type.shape[1]
    spec = WeightSpec((units, inputs), Fans(inputs, units), (1,))
    w = add_weight(site, spec, states["weight"])
    return add_bias(site, site.b.matmul(x, w), states["bias"])


def _dropout(site: Site, x: Node, rate: float) -> Node:
    if not site.training or rate == 0:
        return x
    return site.b.dropout(x, site.seed, site.step, site.rank, key=site.path, rate=rate)


def _drop_path(site: Site, x: Node, rate: float) -> Node:
    """Dropout of one value per sample, which multiplies the rest of the sample."""
    if not site.training or rate == 0:
        return x
    n, b = x.type.shape[0], site.b
    ones = b.broadcast(b.const(1.0), shape=(n, *(1,) * (x.type.rank - 1)))
    kept = b.dropout(ones, site.seed, site.step, site.rank, key=site.path, rate=rate)
    return b.mul(x, kept)


LAYERS = (
    Layer(
        "fc",
        Signature("fc", (Param("units", Integer(1, 10**9)), BIAS_PARAM, WEIGHT_PARAM)),
        _fc,
        doc="fully connected: flattens its input, then has one weight for each input and unit",
        narrow=lambda arguments, widths: {"units": widths.narrow(arguments["units"])},
    ),
    Layer(
        "flatten",
        Signature("flatten"),
        flatten,
        doc="flattens height x width x channels into one row",
    ),
    Layer(
        "dropout",
        Signature(
            "dropout",
            (Param("rate", Float(0, below=1), 0.5, "fraction of the values that is dropped"),),
        ),
        _dropout,
        doc="sets a random share of the values to zero in training (Srivastava et al. 2014)",
    ),
    Layer(
        "drop_path",
        Signature(
            "drop_path",
            (Param("rate", Float(0, below=1), doc="fraction of the samples that is dropped"),),
        ),
        _drop_path,
        doc="stochastic depth, for the end of a residual branch: in training, sets the branch to "
        "zero for random samples and scales up the others (Huang et al. 2016)",
    ),
)
