"""Weights of other programs for an existing net, by names, structure and shapes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from netdsl.file_io import split_file_and_name
from netdsl.file_kinds import CHECKPOINT, ONNX, RUN, recognise
from netdsl.interchange.class_names import ClassNames, read_class_names
from netdsl.interchange.imported_net import (
    ImportedNet,
    ImportOptions,
    PixelNormalization,
)
from netdsl.interchange.layer_graph import layer_graph
from netdsl.interchange.net_text import comment_lines, settle_pixels
from netdsl.interchange.non_finite import describe_non_finite
from netdsl.interchange.onnx_import.importer import read_onnx
from netdsl.interchange.pixel_convention import adapt_first_layers, describe_change
from netdsl.interchange.transfer_report import TransferReport
from netdsl.interchange.weights.checkpoint_text import weights_text
from netdsl.interchange.weights.drawn_layers import draw_layers, find_drawn_layers
from netdsl.interchange.weights.graph_weights import match_graph
from netdsl.interchange.weights.match_report import report_match
from netdsl.interchange.weights.tensor_files import read_tensors
from netdsl.interchange.weights.tensor_matching import WeightsMatch, match_own_names, match_tensors
from netdsl.interchange.weights.torch_export import load_network
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import load_program
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.training.store.output_files import check_outputs


def import_weights(source: Path, target: str, out: Path, options: ImportOptions) -> TransferReport:
    """Writes the weights of `source` for the net `target` (FILE.net:NET) to `out`, a checkpoint.
    Raises NetError if they do not fit."""
    path, name = split_file_and_name(target)
    check_outputs([out], [source, Path(path), *filter(None, [options.classes])])
    program = load_program(path)
    network = elaborate(program, name, Settings())
    drawn = find_drawn_layers(network, options.excluded)
    match, given = _match(network, source, drawn)
    options, pixels = settle_pixels(options, given.pixels, str(source))
    states = adapt_first_layers(network, match.states, options.is_bgr, options.scale)
    states |= draw_layers(network, drawn)
    text, data_note = weights_text(program, network, options, pixels)
    change = describe_change(options.is_bgr, options.scale)
    text = "\n".join((*comment_lines(change), text))
    scores = network.main_output.type.shape[-1]
    names = given.classes if options.classes is None else ()
    classes = ClassNames(names)
    if len(names) != scores:
        classes = read_class_names(options.classes, scores)
    checkpoint.save(out, Checkpoint(states, text, classes.names, {}, {}))
    notes = (*match.notes, change, data_note, classes.note, describe_non_finite(states))
    return report_match(match, network, str(source), out, [n for n in notes if n], drawn)


@dataclass(frozen=True)
class _Origin:
    """What a file says besides its weights: names of classes, and what it does with pixels."""

    classes: tuple[str, ...] = ()
    pixels: PixelNormalization | None = None


def _match(network: Network, source: Path, drawn: Collection[str]) -> tuple[WeightsMatch, _Origin]:
    """The states of a net from a file: a model by structure, a checkpoint of netdsl by its names or
    else by structure, other tensors by names and shapes."""
    kind = recognise(source)
    if kind is RUN:
        source, kind = source / f"best{checkpoint.SUFFIX}", CHECKPOINT
    if kind is ONNX:
        model = read_onnx(source, _image_size(network))
        return match_graph(network, model, str(source), drawn), _Origin(model.classes, model.pixels)
    if kind is not CHECKPOINT:
        return match_tensors(network, read_tensors(source), drawn), _Origin()
    content = checkpoint.load(source)
    states = checkpoint.inference_states(content.states)
    match = match_own_names(network, states, drawn)
    if match is None:
        other = load_network(content)
        model = ImportedNet(layer_graph(other), states)
        match = match_graph(network, model, str(source), drawn)
    return match, _Origin(content.classes)


def _image_size(network: Network) -> tuple[int, int] | None:
    """The height and width of a net's images; None if it takes other inputs."""
    shapes = [n.type.shape[1:] for n in network.graph.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        return None
    height, width, _ = shapes[0]
    return height, width
