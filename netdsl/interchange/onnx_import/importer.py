"""An ONNX model as a .net, and its weights beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from netdsl.errors import fail
from netdsl.file_io import write_atomically
from netdsl.file_kinds import CHECKPOINT, ONNX, TENSORS, check_kind, recognise
from netdsl.interchange.class_names import ClassNames, read_class_names
from netdsl.interchange.class_parameter import add_class_parameter
from netdsl.interchange.imported_net import ImportedNet, ImportOptions
from netdsl.interchange.net_text import data_entries, settle_pixels, write_net_text
from netdsl.interchange.non_finite import describe_non_finite
from netdsl.interchange.onnx_export.metadata import CLASSES, NET, PROBABILITIES, restore_checkpoint
from netdsl.interchange.onnx_import.graph import OnnxGraph, fix_size, read_graph
from netdsl.interchange.onnx_import.net import net_from_onnx, net_name
from netdsl.interchange.pixel_convention import adapt_first_layers, describe_change
from netdsl.interchange.structure.structured_net import state_keys, structure
from netdsl.interchange.transfer_report import TransferReport
from netdsl.json_schema import SchemaError, read_json
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.training.checks import has_scores
from netdsl.training.recipe.recipe import recipe_of_weights
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.training.store.output_files import check_net_output, check_outputs


@np.errstate(all="ignore")  # weights may be infinite
def read_onnx(path: Path, size: tuple[int, int] | None = None) -> ImportedNet:
    """The net of an ONNX file as layer calls, with its weights, whatever .net its metadata hold;
    for images of this `size` if it leaves theirs open. Raises NetError if it is damaged or has
    operators that cannot be expressed."""
    graph = read_graph(path)
    if size is not None and any(i.is_image_of_open_size for i in graph.inputs):
        graph = fix_size(graph, size)
    return replace(net_from_onnx(graph, net_name(path)), classes=_class_names(graph))


def _class_names(graph: OnnxGraph) -> tuple[str, ...]:
    """The names of the classes in the metadata of a model that netdsl exported; else none."""
    try:
        names = read_json(graph.metadata.get(CLASSES, "[]"))
    except SchemaError:
        return ()
    is_valid = isinstance(names, list) and all(isinstance(n, str) for n in names)
    return tuple(names) if is_valid and len(set(names)) == len(names) else ()


@np.errstate(all="ignore")
def import_onnx(
    source: Path, out: Path, weights: Path | None, options: ImportOptions
) -> TransferReport:
    """Writes the net of an ONNX file to `out`, and its weights as a checkpoint to `weights`. Raises
    NetError if it is damaged or has operators that cannot be expressed; then nothing is written."""
    outputs = [out] if weights is None else [out, weights]
    check_outputs(outputs, [source, *filter(None, [options.classes])])
    graph = read_graph(source)
    if options.size is not None:
        graph = fix_size(graph, options.size)
    carries_net = NET in graph.metadata and not options.is_rebuild
    if carries_net:
        _check_pixel_options(graph, options, weights)
    if weights is None and (options.classes is not None or options.is_bgr or options.scale != 1):
        raise fail(
            "`--classes`, `--bgr` and `--scale` apply to the weights, but no weights are written",
            help="`--weights FILE.safetensors` writes them next to the net",
        )
    found, notes = _restore(graph, options) if carries_net else _rebuild(graph, source, options)
    notes += filter(None, [describe_non_finite(found.states)])
    program = found.program()
    network = elaborate(program, recipe_of_weights(program).net, Settings())
    content = found.net_text.encode()
    check_net_output(out, content)
    if weights is not None:
        checkpoint.save(weights, found)
    write_atomically(out, content)
    return _report(source, out, weights, found, network, notes)


def _check_pixel_options(graph: OnnxGraph, options: ImportOptions, weights: Path | None) -> None:
    """Raises NetError for options about pixels, which the .net that a model carries describes."""
    if options.normalize is None and not options.is_bgr and options.scale == 1:
        return
    needs_weights = weights is None and (options.is_bgr or options.scale != 1)
    rest = " and write the weights with `--weights FILE.safetensors`" * needs_weights
    raise fail(
        f"{graph.origin} contains the .net that it was exported from, which defines its pixel "
        f"values",
        help="leave out `--normalize`, `--bgr` and `--scale`, or use `--rebuild` to ignore that "
        ".net" + rest,
    )


def _restore(graph: OnnxGraph, options: ImportOptions) -> tuple[Checkpoint, list[str]]:
    found = restore_checkpoint(graph.metadata, graph.constants, graph.origin)
    notes = ["the .net in its metadata is used unchanged"]
    if options.classes is not None:
        classes = read_class_names(options.classes, len(found.classes))
        found, notes = replace(found, classes=classes.names), [*notes, classes.note]
    return found, [n for n in notes if n]


def _rebuild(
    graph: OnnxGraph, source: Path, options: ImportOptions
) -> tuple[Checkpoint, list[str]]:
    imported = net_from_onnx(graph, net_name(source))
    options, pixels = settle_pixels(options, imported.pixels, graph.origin)
    structured = structure(imported.graph)
    network = structured.network
    structured = add_class_parameter(structured, network)
    keys = state_keys(network, structured, imported.graph)
    states = {name: np.ascontiguousarray(imported.states[key]) for name, key in keys.items()}
    states = adapt_first_layers(network, states, options.is_bgr, options.scale)
    entries, note = data_entries(network, options, pixels)
    change = describe_change(options.is_bgr, options.scale)
    recipe, recipe_note = _find_recipe(graph, network)
    text = write_net_text(structured, network, source.name, entries, change, recipe)
    scores = network.main_output.type.shape[-1]
    classes = ClassNames(_class_names(graph) if options.classes is None else ())
    if len(classes.names) != scores:
        classes = read_class_names(options.classes, scores)
    nothing = "the file contains no .net for `--rebuild` to ignore"
    sides = ", ".join(f"`{name}`" for name in imported.graph.outputs if name != "main")
    side = f"{sides}: a side output, which `predict` and `export` leave out" if sides else ""
    unused = nothing if options.is_rebuild and NET not in graph.metadata else ""
    several = _describe_several(network)
    notes = [*imported.notes, several, change, note, recipe_note, classes.note, side, unused]
    return Checkpoint(states, text, classes.names, {}, {}, str(source)), [n for n in notes if n]


def _find_recipe(graph: OnnxGraph, network: Network) -> tuple[list[str], str]:
    """The entries of a recipe by which the scores of a net that netdsl exported become
    probabilities as before, if that is not the default, and a note that says so."""
    if graph.metadata.get(PROBABILITIES) != "sigmoid" or not has_scores(network):
        return [], ""
    note = "its labels are independent, as its metadata says: `loss = bce` gives the probability "
    return ["loss = bce"], note + "of each by its sigmoid"


def _describe_several(network: Network) -> str:
    """What can be done with a net of several inputs; empty for any other net."""
    inputs = network.described_inputs
    if len(inputs) < 2:
        return ""
    return (
        f"the inputs are {', '.join(inputs)}: `check`, `summary`, `test`, `run`, `time` and "
        f"`export` work with such a net, and in Python calls do; training and prediction need nets "
        f"with a single input"
    )


def _report(
    source: Path,
    out: Path,
    weights: Path | None,
    found: Checkpoint,
    network: Network,
    notes: list[str],
) -> TransferReport:
    line_count = len(found.net_text.splitlines())
    values: Mapping[str, object] = {
        "source": str(source),
        "net": str(out),
        "weights": None if weights is None else str(weights),
        "name": network.name,
        "layers": len(network.layers),
        "lines": line_count,
        "params": network.params,
        "macs": network.macs,
        "notes": notes,
    }
    lines = [
        f"{source}: {len(network.layers):,} layers, {network.params:,} params, "
        f"{network.macs:,} MACs",
        *(f"note: {n}" for n in notes),
        f"{out}: net `{network.name}`, {line_count:,} lines",
    ]
    if weights is not None:
        lines.append(f"{weights}: {len(found.states):,} tensors")
    return TransferReport(tuple(lines), values)


def check_model(source: Path) -> None:
    """Raises NetError if a file is no model, with what to do about weights."""
    if recognise(source) in (TENSORS, CHECKPOINT):
        raise fail(
            f"{source} contains weights; only a model (.onnx) can be written as a .net",
            help="`--into FILE.net:NET -o x.safetensors` names the net to which they belong",
        )
    check_kind(source, ONNX)
