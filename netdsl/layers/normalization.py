"""Normalisation layers (batch, layer, instance and group, all from moments over some axes), and a
learnable scale."""

from __future__ import annotations

import math
from typing import Any

from netdsl.errors import fail
from netdsl.ir.collectives import LAST_BUCKET
from netdsl.ir.views import extract_row
from netdsl.layers.init import ChannelInitialiser
from netdsl.layers.layer import Layer, Site, advise_groups, channel_count, image_shape
from netdsl.parameter_types import Boolean, Choice, Float, Integer
from netdsl.signature import BoundCall, Param, Signature
from netdsl.types import Node
from netdsl.values import Symbol


def _apply_affine(site: Site, x: Node, affine: bool, gamma: BoundCall, beta: BoundCall) -> Node:
    """Applies a trainable factor and offset to each channel."""
    if not affine:
        return x
    shape = (channel_count(x),)
    y = site.b.mul(x, site.add_parameter("gamma", shape, gamma, is_per_use=True))
    return site.b.add(y, site.add_parameter("beta", shape, beta, is_per_use=True))


def _batchnorm(site: Site, x: Node, momentum: float, eps: float, sync: bool, **scale: Any) -> Node:
    """Ioffe & Szegedy 2015. Training uses the moments of the batch and moves the running moments
    towards them by `momentum` (with unbiased variance). Evaluation and frozen layers use the
    running moments. Of several ranks, each uses the moments of its own part of the batch, as in
    Goyal et al. 2017, with `sync` all use those of the whole batch."""
    b = site.b
    axes = tuple(range(x.type.rank - 1))
    c = channel_count(x)
    mean = site.add_buffer("running_mean", (c,), 0.0)
    variance = site.add_buffer("running_var", (c,), 1.0)
    if site.training and not site.is_frozen("running_mean"):
        m = _batch_moments(site, x, axes, (mean, variance), momentum, sync)
    else:
        rows = [b.reshape(v, shape=(1, c)) for v in (mean, variance)]
        m = b.concat(*rows, axis=0)
    return _apply_affine(site, b.normalize(x, m, axes=axes, eps=eps), **scale)


def _batch_moments(
    site: Site,
    x: Node,
    axes: tuple[int, ...],
    states: tuple[Node, Node],
    momentum: float,
    sync: bool,
) -> Node:
    """The moments that normalise a batch; moves the running ones, `states`, towards them."""
    b = site.b
    count = math.prod(x.type.shape[a] for a in axes) * (site.ranks if sync else 1)
    if count == 1:
        raise fail(
            "batch normalisation of a single value per channel has no variance",
            help="use a larger batch, or `layernorm`, which does not depend on the batch",
        )
    m = b.moments(x, axes=axes)
    total, share = m, 1.0
    if site.ranks > 1 and sync:
        total = m = _merge_moments(site, m)
    elif site.ranks > 1:
        total, share = b.all_reduce(m, bucket=LAST_BUCKET), 1 / site.ranks
    unbiased = (share, share * count / (count - 1))
    for i, (state, factor) in enumerate(zip(states, unbiased, strict=True)):
        value = b.mul(extract_row(b, total, i), b.const(factor))
        site.update(state, b.ema(state, value, decay=1 - momentum))
    return m


def _merge_moments(site: Site, m: Node) -> Node:
    """The moments of the batches of all ranks, which are of equal size (Chan et al. 1979)."""
    b = site.b
    mean, variance = extract_row(b, m, 0), extract_row(b, m, 1)
    whole_mean = site.mean_over_ranks(mean)
    deviation = b.sub(mean, whole_mean)
    whole_variance = site.mean_over_ranks(b.add(variance, b.mul(deviation, deviation)))
    rows = (b.reshape(v, shape=(1, *v.type.shape)) for v in (whole_mean, whole_variance))
    return b.concat(*rows, axis=0)


def _normalize_over(site: Site, x: Node, axes: tuple[int, ...], eps: float) -> Node:
    return site.b.normalize(x, site.b.moments(x, axes=axes), axes=axes, eps=eps)


def _layernorm(site: Site, x: Node, axis: str, eps: float, **scale: Any) -> Node:
    """Ba et al. 2016: moments of each sample over all its values, or of each pixel over its
    channels, as in transformers and ConvNeXt (Liu et al. 2022)."""
    return _apply_affine(site, _normalize_over(site, x, _value_axes(x, axis), eps), **scale)


def _rmsnorm(site: Site, x: Node, axis: str, eps: float, affine: bool, gamma: BoundCall) -> Node:
    """Zhang & Sennrich 2019: divided by the root of the mean square, without a mean or an
    offset."""
    b = site.b
    square = b.reduce_mean(b.mul(x, x), axes=_value_axes(x, axis), keepdims=True)
    y = b.div(x, b.sqrt(b.add(square, b.const(eps))))
    if not affine:
        return y
    return b.mul(y, site.add_parameter("gamma", (channel_count(x),), gamma, is_per_use=True))


def _value_axes(x: Node, axis: str) -> tuple[int, ...]:
    """The axes of a sample that share their moments."""
    return tuple(range(1 if axis == "all" else x.type.rank - 1, x.type.rank))


def _instancenorm(site: Site, x: Node, eps: float, **scale: Any) -> Node:
    """Ulyanov et al. 2016: moments of each sample and channel over the image."""
    image_shape(x, "instancenorm")
    return _apply_affine(site, _normalize_over(site, x, (1, 2), eps), **scale)


