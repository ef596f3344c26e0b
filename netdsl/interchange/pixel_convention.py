"""Weights that expect other pixels than a net's: another order of channels, or another range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from netdsl.errors import fail
from netdsl.language.network import LayerInfo, Network
from netdsl.types import Array

_TRANSPARENT = frozenset(("identity", "dropout"))
"""Layers that give what they read."""


def adapt_first_layers(
    network: Network, states: Mapping[str, Array], is_bgr: bool, scale: float
) -> dict[str, Array]:
    """The states for images of red, green and blue from 0 to 1, from those for blue, green and red
    (`is_bgr`) or from 0 to `scale`: the weights of the convolutions that read the image are
    reversed along their input channels, and multiplied. A mean that is subtracted from the image,
    and a deviation that it is divided by, are given for red, green and blue from 0 to 1 too. Raises
    NetError if something else reads the image."""
    found = dict(states)
    if not is_bgr and scale == 1:
        return found
    for layer in _image_readers(network):
        name = f"{layer.weight_path}.weight"
        channels = layer.input_types[0].shape[-1]
        weight = found.get(name)
        if layer.layer_type != "conv" or weight is None or weight.shape[-1] != channels:
            raise fail(
                f"`{layer.path}` reads the image, and is no convolution of all its channels",
                layer.span,
                help="`--bgr` and `--scale` change the weights of such a convolution",
            )
        if is_bgr and channels != 3:
            raise fail(f"`--bgr` is for images of 3 channels, and these have {channels}")
        turned = weight[..., ::-1] if is_bgr else weight
        found[name] = np.ascontiguousarray(turned * np.float32(scale))
    return found


def _image_readers(network: Network) -> list[LayerInfo]:
    same = {network.image_input}
    readers = []
    for layer in network.layers:
        if same.intersection(layer.input_paths):
            if layer.layer_type in _TRANSPARENT:
                same.add(layer.path)
            else:
                readers.append(layer)
    shared = {layer.weight_path: layer for layer in readers}
    return list(shared.values())
