"""Fusion of imported layers: an offset becomes a bias, a border padding, factors those of a
normalisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from netdsl.interchange.onnx_import.layer_records import BIAS, LayerRecord
from netdsl.interchange.padding_text import read_padding, write_padding
from netdsl.ops.windows import Pads
from netdsl.values import Size, Value

_WEIGHTED = ("conv", "depthwise", "convtranspose", "fc")
_OFFSET_NORMS = ("batchnorm", "layernorm", "instancenorm", "groupnorm")
_NORMS = (*_OFFSET_NORMS, "rmsnorm")
_NON_NEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")
_CLASS_LAYERS = ("softmax", "log_softmax")
Records = Mapping[str, LayerRecord]


def fuse(
    records: Records, outputs: Mapping[str, str]
) -> tuple[dict[str, LayerRecord], dict[str, str]]:
    """The records that the outputs need, with those fused that one layer expresses, and the
    outputs."""
    kept = needed_records(records, outputs.values())
    reader_counts = Counter(i for r in kept.values() for i in r.inputs)
    reader_counts.update(outputs.values())
    for record in kept.values():
        _make_bias(record, kept, reader_counts)
    renamed: dict[str, str] = {}
    for record in kept.values():
        record.inputs = [renamed.get(i, i) for i in record.inputs]
        change = _find_change(record, kept[record.inputs[0]]) if record.inputs else None
        if change is not None and reader_counts[record.inputs[0]] == 1:
            source = kept[record.inputs[0]]
            change(record, source)
            renamed[record.name] = source.name
            reader_counts[source.name] = reader_counts[record.name]
    for record in kept.values():
        if record.layer == "batchnorm" and reader_counts[record.inputs[0]] == 1:
            _drop_zero_bias(kept[record.inputs[0]])
    _nest_concats(kept.values())
    for record in kept.values():
        _fuse_border(record, kept)
        if record.layer == BIAS:
            _make_depthwise(record)
    found = {key: renamed.get(name, name) for key, name in outputs.items()}
    return needed_records(kept, found.values()), found


def _make_bias(record: LayerRecord, records: Records, reader_counts: Counter[str]) -> None:
    """Makes a number that is added to a product of one value the bias of that product."""
    if record.layer != "add" or len(record.inputs) != 2:
        return
    source, constant = (records[i] for i in record.inputs)
    is_number = constant.layer == "constant" and constant.inputs == [source.name]
    is_read_here = reader_counts[source.name] == 2  # by the sum, and for the shape of the constant
    if source.layer != "fc" or source.shape[-1] != 1 or not (is_number and is_read_here):
        return
    offsets = np.array([constant.arguments["value"]], np.float32)
    record.layer, record.inputs, record.arguments = BIAS, [source.name], {}
    record.states = {"bias": offsets}
    reader_counts[source.name] = 1


def _nest_concats(records: Iterable[LayerRecord]) -> None:
    """Where all inputs of a concatenation are the first ones of another, that reads its result:
    dense blocks, which exporters write as concatenations of all results so far."""
    known: dict[tuple[str, ...], str] = {}
    for record in records:
        if record.layer != "concat":
            continue
        inputs = tuple(record.inputs)
        known.setdefault(inputs, record.name)
        for count in range(len(inputs) - 1, 1, -1):
            if inputs[:count] in known:
                record.inputs = [known[inputs[:count]], *inputs[count:]]
                break


def needed_records(records: Records, outputs: Iterable[str]) -> dict[str, LayerRecord]:
    """The inputs, and what the outputs are computed from."""
    needed = set(outputs)
    for record in reversed(list(records.values())):
        if record.name in needed:
            needed.update(record.inputs)
    return {n: r for n, r in records.items() if n in needed}


def drop_final_softmax(
    records: Records, outputs: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The outputs without a softmax at their ends, and what was dropped: a net ends in scores."""
    found, dropped = {}, []
    for key, name in outputs.items():
        while records[name].layer in _CLASS_LAYERS and records[name].inputs:
            dropped.append(records[name].layer)
            name = records[name].inputs[0]
        found[key] = name
    return found, dropped


_Change = Callable[[LayerRecord, LayerRecord], None]


def _find_change(record: LayerRecord, source: LayerRecord) -> _Change | None:
    """How the layer before does the work of an offset or a factor, if it can."""
    if record.layer not in (BIAS, "scale"):
        return None
    has_factors = source.arguments.get("affine", True)
    if record.layer == "scale":
        return _add_factors if source.layer in _NORMS and not has_factors else None
    if source.layer in _WEIGHTED:
        return _add_bias
    if source.layer in _OFFSET_NORMS:
        return _add_offsets
    return _scale_with_bias if source.layer == "scale" and len(source.shape) == 3 else None


