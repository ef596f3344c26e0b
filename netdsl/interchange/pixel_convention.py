"""Weights that expect other pixels than a net's: another order of channels, or another range."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np

from netdsl.errors import fail
from netdsl.language.network import LayerInfo, Network
from netdsl.types import Array

_TRANSPARENT = frozenset(("identity", "dropout"))
"""Layers that give what they read."""
_CHANNEL_STATES = {
    "scale": ("gamma",),
    "batchnorm": ("gamma", "beta", "running_mean", "running_var"),
    "depthwise": ("weight", "bias"),
}
"""States of layers that compute each channel from itself, one value for each channel."""


def adapt_first_layers(
    network: Network, states: Mapping[str, Array], is_bgr: bool, scale: float
) -> dict[str, Array]:
    """The states for images of red, green and blue from 0 to 1, from those for blue, green and red
    (`is_bgr`) or from 0 to `scale`: the weights of the convolutions that read the image are
    reversed along their input channels, and multiplied; so are the layers before them that
    normalise each channel. A mean that is subtracted from the image, and a deviation that it is
    divided by, are given for red, green and blue from 0 to 1 too. Raises NetError if something else
    reads the image."""
    found = dict(states)
    if not is_bgr and scale == 1:
        return found
    if is_bgr and network.image_shape[-1] != 3:
        raise fail(
            f"`--bgr` is for images with 3 channels, but these have {network.image_shape[-1]}"
        )
    statistics = f"by(mean=[0], std=[{1 / scale:.7g}])"
    instead = f'; `--normalize "{statistics}"` scales the pixels instead' if scale != 1 else ""
    changed: set[str] = set()
    for layer, is_first in _image_readers(network):
        factor = np.float32(scale if is_first else 1)
        if layer.weight_path in changed or (factor == 1 and not is_bgr):
            continue
        changed.add(layer.weight_path)
        new = _adapt(layer, found, is_bgr, factor)
        if new is None:
            raise fail(
                f"`{layer.path}` reads the image, but is not a convolution of all its channels",
                layer.span,
                help="`--bgr` and `--scale` change the weights of such a convolution" + instead,
            )
        found |= {name: np.ascontiguousarray(v) for name, v in new.items()}
    return found


def describe_change(is_bgr: bool, scale: float) -> str:
    """A sentence about what `adapt_first_layers` does; empty if it does nothing."""
    done = ["reversed for red, green, blue"] * is_bgr
    done += [f"multiplied by {scale:g} for pixels from 0 to 1"] * (scale != 1)
    return f"the weights that read the image are {' and '.join(done)}" if done else ""


def normalizes_itself(network: Network) -> bool:
    """Whether the first layer that reads the image computes each channel from itself, or combines
    it with a constant."""
    readers = [x for x, is_first in _image_readers(network) if is_first]
    constants = {x.path for x in network.layers if x.layer_type == "constant"}
    direct = [x for x in network.layers if network.image_input in x.input_paths]
    return any(map(_is_channelwise, readers)) or any(
        not constants.isdisjoint(x.input_paths) for x in (*readers, *direct)
    )


def _adapt(
    layer: LayerInfo, states: Mapping[str, Array], is_bgr: bool, factor: np.float32
) -> dict[str, Array] | None:
    """The new states of a layer that reads the image; None if it is no such layer."""
    path, step = layer.weight_path, -1 if is_bgr else 1
    if not _is_channelwise(layer):
        weight = states.get(f"{path}.weight")
        channels = layer.input_types[0].shape[-1]
        if layer.layer_type != "conv" or weight is None or weight.shape[-1] != channels:
            return None
        return {f"{path}.weight": weight[..., ::step] * factor}
    names = [f"{p}.{x}" for p in {path, layer.path} for x in _CHANNEL_STATES[layer.layer_type]]
    found = {
        n: states[n].reshape(-1)[::step].reshape(states[n].shape) for n in names if n in states
    }
    factors = {"gamma": factor, "weight": factor, "running_mean": 1 / factor}
    if factor != 1 and not any(n.endswith((".gamma", ".weight")) for n in found):
        return None
    return {n: v * factors.get(n.rpartition(".")[2], np.float32(1)) for n, v in found.items()}


def _is_channelwise(layer: LayerInfo) -> bool:
    """Whether a layer computes each value from the one at its place."""
    if layer.layer_type != "depthwise":
        return layer.layer_type in _CHANNEL_STATES
    is_pointwise = layer.arguments.get("kernel") == (1, 1)
    return is_pointwise and layer.input_types[0].shape == layer.output_type.shape


def _image_readers(network: Network) -> list[tuple[LayerInfo, bool]]:
    """The layers that read the image, or a multiple of it, and those that read what normalises each
    of its channels; and whether they are the first to change it."""
    same, normalized, constants = {network.image_input}, set[str](), set[str]()
    readers = []
    for layer in network.layers:
        given = set(layer.input_paths)
        is_first = not same.isdisjoint(given)
        if layer.layer_type == "constant":
            constants.add(layer.path)
        elif not is_first and normalized.isdisjoint(given):
            continue
        elif layer.layer_type in _TRANSPARENT:
            (same if is_first else normalized).add(layer.path)
        elif is_first and _is_multiple(layer, same, constants):
            same.add(layer.path)
        else:
            readers.append((layer, is_first))
            if _is_channelwise(layer):
                normalized.add(layer.path)
    return readers


def _is_multiple(layer: LayerInfo, images: Set[str], constants: Set[str]) -> bool:
    """Whether a layer multiplies an image by constants."""
    given = layer.input_paths
    is_product = layer.layer_type == "mul" and sum(p in images for p in given) == 1
    return is_product and all(p in images or p in constants for p in given)
