"""Random numbers that depend only on the seed of a run and on what they are for."""

from __future__ import annotations

import numpy as np

SPLIT_KEY, AUGMENT_KEY, LIMIT_KEY = 2**32, 2**33, 2**34
"""Second keys beyond any epoch number, which is the key of an epoch's order."""


def make_rng(seed: int, key: int) -> np.random.Generator:
    """A generator determined by a seed and a key."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], dtype=np.uint64)))
