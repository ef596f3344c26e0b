"""The `data` section: its keys, and the preprocessing that becomes part of the graph."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.limit import Limit, LimitKind
from netdsl.data.mixing import MIXINGS
from netdsl.data.sampling import BALANCED, SHUFFLED
from netdsl.data.sources import NO_SOURCE, SOURCES
from netdsl.errors import NetError, Span, fail, suggest_alias, suggest_word
from netdsl.foreign_words import is_without_counterpart
from netdsl.ir.builder import Builder
from netdsl.parameter_types import (
    Float,
    Integer,
    ListOf,
    NoneLiteral,
    OneOf,
    TypeMismatch,
    WordType,
)
from netdsl.signature import BoundCall, CallOf, Param, Signature, TableType
from netdsl.types import Node
from netdsl.values import Argument, Call, Symbol, Value, format_value


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel, for pixels scaled to [0, 1]."""

    signature: Signature
    doc: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def _make_statistics(
    name: str, mean: Sequence[float], std: Sequence[float], doc: str = ""
) -> Statistics:
    means, deviations = (", ".join(f"{x:.4g}" for x in xs) for xs in (mean, std))
    return Statistics(
        Signature(name), doc or f"mean {means}; deviation {deviations}", tuple(mean), tuple(std)
    )


_IMAGENET = [0.485, 0.456, 0.406]
_POSITIVE = ListOf(Float(above=0))
STATISTICS: dict[str, Statistics] = {
    x.signature.name: x
    for x in (
        _make_statistics("mnist", [0.1307], [0.3081]),
        _make_statistics("fashion_mnist", [0.2860], [0.3530]),
        _make_statistics("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        _make_statistics("imagenet", _IMAGENET, [0.229, 0.224, 0.225]),
        _make_statistics(
            "imagenet_mean",
            _IMAGENET,
            [1 / 255],
            "the mean of `imagenet`, while values keep the scale of bytes, from -124 to 151: for "
            "nets without batch normalisation, as VGG was trained",
        ),
        Statistics(
            Signature("by", (Param("mean", ListOf(Float())), Param("std", _POSITIVE))),
            "your own numbers, one for all channels or one for each",
        ),
    )
}


@dataclass(frozen=True)
class _ValidationSize:
    """A number of images, or a share of them."""

    def accept(self, value: Value) -> int | float:
        if isinstance(value, float):
            return Float(0, below=1).accept(value)
        try:
            return Integer(0).accept(value)
        except TypeMismatch:
            raise TypeMismatch("a number of images (5000) or a share of them (0.1)") from None


_AUGMENTATIONS = ChainMap[str, Any](AUGMENTATIONS, MIXINGS)


@dataclass(frozen=True)
class _DeterministicAugmentation:
    """An augmentation that uses no random numbers."""

    def accept(self, value: Value) -> BoundCall:
        chosen = CallOf("augmentation", _AUGMENTATIONS).accept(value)
        if chosen.record.is_random:
            message = f"`{chosen.name}` is random, but evaluation must not be"
            deterministic = [f"`{n}`" for n, a in AUGMENTATIONS.items() if not a.is_random]
            help = f"evaluation can use {' and '.join(deterministic)}; put the others in `augment`"
            raise fail(message, chosen.span, help=help)
        return chosen


REFUSE, SKIP = Symbol("refuse"), Symbol("skip")


@dataclass(frozen=True)
class _Word(WordType):
    """One of two words."""

    first: Symbol
    second: Symbol

    @property
    def words(self) -> tuple[str, ...]:
        return self.first.name, self.second.name

    def accept(self, value: Value) -> Symbol:
        if value not in (self.first, self.second):
            raise TypeMismatch(f"`{self.first}` or `{self.second}`")
        return value


@dataclass(frozen=True)
class _SourceKind(TableType):
    """A source, or `none`."""

    @property
    def table(self) -> Mapping[str, Any]:
        return SOURCES

    def accept(self, value: Value) -> BoundCall:
        if value is None:
            return BoundCall("none", NO_SOURCE, {})
        if isinstance(value, str) and value not in SOURCES:
            message = f"`source` is only a path, {format_value(value)}"
            raise fail(message, help=_reader_help(value))
        if isinstance(value, Symbol | Call) and value.name not in SOURCES:
            _check_name(value.name, value.span)
        return CallOf("source", SOURCES).accept(value)


_READERS = "`folder`, `arrays` (.npz) or `csv` reads it"


def _reader_of(path: str) -> str:
    """The source that reads a file of that suffix, or a folder."""
    suffix = path.rpartition(".")[2].lower()
    return {"npz": "arrays", "npy": "arrays", "csv": "csv"}.get(suffix, "folder")


def _reader_help(path: str) -> str:
    """Which source reads a path; none reads the description of a data set."""
    suffix = path.rpartition(".")[2].lower()
    if suffix in ("yaml", "yml", "json", "toml"):
        return (
            f'no .{suffix} is read: `folder("DIR")` finds DIR/train/CLASS and DIR/val/CLASS itself'
        )
    return f"{_READERS}: `{_reader_of(path)}({format_value(path)})`"


def _check_name(name: str, span: Span | None) -> None:
    """Raises NetError for a name that no source has and that is no misspelt one."""
    if not is_without_counterpart(name, "source") and (
        suggest_alias(name, SOURCES) or suggest_word(name, SOURCES)
    ):
        return
    help = f'the sources are {", ".join(sorted(SOURCES))}; `folder("{name}")` reads the pictures '
    raise fail(f"unknown source `{name}`", span, help=f"{help}in a folder of that name")


SIGNATURE = Signature(
    "data",
    (
        Param(
            "source",
            _SourceKind(),
            None,
            "source of images and labels; not needed for predictions",
        ),
        Param(
            "batch",
            Integer(1, 65536),
            64,
            "images per training step; an epoch leaves out those that do not fill the last one",
        ),
        Param(
            "validation",
            _ValidationSize(),
            0.1,
            "number or share of the training images to hold out, if the source has no validation "
            "set",
        ),
        Param(
            "limit",
            LimitKind(),
            None,
            'number or share of the images to train on, or pairs by class: `[("CLASS", 0.1)]`',
        ),
        Param(
            "sampling",
            _Word(SHUFFLED, BALANCED),
            SHUFFLED,
            "`shuffled`: an epoch has each image once; `balanced`: it has equally many images of "
            "each class",
        ),
        Param(
            "normalize",
            OneOf((NoneLiteral(), CallOf("statistics", STATISTICS))),
            None,
            "mnist, imagenet, ..., or by(mean=[...], std=[...]); computed as part of the graph",
        ),
        Param(
            "augment",
            ListOf(CallOf("augmentation", _AUGMENTATIONS)),
            (),
            "augmentations of the training images, applied in order; mixup and cutmix come last",
        ),
        Param(
            "eval_transform",
            ListOf(_DeterministicAugmentation()),
            (),
            "transforms of the images for evaluation and prediction: resize, center_crop",
        ),
        Param(
            "on_bad_picture",
            _Word(REFUSE, SKIP),
            REFUSE,
            "`refuse`: a damaged picture ends the run, which is saved; `skip`: it is ignored",
        ),
    ),
    noun="key",
)


@dataclass(frozen=True)
class DataConfig:
    """A resolved `data` section."""

    source: BoundCall
    batch: int
    validation: int | float
    normalize: BoundCall | None
    augment: tuple[BoundCall, ...]
    eval_transform: tuple[BoundCall, ...]
    on_bad_picture: Symbol
    limit: Limit = None
    sampling: Symbol = SHUFFLED
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False)
    """The source spans of the entries."""

    @property
    def image_augmentations(self) -> tuple[BoundCall, ...]:
        """The augmentations of single images."""
        return tuple(c for c in self.augment if not c.record.mixes_labels)

    @property
    def mixings(self) -> tuple[BoundCall, ...]:
        """Those that mix the images of a batch."""
        return tuple(c for c in self.augment if c.record.mixes_labels)

    @property
    def is_skipping_bad_pictures(self) -> bool:
        """Whether bad pictures are skipped."""
        return self.on_bad_picture == SKIP

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, or of all, for pixels scaled to [0, 1]."""
        if self.normalize is None:
            return (0.0,), (1.0,)
        record: Statistics = self.normalize.record
        arguments: Any = self.normalize.arguments
        return (record.mean, record.std) if record.mean else (arguments["mean"], arguments["std"])

    def normalize_pixels(self, b: Builder, pixels: Node) -> Node:
        """Converts bytes to floats: scales them to [0, 1], then normalises them with the
        statistics."""
        x = b.cast(pixels, dtype=b.dtype)
        if self.normalize is None:
            return b.mul(x, b.const(1 / 255))
        mean, std = self.statistics
        channels = pixels.type.shape[-1]
        for what in (mean, std):
            if len(what) not in (1, channels):
                help = (
                    "`by(mean=[0.5], std=[0.5])` takes your own numbers, one for all channels "
                    "or one for each"
                )
                message = f"`normalize` has {len(what)} channels, but the image has {channels}"
                raise fail(message, self.spans.get("normalize"), help=help)
        scale, shift = (
            tuple(1 / (255 * s) for s in std),
            tuple(m / s for m, s in zip(*_broadcast_channels(mean, std), strict=True)),
        )
        return b.sub(b.mul(x, b.const(scale)), b.const(shift))


def _broadcast_channels(
    a: tuple[float, ...], b: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    n = max(len(a), len(b))
    return (a * n if len(a) == 1 else a), (b * n if len(b) == 1 else b)


def resolve_data(
    entries: Sequence[Argument], span: Any, homes: Mapping[str, str] = MappingProxyType({})
) -> DataConfig:
    """The configuration given by a section's entries; `homes` says of other keys where they
    belong. Raises NetError for invalid entries."""
    try:
        spans = {e.name: e.span for e in entries if e.name and e.span}
        return DataConfig(**SIGNATURE.bind(entries, span, homes=homes), spans=spans)
    except NetError as e:
        raise e.with_default_span(span) from None