def _drop_zero_bias(source: LayerRecord) -> None:
    """Leaves out offsets of zero before a batch norm, which has its own."""
    bias = source.states.get("bias")
    if source.layer in _WEIGHTED and bias is not None and not bias.any():
        source.states = {k: v for k, v in source.states.items() if k != "bias"}
        source.arguments = {**source.arguments, "bias": False}


def _add_bias(record: LayerRecord, source: LayerRecord) -> None:
    offsets = record.states["bias"] + source.states.get("bias", np.float32(0))
    source.states = {**source.states, "bias": offsets}
    source.arguments = {k: v for k, v in source.arguments.items() if k != "bias"}


def _add_factors(record: LayerRecord, source: LayerRecord) -> None:
    gamma = record.states["gamma"]
    beta = {} if source.layer == "rmsnorm" else {"beta": np.zeros_like(gamma)}
    source.states = {**source.states, "gamma": gamma, **beta}
    source.arguments = {k: v for k, v in source.arguments.items() if k != "affine"}


def _add_offsets(record: LayerRecord, source: LayerRecord) -> None:
    offsets = record.states["bias"]
    gamma = source.states.get("gamma", np.ones_like(offsets))
    beta = source.states.get("beta", np.zeros_like(offsets)) + offsets
    source.states = {**source.states, "gamma": gamma, "beta": beta}
    source.arguments = {k: v for k, v in source.arguments.items() if k != "affine"}


def _scale_with_bias(record: LayerRecord, source: LayerRecord) -> None:
    weight = source.states["gamma"]
    source.layer, source.arguments = "depthwise", {"kernel": Size((1, 1))}
    source.states = {"weight": weight.reshape(-1, 1, 1, 1), "bias": record.states["bias"]}


def _make_depthwise(record: LayerRecord) -> None:
    """An offset by itself, as a convolution of 1x1 of each channel."""
    record.layer, record.arguments = "depthwise", {"kernel": Size((1, 1))}
    ones = np.ones((record.shape[-1], 1, 1, 1), np.float32)
    record.states = {"weight": ones, **record.states}


def _fuse_border(record: LayerRecord, records: Records) -> None:
    """Makes a border of zeros the padding of the layer that reads it."""
    border = records.get(record.inputs[0]) if record.inputs else None
    if border is None or border.layer != "pad":
        return
    if not border.arguments.keys() <= {"height", "width"}:
        return
    pads = _add_pads(record, border, records[border.inputs[0]])
    if pads is None:
        return
    kernel, dilation = _sizes(record, "kernel"), _sizes(record, "dilation")
    arguments = {**record.arguments, "pad": write_padding(pads, kernel, dilation)}
    if record.layer == "avgpool":
        arguments["include_pad"] = True
    record.arguments = arguments
    record.inputs = [border.inputs[0]]


def _add_pads(record: LayerRecord, border: LayerRecord, source: LayerRecord) -> Pads | None:
    """The padding of a layer together with a border before it, or None if it would not be the
    same."""
    if record.layer not in ("conv", "depthwise", "avgpool", "maxpool"):
        return None
    kernel = _sizes(record, "kernel")
    own = read_padding(record.arguments.get("pad", 0), kernel, _sizes(record, "dilation"))
    height, width = (_sides(border.arguments.get(k, 0)) for k in ("height", "width"))
    is_pool = record.layer.endswith("pool")
    if is_pool and (own != ((0, 0), (0, 0)) or record.arguments.get("ceil")):
        return None
    is_inside = all(max(side) < k for side, k in zip((height, width), kernel, strict=True))
    if record.layer == "maxpool" and not (is_inside and source.layer in _NON_NEGATIVE):
        return None
    return (
        (own[0][0] + height[0], own[0][1] + height[1]),
        (own[1][0] + width[0], own[1][1] + width[1]),
    )


def _sides(value: Value) -> tuple[int, int]:
    if isinstance(value, tuple):
        low, high = value
        assert isinstance(low, int)
        assert isinstance(high, int)
        return low, high
    assert isinstance(value, int)
    return value, value


def _sizes(record: LayerRecord, key: str) -> tuple[int, int]:
    value = record.arguments.get(key, 1)
    if isinstance(value, Size):
        return value.dims[0], value.dims[1]
    return _sides(value)
