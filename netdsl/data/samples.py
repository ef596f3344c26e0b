"""Samples and datasets, with seeded split and order."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from netdsl.backends.base import Backend
from netdsl.backends.lazy_batch import DeviceImages, LazyBatch
from netdsl.data.mixing import Mix, Mixer
from netdsl.data.pictures import BadPicture, Pictures, SkippedPictures
from netdsl.data.preprocessing import NO_PREPROCESSING, Preprocessing
from netdsl.data.rng import AUGMENT_KEY, SPLIT_KEY, make_rng
from netdsl.data.sampling import SHUFFLED, epoch_order
from netdsl.data.shard import WHOLE, Shard
from netdsl.data.stratification import choose_stratified
from netdsl.errors import fail
from netdsl.types import Array, dims
from netdsl.values import Symbol


@dataclass(frozen=True)
class Samples:
    """Images (bytes [N,H,W,C], which a device may also hold; floats of the net's input shape; or
    picture files) and labels: one class per image, int32 [N], or several labels per image, uint8
    [N, classes], 1 where it has the label."""

    images: Array | DeviceImages | LazyBatch | Pictures
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Array) -> Samples:
        return Samples(self.images[index], self.labels[index])

    @property
    def is_multi_label(self) -> bool:
        """Whether an image has several labels, or none, instead of one class."""
        return self.labels.ndim == 2

    @property
    def is_one_hot(self) -> bool:
        """Whether the images could have several labels, but each has exactly one."""
        return self.is_multi_label and bool((self.labels.sum(axis=1, dtype=np.int64) == 1).all())

    @property
    def targets(self) -> Array | None:
        """Several labels per image as a step takes them, float32 [N, classes]; else None."""
        return self.labels.astype(np.float32) if self.is_multi_label else None

    def count_by_class(self, classes: int) -> Array:
        """How many of the images are of each class, or have each label: [classes]."""
        if self.is_multi_label:
            return self.labels.sum(axis=0, dtype=np.int64)
        return np.bincount(self.labels, minlength=classes)

    def renumber(self, numbers: Array, classes: int) -> Samples:
        """The same samples with class i called `numbers[i]`, of so many classes."""
        if not self.is_multi_label:
            return Samples(self.images, numbers[self.labels])
        labels = np.zeros((len(self), classes), np.uint8)
        labels[:, numbers] = self.labels
        return Samples(self.images, labels)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Height, width and channels of every image; None for files."""
        return None if isinstance(self.images, Pictures) else tuple(self.images.shape[1:])

    @property
    def are_floats(self) -> bool:
        """Whether the images are floats instead of bytes."""
        return isinstance(self.images, np.ndarray) and self.images.dtype.kind == "f"

    @property
    def weights(self) -> Array:
        """1 for each sample, 0 for bad pictures that are skipped."""
        return self.find_weights(np.arange(len(self)))

    def find_weights(self, index: Array) -> Array:
        """The weights of some samples."""
        if isinstance(self.images, Pictures):
            return self.images[index].valid_mask()
        return np.ones(len(index), dtype=np.float32)

    def skip_bad_pictures(self, skipped_pictures: SkippedPictures) -> Samples:
        """The same samples, with bad pictures skipped and added to `skipped_pictures`."""
        if not isinstance(self.images, Pictures):
            return self
        return Samples(replace(self.images, skipped_pictures=skipped_pictures), self.labels)

    def checksum(self) -> int:
        labels = np.ascontiguousarray(self.labels)
        if isinstance(self.images, Pictures):
            return zlib.crc32(labels.data, self.images.checksum())
        return zlib.crc32(labels.data, zlib.crc32(np.ascontiguousarray(self.images).data))


def cache_on_device(samples: Samples, preprocess: Preprocessing, backend: Backend) -> Samples:
    """The same samples with their images copied to the device, if there is room and if batches with
    this preprocessing can be gathered from them there."""
    images = samples.images
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        return samples
    if not preprocess.is_spatial_only(images.shape[1:]):
        return samples
    device_images = backend.cache_images(images)
    return samples if device_images is None else Samples(device_images, samples.labels)


