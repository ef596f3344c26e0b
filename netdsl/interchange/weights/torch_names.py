"""The weights of a net by the names of another file: the matching of an import, reversed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netdsl.interchange.weights.match_errors import count_difference
from netdsl.interchange.weights.module_tree import module_tree
from netdsl.interchange.weights.tensor_files import ForeignTensors
from netdsl.interchange.weights.tensor_matching import check_names, find_modules, tensor_shapes
from netdsl.interchange.weights.torch_layout import COUNTER, Shape, module_forms
from netdsl.language.network import Network
from netdsl.text_escaping import escape_line
from netdsl.types import Array

_MAX_SHOWN = 4


@dataclass(frozen=True)
class NamedStates:
    """A state dict, and what is worth knowing about it."""

    tensors: Mapping[str, Array]
    notes: tuple[str, ...] = ()


def name_states(
    network: Network, states: Mapping[str, Array], given: ForeignTensors
) -> NamedStates:
    """The states of a net by the names and in the shapes of `given`, weights of the same net from
    another program; its heads may have another count of classes. What the net does not use, such
    as an auxiliary classifier, is copied from there. Raises NetError if the two do not match."""
    check_names(given)
    shapes = tensor_shapes(given)
    resized = _resize_heads(network, shapes)
    found: dict[str, Array] = {}
    wanted = {**shapes, **resized}
    for form, module in find_modules(network, wanted, given.origin):
        for key, state in form.states.items():
            name = module.states.get(key) or module.states[""]
            found[name] = state.to_torch(states[state.name]).reshape(wanted[name])
    copied = {n: np.ascontiguousarray(given.tensors[n]) for n in shapes if n not in found}
    counters = {n: np.zeros((), np.int64) for n in given.others if n.endswith(COUNTER)}
    heads = [n for n in resized if n in found]
    counts = [f"{resized[n][0]:,} classes instead of {shapes[n][0]:,}" for n in heads[:1]]
    notes = (
        _note("".join(counts), heads),
        _note("copied, because the net does not use them", list(copied)),
        _note(
            "left out, because they are not weights", [n for n in given.others if n not in counters]
        ),
    )
    return NamedStates(found | copied | counters, tuple(filter(None, notes)))


def _note(title: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(escape_line, names[:_MAX_SHOWN])) + ", ..." * (len(names) > _MAX_SHOWN)
    return f"{title}: {shown}" if names else ""


def _resize_heads(network: Network, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of the heads of a file if it had as many classes as the net; none if it has."""
    modules = list(module_tree(shapes).modules())
    difference = count_difference(module_forms(network), modules)
    if difference is None:
        return {}
    count, heads = difference
    return {m.states[k]: (count, *shape[1:]) for m in heads for k, shape in m.shapes.items()}
