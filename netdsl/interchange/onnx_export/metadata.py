"""What an exported model says of itself: its .net, classes and preprocessing; and the checkpoint
that this gives back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from netdsl.data.config import DataConfig
from netdsl.errors import fail
from netdsl.interchange.onnx_export.exporter import (
    ExportedGraph,
    ExportOptions,
    restore_states,
)
from netdsl.json_schema import SchemaError, read_json
from netdsl.language.elaborate import elaborate
from netdsl.training.recipe.losses import Probabilities
from netdsl.training.recipe.recipe import recipe_of_weights
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.types import Array

NET, FORMAT, CLASSES, INPUT, BATCH_NORMS, PROBABILITIES = (
    "netdsl",
    "netdsl.format",
    "netdsl.classes",
    "netdsl.input",
    "netdsl.batchnorm",
    "netdsl.probabilities",
)
"""Keys of a model's metadata: the text of the net, its format, the names of the classes, what the
inputs expect, whether batch norms are `kept` or `folded`, and which function makes probabilities of
the scores (`softmax`, or `sigmoid` of each; left out if none does)."""
_MAX_STATES_PER_VALUE = 16
"""Values that the states of a net may have for each that its export has. Side outputs, which are
not exported, have states too."""


def describe_model(
    trained: Checkpoint,
    data: DataConfig,
    graph: ExportedGraph,
    options: ExportOptions,
    function: Probabilities | None = None,
) -> dict[str, str]:
    """The metadata of a model, as text by key; `function` makes probabilities of its scores."""
    inputs = [_describe_input(x.name, x.dtype, x.shape, data) for x in graph.inputs]
    return {
        NET: trained.net_text,
        FORMAT: str(trained.format),
        CLASSES: json.dumps(trained.classes),
        INPUT: json.dumps(inputs),
        BATCH_NORMS: "kept" if options.keeps_batch_norms else "folded",
    } | ({PROBABILITIES: function} if function else {})


def _describe_input(name: str, dtype: str, shape: tuple[int, ...], data: DataConfig) -> Any:
    """What is done with pixels from 0 to 255 before the net sees them; `is_included` says whether
    the model does it. What `eval_transform` lists comes first, and is never part of the model."""
    mean, std = data.statistics
    is_included = dtype == "uint8"
    layout = {True: "NHWC", False: "NCHW"}[is_included] if len(shape) == 3 else "N..."
    return {
        "name": name,
        "dtype": dtype,
        "layout": layout,
        "eval_transform": [str(c) for c in data.eval_transform],
        "scale": 1 / 255,
        "mean": mean,
        "std": std,
        "is_included": is_included,
    }


def restore_checkpoint(
    metadata: Mapping[str, str], constants: Mapping[str, Array], origin: str
) -> Checkpoint:
    """The checkpoint that a model was exported from, given its metadata and its constants by name.
    Raises NetError if they are damaged or do not fit each other."""
    try:
        about = {
            "net": metadata[NET],
            "format": read_json(metadata.get(FORMAT, "1")),
            "classes": read_json(metadata.get(CLASSES, "[]")),
            "metrics": {},
            "progress": {},
        }
        found = checkpoint.from_content(about, {}, origin)
    except SchemaError as e:
        raise fail(f"the metadata of {origin} is damaged: {e}", help=_REBUILD) from None
    recipe = recipe_of_weights(found.program())
    network = elaborate(found.program(), recipe.net, recipe.settings(training=False, batch=1))
    size = sum(n.type.size for n in network.graph.states)
    given = sum(math.prod(v.shape) for v in constants.values())
    if size > _MAX_STATES_PER_VALUE * given:
        raise fail(
            f"the net in the metadata of {origin} has {size:,} values, and the file {given:,}",
            help=_REBUILD,
        )
    options = ExportOptions(keeps_batch_norms=metadata.get(BATCH_NORMS) == "kept")
    states = restore_states(network, constants, options, origin)
    return Checkpoint(states, found.net_text, found.classes, {}, {}, origin, found.format)


_REBUILD = "use `--rebuild` to ignore the metadata"