def _groupnorm(site: Site, x: Node, groups: int, eps: float, **scale: Any) -> Node:
    """Wu & He 2018: moments of each sample over the image and a group of channels."""
    c = channel_count(x)
    if c % groups:
        raise fail(
            f"{c} channels cannot be divided into {groups} groups",
            help=advise_groups(c, "groupnorm({})"),
        )
    b, axes = site.b, tuple(range(1, x.type.rank - 1))
    if axes:
        m = _group_moments(site, b.moments(x, axes=axes), groups)
        return _apply_affine(site, b.normalize(x, m, axes=axes, eps=eps), **scale)
    rows = b.reshape(x, shape=(x.type.size * groups // c, c // groups))
    y = b.reshape(_normalize_over(site, rows, (1,), eps), shape=x.type.shape)
    return _apply_affine(site, y, **scale)


def _group_moments(site: Site, m: Node, groups: int) -> Node:
    """Computes the moments of each channel's group from those of the channels (Chan et al. 1979):
    [2, samples, channels]."""
    b = site.b
    _, samples, c = m.type.shape
    group_size = c // groups
    if group_size == 1:
        return m
    rows, moments = (samples * groups, group_size), []
    mean, variance = (
        b.reshape(b.slice(m, start=(i, 0, 0), stop=(i + 1, samples, c), step=(1, 1, 1)), shape=rows)
        for i in (0, 1)
    )
    group_mean = b.reshape(b.reduce_mean(mean, axes=(1,)), shape=(rows[0], 1))
    deviation = b.sub(mean, group_mean)
    group_variance = b.reduce_mean(b.add(variance, b.mul(deviation, deviation)), axes=(1,))
    for value in (group_mean, group_variance):
        wide = b.broadcast(b.reshape(value, shape=(rows[0], 1)), shape=rows)
        moments.append(b.reshape(wide, shape=(1, samples, c)))
    return b.concat(*moments, axis=0)


def _scale(site: Site, x: Node, init: BoundCall) -> Node:
    """Layer scale (Touvron et al. 2021)."""
    return site.b.mul(x, site.add_parameter("gamma", (channel_count(x),), init))


_EPS = Param("eps", Float(above=0), 1e-5, "added to the variance", is_keyword_only=True)
_AXIS = Choice(("all", "channels"))
_INITIAL = ChannelInitialiser(allows_fans=True)
_AFFINE = (
    Param(
        "affine",
        Boolean(),
        True,
        "learn a factor and an offset for each channel",
        is_keyword_only=True,
    ),
    Param("gamma", _INITIAL, Symbol("ones"), "initial factor", is_keyword_only=True),
    Param("beta", _INITIAL, Symbol("zeros"), "initial offset", is_keyword_only=True),
)
_MOMENTUM = Param(
    "momentum",
    Float(0, 1),
    0.1,
    "weight of the new batch in the running moments",
    is_keyword_only=True,
)
_SYNC = Param(
    "sync",
    Boolean(),
    False,
    "use the moments of the whole batch if several ranks train on parts of it",
    is_keyword_only=True,
)

LAYERS = (
    Layer(
        "batchnorm",
        Signature("batchnorm", (_MOMENTUM, _EPS, _SYNC, *_AFFINE)),
        _batchnorm,
        doc="normalise each channel over the batch (Ioffe & Szegedy 2015)",
    ),
    Layer(
        "layernorm",
        Signature(
            "layernorm",
            (
                Param("axis", _AXIS, Symbol("all"), "values that share a mean and variance"),
                _EPS,
                *_AFFINE,
            ),
        ),
        _layernorm,
        doc="normalise each sample over all its values, or each pixel over its channels "
        "(Ba et al. 2016)",
    ),
    Layer(
        "rmsnorm",
        Signature(
            "rmsnorm",
            (
                Param("axis", _AXIS, Symbol("channels"), "values that share a mean square"),
                _EPS,
                Param(
                    "affine",
                    Boolean(),
                    True,
                    "learn a factor for each channel",
                    is_keyword_only=True,
                ),
                Param(
                    "gamma",
                    ChannelInitialiser(),
                    Symbol("ones"),
                    "initial factor",
                    is_keyword_only=True,
                ),
            ),
        ),
        _rmsnorm,
        doc="divide each pixel by the root mean square of its channels, or each sample by the "
        "root mean square of all its values (Zhang & Sennrich 2019)",
    ),
    Layer(
        "instancenorm",
        Signature("instancenorm", (_EPS, *_AFFINE)),
        _instancenorm,
        doc="normalise each channel of each sample (Ulyanov et al. 2016)",
    ),
    Layer(
        "groupnorm",
        Signature("groupnorm", (Param("groups", Integer(1, 65536), 32), _EPS, *_AFFINE)),
        _groupnorm,
        doc="normalise groups of channels of each sample (Wu & He 2018)",
        narrow=lambda arguments, w: {"groups": w.max_groups(arguments["groups"], w.narrowed)},
    ),
    Layer(
        "scale",
        Signature(
            "scale", (Param("init", ChannelInitialiser(), Symbol("ones"), "initial factor"),)
        ),
        _scale,
        doc="multiply each channel by a learnable factor; use a small one, such as scale(1e-6), "
        "at the end of a residual branch (Touvron et al. 2021)",
    ),
)