@dataclass(frozen=True)
class Dataset:
    """The contents of a source: training samples, class names, test samples, read only on demand,
    and optionally validation samples (else they are held out).

    `ignored_files` are sentences on what else the source holds. `bad_pictures` are the errors of
    pictures that were left out of the samples; `skipped_pictures` collects those found among the
    samples later, unless they raise an error.
    """

    train: Samples
    classes: tuple[str, ...]
    read_test: Callable[[], Samples] | None = None
    validation: Samples | None = None
    ignored_files: tuple[str, ...] = ()
    bad_pictures: tuple[BadPicture, ...] = ()
    skipped_pictures: SkippedPictures | None = None

    def skip_bad_pictures(self) -> Dataset:
        """The same dataset, with bad pictures skipped."""
        skipped_pictures, read_test, validation = SkippedPictures(), self.read_test, self.validation
        return replace(
            self,
            train=self.train.skip_bad_pictures(skipped_pictures),
            read_test=None
            if read_test is None
            else lambda: read_test().skip_bad_pictures(skipped_pictures),
            validation=None
            if validation is None
            else validation.skip_bad_pictures(skipped_pictures),
            skipped_pictures=skipped_pictures,
        )

    @property
    def picture_errors(self) -> tuple[str, ...]:
        """The errors of the skipped pictures found so far."""
        header_errors = tuple(e.diagnostics[0].message for e in self.bad_pictures)
        return header_errors + (self.skipped_pictures.messages if self.skipped_pictures else ())

    @property
    def fingerprint(self) -> str:
        """Identifies the training samples."""
        shape = self.train.image_shape
        images = f"images of {dims(shape)}" if shape else "pictures"
        return self._format_fingerprint(images, self.train.checksum())

    @property
    def name_fingerprint(self) -> str:
        """Like `fingerprint`, but without file lengths, which may change when damaged pictures are
        restored."""
        images, labels = self.train.images, np.ascontiguousarray(self.train.labels)
        if not isinstance(images, Pictures):
            return self.fingerprint
        checksum = zlib.crc32(labels.data, images.name_checksum())
        return self._format_fingerprint("pictures of these names", checksum)

    def _format_fingerprint(self, images: str, checksum: int) -> str:
        classes = f"{len(self.classes)} {'labels' if self.train.is_multi_label else 'classes'}"
        return f"{len(self.train):,} {images}, {classes}, checksum {checksum:08x}"


def split(samples: Samples, held_out: int | float, seed: int) -> tuple[Samples, Samples]:
    """A seeded split: sets `held_out` samples, or that share of them, apart for validation: the
    same share of each class or label, as nearly as integers allow, and never the last sample of a
    class."""
    n = len(samples)
    count = held_out if isinstance(held_out, int) else round(held_out * n)
    if count == 0 and held_out:
        raise fail(
            f"a share of {held_out} of {n:,} samples rounds to 0", help="0 holds out nothing"
        )
    help = "`validation` is a count, or a share below 1; set a smaller value"
    if count >= n:
        raise fail(f"{count:,} samples cannot be held out of {n:,}", help=help)
    if not samples.is_multi_label and count > n - np.count_nonzero(np.bincount(samples.labels)):
        message = f"{count:,} samples held out of {n:,} leave no training samples of a class"
        raise fail(message, help=help)
    order = make_rng(seed, SPLIT_KEY).permutation(n)
    is_held_out = choose_stratified(samples.labels, count, order)
    return samples.take(np.flatnonzero(~is_held_out)), samples.take(np.flatnonzero(is_held_out))


