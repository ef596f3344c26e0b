"""What to say about weights that do not fit a net, or fit it in several ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from netdsl.errors import NetError, fail
from netdsl.interchange.weights.module_tree import ForeignModule
from netdsl.interchange.weights.name_matching import Ambiguity
from netdsl.interchange.weights.torch_layout import ModuleForm, Shape
from netdsl.language.network import Network
from netdsl.text_escaping import escape_line
from netdsl.types import dims

_MAX_LISTED = 7
_OTHER_COUNT = (
    "the number of classes differs: write your own net: `use` the file, then "
    "`net mine = NET(classes=10)`"
)
_OTHER_NET = "are these the weights of another net? `netdsl summary FILE:NET` lists the layers"
_FOLDED_NET = (
    "the file has batch norms and the net has none: an exporter folded them into the layers "
    "before them; see docs/onnx.md for exporting a model that keeps them"
)

NO_SIDE_OUTPUTS = (
    "these are of side outputs, which only training uses: a net without them takes the weights, "
    "as in `net mine = NET(auxiliaries=no)` in a file that has a `use` of this one"
)


def check_shapes(
    network: Network, forms: Sequence[ModuleForm], modules: Sequence[ForeignModule], origin: str
) -> None:
    """Raises NetError with the layers and modules whose shapes the other side lacks, whatever their
    order, if a layer is left without a module."""
    missing, extra = _unpaired(forms, modules)
    if missing:
        notes = [
            *_list("only in the net", (_describe_form(f) for f in missing)),
            *_list("only in the file", (describe_module(m) for m in extra)),
        ]
        layers = "layer" if len(missing) == 1 else "layers"
        message = f"{origin} has no weights of the right shape for {len(missing):,} {layers} of"
        is_side = is_side_only(network, (x.name for f in missing for x in f.states.values()))
        is_count = count_difference(forms, modules) is not None
        other_net = _FOLDED_NET if _lacks_norms(forms, modules) else _OTHER_NET
        help = NO_SIDE_OUTPUTS if is_side else _OTHER_COUNT if is_count else other_net
        if missing == [forms[-1]] and not is_side:
            help = f"{help}; or draw this layer: `--except {_layer_glob(missing[0])}`"
        raise fail(f"{message} `{network.name}`", notes=notes, help=help)


def _lacks_norms(forms: Sequence[ModuleForm], modules: Sequence[ForeignModule]) -> bool:
    """Whether the file has running statistics, and no layer of the net has."""
    statistics = "running_mean"
    is_here = any(statistics in form.states for form in forms)
    return not is_here and any(statistics in module.shapes for module in modules)


def count_difference(
    forms: Sequence[ModuleForm], modules: Sequence[ForeignModule]
) -> tuple[int, list[ForeignModule]] | None:
    """The count of classes of a net, and the modules that have another one, if all layers without a
    module of their shapes are heads that differ in it alone; else None."""
    missing, extra = _unpaired(forms, modules)
    heads = [[m for m in extra if _differ_in_outputs(f, m)] for f in missing]
    found = {m.path: m for alike in heads for m in alike}
    here = {s.torch_shape[0] for f in missing for s in f.states.values()}
    there = {shape[0] for m in found.values() for shape in m.shapes.values()}
    is_head = len(here) == len(there) == 1 and all(heads)
    return (here.pop(), list(found.values())) if is_head else None


def _differ_in_outputs(form: ModuleForm, module: ForeignModule) -> bool:
    """Whether a layer and a module would have the same shapes with as many outputs."""
    shapes = {k: s.torch_shape for k, s in form.states.items()}
    return module.shapes.keys() == shapes.keys() and all(
        module.shapes[k] and math.prod(module.shapes[k][1:]) == math.prod(shape[1:])
        for k, shape in shapes.items()
    )


def order_error(net: str, forms: Sequence[ModuleForm], fitting: int, origin: str) -> NetError:
    """The error for modules of the right shapes in another order than the net's; the first
    `fitting` layers have one."""
    place = forms[min(fitting, len(forms) - 1)]
    return fail(
        f"{origin} has weights of all shapes of `{net}`, but the order and nesting of their names "
        "are not those of the net",
        notes=[f"{fitting:,} of {len(forms):,} layers fit, up to {_describe_form(place)}"],
        help="modules that belong together need a common prefix, and consecutive modules need "
        "numbers: block1.conv1, block1.conv2",
    )


def ambiguity_error(
    net: str, forms: Sequence[ModuleForm], question: Ambiguity, origin: str
) -> NetError:
    """The error for two assignments that compute different outputs."""
    other = dict(question.other)
    open_layers = [(i, m) for i, m in question.chosen if other.get(i) != m]
    notes = [
        f"`{forms[i].path}` could be `{escape_line(m.path)}`"
        + (f" or `{escape_line(other[i].path)}`" if i in other else "")
        for i, m in open_layers
    ]
    return fail(
        f"neither the names nor the shapes determine which weights of {origin} belong to "
        f"{len(open_layers):,} "
        f"layers of `{net}`",
        notes=_shorten(notes),
        help="name the modules in the file after the net's layers, as `netdsl summary` lists them",
    )


def _layer_glob(form: ModuleForm) -> str:
    return f'"{form.path}.*"'


def is_side_only(network: Network, states: Iterable[str]) -> bool:
    """Whether only side outputs need these states."""
    return network.graph.backward_slice(network.graph.outputs["main"]).isdisjoint(states)


def _unpaired(
    forms: Sequence[ModuleForm], modules: Sequence[ForeignModule]
) -> tuple[list[ModuleForm], list[ForeignModule]]:
    """The layers and modules that are left over when each layer takes a module of its shapes,
    whatever their order."""
    left = list(modules)
    missing = []
    for form in forms:
        fitting = next((k for k, m in enumerate(left) if form.fits(m.shapes)), None)
        if fitting is None:
            missing.append(form)
        else:
            del left[fitting]
    return missing, left


def _list(title: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [f"{title}:", *(f"  {line}" for line in _shorten(found))] if found else []


def _shorten(lines: list[str]) -> list[str]:
    more = len(lines) - _MAX_LISTED
    return [*lines[:_MAX_LISTED], *([f"and {more:,} more"] if more > 0 else [])]


def _describe_form(form: ModuleForm) -> str:
    shapes = {k: s.torch_shape for k, s in form.states.items()}
    return f"{form.path} ({form.layer}): {_shapes(shapes)}"


def describe_module(module: ForeignModule) -> str:
    return f"{escape_line(module.path)}: {_shapes(module.shapes)}"


def _shapes(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{escape_line(k)} {dims(shape)}".strip() for k, shape in shapes.items())
