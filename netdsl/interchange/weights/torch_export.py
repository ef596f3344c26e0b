"""The weights of a checkpoint as PyTorch has them: its names of states, its order of axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from netdsl.errors import fail
from netdsl.file_io import write_atomically
from netdsl.interchange.non_finite import describe_non_finite
from netdsl.interchange.transfer_report import TransferReport
from netdsl.interchange.weights.tensor_files import read_tensors
from netdsl.interchange.weights.torch_layout import COUNTER, module_forms
from netdsl.interchange.weights.torch_names import NamedStates, name_states
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.safetensors_file import as_bytes, encode_header
from netdsl.training.recipe.initial_weights import match_states, shapes_of
from netdsl.training.recipe.recipe import recipe_of_weights
from netdsl.training.store.checkpoint import Checkpoint, inference_states
from netdsl.training.store.output_files import PRODUCER
from netdsl.types import Array


def export_torch(content: Checkpoint, out: Path, names: Path | None = None) -> TransferReport:
    """Writes the weights of a checkpoint to a safetensors file that PyTorch's `load_state_dict`
    takes: modules have the paths of layers, or the names of the weights in the file `names`. Raises
    NetError if they do not fit their net, or the names do not."""
    network = load_network(content)
    given = inference_states(content.states)
    match_states(network.graph.states, shapes_of(given), (), content.origin)
    if names is None:
        named = NamedStates(torch_tensors(network, given))
    else:
        named = name_states(network, given, read_tensors(names))
    tensors = named.tensors
    ordered = sorted(tensors.items(), key=lambda item: (item[1].dtype != np.int64, item[0]))
    try:
        header = encode_header({"format": "pt"} | PRODUCER, ordered)
    except ValueError as e:
        raise fail(f"{out} could not be read back, so it is not written: {e}") from None
    write_atomically(out, header, *(as_bytes(array) for _, array in ordered))
    counts: dict[str, object] = {"net": network.name, "weights": str(out), "tensors": len(tensors)}
    what = "PyTorch's layouts" if names is None else f"the names of {names}"
    line = f"{out}: {len(tensors):,} tensors of `{network.name}` with {what}"
    notes = [n for n in (*named.notes, describe_non_finite(tensors)) if n]
    return TransferReport((line, *(f"note: {n}" for n in notes)), counts | {"notes": notes})


def load_network(content: Checkpoint) -> Network:
    """The net that a checkpoint carries. Raises NetError for all that is wrong in its text."""
    program = content.program()
    recipe = recipe_of_weights(program)
    return elaborate(program, recipe.net, Settings(shrink=recipe.small))


def torch_tensors(network: Network, states: Mapping[str, Array]) -> dict[str, Array]:
    """The states of a net as a `state_dict`, in the order in which the layers run."""
    found: dict[str, Array] = {}
    for form in module_forms(network):
        for name, state in form.states.items():
            found[f"{form.path}.{name}"] = state.to_torch(states[state.name])
        if "running_mean" in form.states:
            found[f"{form.path}.{COUNTER}"] = np.zeros((), np.int64)
    return found