@dataclass(frozen=True)
class Batch:
    """`labels` int32 [N], for mixed images those with the larger share; or the rows of labels
    [N, classes] of data with several labels per image. `weights` is 0 for samples that pad the last
    batch or replace a bad picture. `targets` float32 [N, classes] is the wanted distribution of
    mixed images, or 1 where an image has the label."""

    images: Array | LazyBatch
    labels: Array
    weights: Array
    targets: Array | None = None


def training_batches(
    samples: Samples,
    size: int,
    seed: int,
    epoch: int,
    first_image: int = 0,
    augment: Preprocessing = NO_PREPROCESSING,
    sampling: Symbol = SHUFFLED,
    shard: Shard = WHOLE,
    mixer: Mixer | None = None,
) -> Iterator[Batch]:
    """One epoch, starting at image `first_image` of an order that depends only on seed and epoch;
    the incomplete batch is dropped. The augmentation of an image depends only on seed, epoch and
    image; with balanced sampling on its place in the order, as an image may occur several times.
    Of each batch of `size` images, mixed by `mixer`, there is the part of `shard`: together the
    parts are the batch."""
    order, rows = epoch_order(samples.labels, sampling, seed, epoch)
    draws = augment.draw(make_rng(seed, AUGMENT_KEY + epoch), len(samples))
    own = np.arange(size)[shard.part(size)]
    for start in range(first_image, len(samples) - size + 1, size):
        index, drawn = order[start : start + size], rows[start : start + size]
        mix = mixer.draw(start // size, size) if mixer is not None else None
        places = own if mix is None else _add_partners(own, mix.partners)
        images = augment.prepare(samples.images, index, [d[drawn] for d in draws], places)
        labels = samples.labels[index[places]]
        weights = samples.find_weights(index[places])  # known after decoding
        # if none of the part can be used, all others were tried as their replacement
        if not weights.any() and not samples.find_weights(index).any():
            raise fail(f"none of the {size:,} pictures in a batch can be used")
        batch = Batch(images, labels, weights, Samples(images, labels).targets)
        yield batch if mixer is None else _mix(batch, mixer, mix, own, places)


def _add_partners(own: Array, partners: Array) -> Array:
    """The own places of a batch, then those of their partners that are not among them."""
    return np.concatenate([own, np.setdiff1d(partners[own], own)])


def _mix(batch: Batch, mixer: Mixer, mix: Mix | None, own: Array, places: Array) -> Batch:
    """The images in the `own` places of a batch, which are the first of `places`, mixed with those
    in the others."""
    targets = mixer.as_distribution(batch.labels)
    if mix is None:
        return replace(batch, targets=targets)
    position = np.zeros(len(mix.partners), int)
    position[places] = np.arange(len(places))
    partners = position[mix.partners[own]]
    mixed = mix(batch.images, batch.labels, batch.weights, targets, partners)
    images, labels, targets = mixed
    return Batch(images, labels, batch.weights[: len(own)], targets)


def group_batches(batches: Iterator[Batch], size: int) -> Iterator[tuple[Batch, ...]]:
    """Batches in groups of `size`; an incomplete group is dropped."""
    while len(group := tuple(islice(batches, size))) == size:
        yield group


def evaluation_batches(
    samples: Samples,
    size: int,
    transform: Preprocessing = NO_PREPROCESSING,
    shard: Shard = WHOLE,
) -> Iterator[Batch]:
    """All samples in order; the last batch is padded with samples of weight 0. Of several ranks,
    each gets every `shard.count`-th batch, and all the same number: some may get a last one of
    weight 0 alone."""
    n = len(samples)
    stride = size * shard.count
    for start in range(size * shard.rank, -(-n // stride) * stride, stride):
        numbers = np.arange(start, start + size)
        part = samples.take(np.unique(np.minimum(numbers, n - 1)))
        padded_index = np.minimum(np.arange(size), len(part) - 1)
        images = transform(part.images)[padded_index]
        weights = (numbers < n) * part.weights[padded_index]  # known after decoding
        padded = Samples(images, part.labels[padded_index])
        yield Batch(images, padded.labels, weights, padded.targets)
