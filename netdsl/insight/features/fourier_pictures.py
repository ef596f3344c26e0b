"""Pictures as Fourier coefficients of decorrelated colours, and the way back for gradients.

Gradient ascent on pixels gives high-frequency noise. In these coordinates all frequencies and
colours of natural pictures have about the same size, so that a step changes all of them alike
(Olah et al. 2017, "Feature Visualization", Distill, section "Preconditioning and
Parameterization"; the constants are those of its library, lucid).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from netdsl.types import Array

_INITIAL_DEVIATION = 0.01
_CONTRAST = 0.25
_COLOR_CORRELATION = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
"""The square root of the covariance of the colours of ImageNet's pixels: its rows are red, green
and blue (github.com/tensorflow/lucid, `lucid/optvis/param/color.py`)."""


@dataclass(frozen=True)
class FourierPictures:
    """Pictures [N, height, width, channels] with values from 0 to 1, as spectra: complex
    [N, height, width // 2 + 1, channels], scaled by 1/frequency, transformed and, of three
    channels, mixed to colours; a sigmoid limits their range."""

    height: int
    width: int
    channels: int

    @property
    def spectrum_shape(self) -> tuple[int, int, int]:
        return self.height, self.width // 2 + 1, self.channels

    def draw(self, seeds: Sequence[Sequence[int]]) -> Array:
        """Spectra of faint noise, one for each seed."""
        shape = (2, *self.spectrum_shape)
        drawn = np.stack([np.random.default_rng(seed).standard_normal(shape) for seed in seeds])
        return (_INITIAL_DEVIATION * (drawn[:, 0] + 1j * drawn[:, 1])).astype(np.complex64)

    def synthesize(self, spectra: Array) -> Array:
        """The linear part of `render`: real numbers [N, height, width, channels]."""
        size = (self.height, self.width)
        waves = np.fft.irfft2(spectra * self._scale, s=size, axes=(1, 2), norm="ortho")
        return waves @ self._mixture.T

    def apply_adjoint(self, pictures: Array) -> Array:
        """The adjoint of `synthesize` for the inner product of real and imaginary parts."""
        spectra = np.fft.rfft2(pictures @ self._mixture, axes=(1, 2), norm="ortho")
        return spectra * (self._scale * self._multiplicity)

    def render(self, spectra: Array) -> Array:
        """Pictures with values from 0 to 1."""
        return 1 / (1 + np.exp(-self.synthesize(spectra)))

    def pull_back(self, gradient: Array, pictures: Array) -> Array:
        """The gradient with respect to spectra, from that with respect to `pictures`, which
        `render` made of them."""
        return self.apply_adjoint(gradient * pictures * (1 - pictures))

    @cached_property
    def _scale(self) -> Array:
        """The factor of each frequency: [height, width // 2 + 1, 1]."""
        rows, columns = np.fft.fftfreq(self.height)[:, None], np.fft.rfftfreq(self.width)
        lowest = 1 / max(self.height, self.width)
        scale = _CONTRAST / np.maximum(np.hypot(rows, columns), lowest)
        return scale[..., None].astype(np.float32)

    @cached_property
    def _mixture(self) -> Array:
        if self.channels != 3:
            return np.eye(self.channels, dtype=np.float32)
        longest = np.linalg.norm(_COLOR_CORRELATION, axis=0).max()
        return (_COLOR_CORRELATION / longest).astype(np.float32)

    @cached_property
    def _multiplicity(self) -> Array:
        """How often a coefficient occurs in the full spectrum, in which those of negative
        frequencies are the conjugates of the others: [width // 2 + 1, 1]."""
        counts = np.full(self.width // 2 + 1, 2, np.float32)
        counts[0] = 1
        if self.width % 2 == 0:
            counts[-1] = 1
        return counts[:, None]
