"""The .net that an import writes: the net, a test of its counts and shapes, and how its images are
prepared."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from netdsl.data.config import STATISTICS, resolve_data
from netdsl.errors import NetError, fail
from netdsl.interchange.imported_net import ImportOptions, PixelNormalization
from netdsl.interchange.pixel_convention import normalizes_itself
from netdsl.interchange.structure.structured_net import StructuredNet
from netdsl.language.budget import Budget
from netdsl.language.format import format_text
from netdsl.language.network import Network
from netdsl.language.parse import parse, parse_expression
from netdsl.language.program import build_program, evaluate_section, reject_read
from netdsl.language.unparse import expression_text
from netdsl.text_escaping import escape_line
from netdsl.training.store.output_files import mark_import
from netdsl.types import dims

_MAX_SHAPES = 5
_MIN_CROPPED_SIDE = 96
"""Smaller images, such as those of CIFAR, are taken whole."""
_RESIZE_RATIO = 256 / 224
"""Short side of a picture to the crop taken of its middle, as most nets for ImageNet are
evaluated."""


def write_net_text(
    structured: StructuredNet,
    network: Network,
    origin: str,
    data: Sequence[str],
    change: str = "",
    train: Sequence[str] = (),
) -> str:
    """The text of a file: where the net comes from and what changed in its weights, the net itself,
    its test, and sections for data and training with these entries if there are any. Raises
    NetError if an entry is invalid."""
    lines = [*comment_lines(change), structured.text.rstrip(), ""]
    lines += [f"test {structured.name} {{", *_test_lines(network), "}"]
    if data or train:  # a recipe needs a data section
        lines += ["", "data {", *data, "}"]
    if train:
        lines += ["", "train {", *train, "}"]
    text = mark_import(escape_line(origin), format_text("\n".join(lines) + "\n"))
    program = build_program(parse(text, f"{structured.name}.net"), reject_read)
    section = program.find_section("data", None)
    if section is not None:
        budget = Budget()
        resolve_data(evaluate_section(program, section, budget), section.span)
    return text


def comment_lines(note: str) -> list[str]:
    """A note as comments."""
    return [f"# {line}" for line in textwrap.wrap(f"{note[:1].upper()}{note[1:]}.", 90) if note]


def _test_lines(network: Network) -> Iterator[str]:
    yield f"params == {network.params:_}"
    yield f"macs == {network.macs:_}"
    for label in _telling_labels(network):
        node = network.graph[network.nodes_by_path[label]]
        yield f'shape("{label}") == {dims(node.type.shape[1:])}'


def _telling_labels(network: Network) -> list[str]:
    """The last label of each size of images, the last few of them."""
    calls = {layer.path for layer in network.layers}
    by_size: dict[tuple[int, ...], str] = {}
    for path, node in network.nodes_by_path.items():
        found = network.graph[node]
        if "." not in path and path not in calls and found.op != "input":
            by_size[found.type.shape[1:3]] = path
    return list(by_size.values())[-_MAX_SHAPES:]


def settle_pixels(
    options: ImportOptions, pixels: PixelNormalization | None, origin: str
) -> tuple[ImportOptions, PixelNormalization | None]:
    """The options that are left for the weights of a model that normalises its pixels itself, and
    what it does with them if `--scale` says which it takes. Raises NetError for options that would
    normalise them again."""
    if pixels is None:
        return options, None
    if options.normalize is not None:
        raise fail(
            f"{origin} already normalises its pixels; `--normalize` would do it again",
            help="leave it out: the import reads the normalisation from the model",
        )
    scale = options.scale if options.scale != 1 else pixels.top
    if pixels.is_bytes and scale != pixels.top:
        raise fail(
            f"{origin} takes bytes, whose range is not 0 to {scale:g}",
            help="leave out `--scale`: the import reads the scale from the model",
        )
    factors = tuple(f * scale / pixels.top for f in pixels.factors)
    return replace(options, scale=1.0), replace(pixels, factors=factors, top=scale)


def data_entries(
    network: Network, options: ImportOptions, pixels: PixelNormalization | None
) -> tuple[list[str], str]:
    """The entries of the data section of a net for images, and a note about what is assumed.
    `--normalize` is as in a data section; otherwise it follows from what the model does with
    its `pixels`, or from the net's own first layers."""
    try:
        height, width, channels = network.image_shape
    except (NetError, ValueError):
        if options.normalize is not None:
            raise fail("`--normalize` is for nets whose only input is an image") from None
        return [], ""
    entries, note = [], ""
    if options.normalize is not None:
        entries.append(f"normalize = {_parse_statistics(options.normalize)}")
    elif pixels is not None:
        entries += _describe_pixels(pixels, options.is_bgr)
        what = f"normalises them itself: `{entries[0]}`" if entries else "scales them itself"
        note = f"the model takes pixels from 0 to {pixels.top:g} and {what}"
    elif normalizes_itself(network):
        note = "the net normalises pixels itself, and gets them from 0 to 1"
        note += "; `--scale 255` is for models that expect bytes" * (options.scale == 1)
    else:
        usual = "; `--normalize imagenet` is what most PyTorch weights expect"
        note = "pixels are scaled to 0..1 and not normalised" + usual * (channels == 3)
    if channels == 3 and min(height, width) >= _MIN_CROPPED_SIDE:
        side = round(min(height, width) * _RESIZE_RATIO)
        entries.append(f"eval_transform = [resize({side}), center_crop]")
    return entries, note


def _parse_statistics(text: str) -> str:
    """Statistics as a data section has them. Raises NetError if the text is no expression."""
    try:
        return expression_text(parse_expression(text, "--normalize "))
    except NetError as e:
        help = "write `imagenet`, or `by(mean=[0.5], std=[0.25])` with one number per channel"
        raise NetError(*(replace(d, help=help) for d in e.diagnostics)) from None


def _describe_pixels(pixels: PixelNormalization, is_bgr: bool) -> list[str]:
    """The statistics of red, green and blue that a factor and an offset for bytes come from."""
    factors, offsets = (np.asarray(v, np.float64) for v in (pixels.factors, pixels.offsets))
    if is_bgr:
        factors, offsets = factors[::-1], offsets[::-1]
    if (factors <= 0).any():
        raise fail("the net multiplies its pixels by a number that is not positive")
    std = 1 / (255 * factors)
    mean = 0 - offsets * std
    if np.allclose(std, 1, rtol=1e-5) and np.allclose(mean, 0, atol=1e-6):
        return []
    for name, known in STATISTICS.items():
        if known.mean and np.allclose(mean, known.mean, 1e-4) and np.allclose(std, known.std, 1e-4):
            return [f"normalize = {name}"]
    shown = ([float(f"{v:.7g}") for v in values] for values in (mean, std))
    return [f"normalize = by(mean={next(shown)}, std={next(shown)})"]
