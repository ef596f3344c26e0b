"""Layer calls in one canonical form: arguments by name, without defaults, equal if they mean the
same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from netdsl.interchange.layer_graph import INPUT, LayerNode
from netdsl.layers import LAYERS
from netdsl.layers.convolution import Bias, Padding, resolve_padding
from netdsl.ops.windows import Pads
from netdsl.parameter_types import OPTIONAL_EXTENT, Extent, Float, Integer, Shape
from netdsl.signature import REQUIRED, BoundCall, Param, Signature
from netdsl.values import Argument, Call, Size, Symbol, Value

Arguments = tuple[tuple[str, Value], ...]
SAME = Symbol("same")
_INPUT_SIGNATURE = Signature(INPUT, (Param("shape", Shape()),))
CENTRED = ("conv", "depthwise", "local")
"""Layers whose `pad=same` means half of the kernel on each side, whatever the stride."""


def layer_signature(layer: str) -> Signature:
    """The signature of a layer, or of an input."""
    return _INPUT_SIGNATURE if layer == INPUT else LAYERS[layer].signature


def canonical_arguments(node: LayerNode) -> Arguments:
    """The arguments of a call in the order of its signature, without defaults.

    Padding that means `same` is `same`, for a 1x1 kernel too; the stride of a pooling that equals
    its kernel is dropped. Raises NetError if the arguments do not fit the layer."""
    signature = layer_signature(node.layer)
    bound = signature.bind(node.arguments, None)
    given = _values_by_name(signature, node.arguments)
    found: dict[str, Value] = {}
    for param in signature.params:
        value = bound[param.name]
        if isinstance(param.type, Padding) and node.layer in CENTRED:
            dilation = bound.get("dilation", (1, 1))
            if resolve_padding(value, bound["kernel"], dilation) == resolve_padding(
                "same", bound["kernel"], dilation
            ):
                found[param.name] = SAME
                continue
        if param.name in given and not _is_default(param, value):
            found[param.name] = _plain_value(param, value, given[param.name])
    is_window = layer_defaults(node.layer).get("stride", 1) is None
    if is_window and bound["stride"] == bound["kernel"]:
        found.pop("stride", None)
    return tuple(found.items())


def _values_by_name(signature: Signature, arguments: tuple[Argument, ...]) -> dict[str, Value]:
    positional = [p.name for p in signature.params if not p.is_keyword_only]
    return {
        a.name if a.name is not None else positional[i]: a.value for i, a in enumerate(arguments)
    }


def _is_default(param: Param, value: object) -> bool:
    if param.default is REQUIRED:
        return False
    default = param.type.accept(param.default)
    constants = (_constant(value), _constant(default))
    return value == default or (None not in constants and constants[0] == constants[1])


def _constant(value: object) -> float | None:
    """The value that an initialiser gives to all, if it does."""
    if not isinstance(value, BoundCall):
        return None
    if value.name == "constant":
        return float(value.arguments["value"])
    return {"zeros": 0.0, "ones": 1.0}.get(value.name)


def _plain_value(param: Param, bound: Any, given: Value) -> Value:
    """A value as it is best written."""
    match param.type:
        case Padding() if not isinstance(bound, str):
            return _plain_pads(bound)
        case Shape():
            return Size(bound) if len(bound) > 1 else bound[0]
        case Integer() | Float():
            return bound
        case Extent():
            return _plain_extent(param.name, bound)
        case Bias() if isinstance(given, int | float) and not isinstance(given, bool):
            return Call("constant", (Argument(None, given),))  # 1 must not equal `yes`
    if param.type == OPTIONAL_EXTENT and isinstance(bound, tuple):
        return _plain_extent(param.name, bound)
    return _without_spans(given)


def _plain_extent(name: str, pair: tuple[int, int]) -> Value:
    is_square = pair[0] == pair[1]
    return pair[0] if is_square and name not in ("kernel", "to") else Size(pair)


def _plain_pads(pads: Pads) -> Value:
    (top, bottom), (left, right) = pads
    if top != bottom or left != right:
        return (top, bottom, left, right)
    return top if top == left else Size((top, left))


def _without_spans(value: Value) -> Value:
    match value:
        case Symbol(name=name):
            return Symbol(name)
        case Call(name=name, arguments=arguments):
            return Call(
                name,
                tuple(replace(a, value=_without_spans(a.value), span=None) for a in arguments),
            )
        case tuple():
            return tuple(map(_without_spans, value))
    return value


@cache
def layer_defaults(layer: str) -> Mapping[str, Value]:
    """The defaults of a layer's parameters, as they are written."""
    params = layer_signature(layer).params
    return {p.name: p.default for p in params if p.default is not REQUIRED}
