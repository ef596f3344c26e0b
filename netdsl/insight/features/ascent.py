"""Gradient ascent on the spectra of pictures, seen through random small movements (Adam)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from netdsl.insight.features.fourier_pictures import FourierPictures
from netdsl.insight.features.resampling import Resampling, resample
from netdsl.limits import DEFAULT_ASCENT_STEPS
from netdsl.types import Array

WHITE = 255.0
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
"""Those of Kingma and Ba 2015; epsilon is relative to a picture's typical gradient, so that the
size of activations does not matter."""


@dataclass(frozen=True)
class AscentSettings:
    """Settings of gradient ascent: `rate` of Adam. At each step, the net sees the pictures moved by
    up to `shift` of their side, zoomed by up to `zoom` and rotated by up to `angle` degrees."""

    steps: int = DEFAULT_ASCENT_STEPS
    rate: float = 0.05
    shift: float = 0.05
    zoom: float = 0.1
    angle: float = 10.0
    seed: int = 1


class Landscape(Protocol):
    """The function that the ascent maximises."""

    def climb(self, pictures: Array) -> Array:
        """The gradient [N,H,W,C] at pictures of grey levels from 0 to 255, at the next step."""
        ...


def ascend(
    landscape: Landscape,
    form: FourierPictures,
    seeds: Sequence[Sequence[int]],
    settings: AscentSettings,
    on_step: Callable[[int], None] = lambda step: None,
) -> tuple[Array, Array]:
    """The pictures [N,H,W,C] of grey levels before and after the ascent. What becomes of a picture
    depends on its own seed and that of the settings, not on the other pictures."""
    spectra = form.draw(seeds)
    start = WHITE * form.render(spectra)
    optimizer = _Adam(spectra, settings.rate)
    rng = np.random.default_rng(settings.seed)
    for step in range(settings.steps):
        movement = _draw_movement(rng, form, settings)
        pictures = form.render(spectra)
        grey = WHITE / 2
        gradient = landscape.climb(grey + movement.apply(WHITE * pictures - grey))
        gradient = WHITE * movement.apply_adjoint(gradient)
        spectra = optimizer.step(spectra, form.pull_back(gradient, pictures))
        on_step(step + 1)
    return start, WHITE * form.render(spectra)


def _draw_movement(
    rng: np.random.Generator, form: FourierPictures, settings: AscentSettings
) -> Resampling:
    angle, zoom, down, right = rng.uniform(-1, 1, 4)
    return resample(
        form.height,
        form.width,
        settings.angle * angle,
        1 + settings.zoom * zoom,
        (settings.shift * form.height * down, settings.shift * form.width * right),
    )


class _Adam:
    """Adam for each real and imaginary part."""

    def __init__(self, spectra: Array, rate: float) -> None:
        self._rate, self._steps = rate, 0
        self._mean = np.zeros_like(_parts(spectra))
        self._square = np.zeros_like(self._mean)

    def step(self, spectra: Array, gradient: Array) -> Array:
        """The spectra after a step upwards."""
        self._steps += 1
        g = _parts(gradient)
        self._mean += (1 - _BETA1) * (g - self._mean)
        self._square += (1 - _BETA2) * (g * g - self._square)
        mean = self._mean / (1 - _BETA1**self._steps)
        deviation = np.sqrt(self._square / (1 - _BETA2**self._steps))
        typical = deviation.mean(axis=(1, 2, 3), keepdims=True)
        scale = deviation + _EPSILON * typical
        change = np.divide(mean, scale, out=np.zeros_like(mean), where=scale > 0)
        return spectra + (self._rate * change).astype(np.float32).view(np.complex64)


def _parts(spectra: Array) -> Array:
    """Real and imaginary parts side by side, as float64: the squares of small gradients underflow
    in float32."""
    return np.ascontiguousarray(spectra.astype(np.complex64)).view(np.float32).astype(np.float64)
