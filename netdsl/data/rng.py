"""Random numbers that depend only on the seed of a run and on what they are for."""

from __future__ import annotations

import numpy as np

SPLIT_KEY, AUGMENT_KEY, LIMIT_KEY, CLASSES_KEY, SHUFFLES_KEY, MIX_KEY = (
    2**k for k in range(32, 38)
)
"""Keys beyond any epoch number, which is the key of an epoch's order; numbers of epochs or classes
are added to them."""
NUMBERS_PER_COUNT = 4
"""How many numbers a generator draws at each count."""


def make_rng(seed: int, key: int, counter: int = 0) -> np.random.Generator:
    """A generator determined by a seed and a key, after `counter` times `NUMBERS_PER_COUNT` of its
    numbers."""
    pair = np.array([seed, key], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=pair, counter=counter))
