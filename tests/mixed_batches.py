"""Batches mixed by themselves, for tests that make them by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from netdsl.data.mixing import Mixer
from netdsl.data.samples import Batch
from netdsl.signature import BoundCall


def mix_batches(
    batches: Iterator[Batch],
    mixings: Sequence[BoundCall],
    classes: int,
    seed: int,
    epoch: int,
    first: int = 0,
) -> Iterator[Batch]:
    """The whole batches of an epoch from batch `first` on, mixed."""
    mixer = Mixer(mixings, classes, seed, epoch)
    for number, batch in enumerate(batches, first):
        mix, own = mixer.draw(number, len(batch.labels)), mixer.as_distribution(batch.labels)
        if mix is None:
            yield replace(batch, targets=own)
            continue
        images, labels, targets = mix(batch.images, batch.labels, batch.weights, own, mix.partners)
        yield Batch(images, labels, batch.weights, targets)
