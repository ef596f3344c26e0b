"""The states of a net from the tensors of another program, matched by names and shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from netdsl.errors import fail
from netdsl.interchange.weights.expressions import ExpressionTable
from netdsl.interchange.weights.match_errors import ambiguity_error, check_shapes, order_error
from netdsl.interchange.weights.module_tree import ForeignModule, ModuleNode, module_tree
from netdsl.interchange.weights.name_matching import match_modules
from netdsl.interchange.weights.tensor_files import ForeignTensors
from netdsl.interchange.weights.torch_layout import COUNTER, ModuleForm, Shape, module_forms
from netdsl.language.network import Network
from netdsl.types import Array

_MAX_TENSORS, _MAX_NAME, _MAX_DEPTH = 20_000, 1_000, 60
_Pair = tuple[ModuleForm, ForeignModule]


@dataclass(frozen=True)
class MatchedModule:
    """A layer of the net, or several that share weights, and where its states come from. `shapes`
    are those in the file."""

    path: str
    source: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class WeightsMatch:
    """The states of a net in its own layout, and how they were found. `unused` are the tensors that
    the net does not use; `notes` say what else is worth knowing."""

    states: Mapping[str, Array]
    modules: tuple[MatchedModule, ...]
    unused: Mapping[str, Shape]
    notes: tuple[str, ...] = ()


def match_tensors(
    network: Network, given: ForeignTensors, drawn: Collection[str] = ()
) -> WeightsMatch:
    """Finds the tensor of every state of a net: by the net's own names, in its own layout or in
    PyTorch's, else by structure. Raises NetError with what does not fit, or is ambiguous. Layers
    `drawn` take none."""
    check_names(given)
    forms = _wanted_forms(network, drawn)
    shapes = tensor_shapes(given)
    tree = module_tree(shapes)
    named = _match_paths(forms, tree)
    if named is None or given.metadata.get("format") != "pt":
        own = _match_own_names(forms, given.tensors)
        if own is not None:
            return own
    if drawn:
        tree = module_tree(_fitting_shapes(forms, tree, shapes))
    pairs = named or _match_structure(network, forms, tree, given.origin)
    used = {name for _, module in pairs for name in module.states.values()}
    return WeightsMatch(
        {k: v for form, module in pairs for k, v in _convert(form, module, given)},
        tuple(_describe(form, module) for form, module in pairs),
        {n: shape for n, shape in shapes.items() if n not in used},
    )


def _wanted_forms(network: Network, drawn: Collection[str]) -> tuple[ModuleForm, ...]:
    return tuple(f for f in module_forms(network) if f.path not in drawn)


def _fitting_shapes(
    forms: Sequence[ModuleForm], tree: ModuleNode, shapes: Mapping[str, Shape]
) -> dict[str, Shape]:
    """The tensors of modules that fit some layer: the others are those of layers left out."""
    fitting = (m for m in tree.modules() if any(f.fits(m.shapes) for f in forms))
    return {name: shapes[name] for m in fitting for name in m.states.values()}


def tensor_shapes(given: ForeignTensors) -> dict[str, Shape]:
    """The shapes of weights by name, without PyTorch's counters."""
    return {n: tuple(t.shape) for n, t in given.tensors.items() if not n.endswith(COUNTER)}


def find_modules(network: Network, shapes: Mapping[str, Shape], origin: str) -> list[_Pair]:
    """The module of a file for each layer of a net, from the shapes of its weights by name. Raises
    NetError with what does not fit, or is ambiguous."""
    forms, tree = module_forms(network), module_tree(shapes)
    return _match_paths(forms, tree) or _match_structure(network, forms, tree, origin)


def check_names(given: ForeignTensors) -> None:
    """Raises NetError if a file has no weights, or more than any net."""
    if not given.tensors:
        raise fail(f"{given.origin} contains no weights")
    if len(given.tensors) > _MAX_TENSORS:
        raise fail(f"{given.origin} contains {len(given.tensors):,} tensors, over {_MAX_TENSORS:,}")
    if max(map(len, given.tensors)) > _MAX_NAME:
        raise fail(f"{given.origin} has names of more than {_MAX_NAME:,} characters")
    if max(name.count(".") for name in given.tensors) > _MAX_DEPTH:
        raise fail(f"{given.origin} has names of more than {_MAX_DEPTH} parts")


def match_own_names(
    network: Network, tensors: Mapping[str, Array], drawn: Collection[str] = ()
) -> WeightsMatch | None:
    """The match of tensors that have the net's own names and shapes, but for the layers `drawn`, as
    in a checkpoint; None if they have not."""
    return _match_own_names(_wanted_forms(network, drawn), tensors)


def _match_own_names(
    forms: Sequence[ModuleForm], tensors: Mapping[str, Array]
) -> WeightsMatch | None:
    states = {s.name: s.shape for form in forms for s in form.states.values()}
    if any(n not in tensors or tensors[n].shape != shape for n, shape in states.items()):
        return None
    modules = (
        MatchedModule(f.path, f.path, tuple(s.shape for s in f.states.values())) for f in forms
    )
    return WeightsMatch(
        {name: tensors[name] for name in states},
        tuple(modules),
        {n: tuple(v.shape) for n, v in tensors.items() if n not in states},
        ("the file has the net's own names and shapes: its values are used unchanged",),
    )


def _match_paths(forms: Sequence[ModuleForm], tree: ModuleNode) -> list[_Pair] | None:
    """The match of a file whose modules have the net's own paths."""
    modules = {m.path: m for m in tree.modules()}
    pairs = [(f, modules[f.path]) for f in forms if f.path in modules]
    is_whole = len(pairs) == len(forms) and all(f.fits(m.shapes) for f, m in pairs)
    return pairs if is_whole else None


def _match_structure(
    network: Network, forms: Sequence[ModuleForm], tree: ModuleNode, origin: str
) -> list[_Pair]:
    check_shapes(network, forms, list(tree.modules()), origin)
    found = match_modules(network, forms, tree)
    if isinstance(found, int):
        raise order_error(network.name, forms, found, origin)
    expressions, first = ExpressionTable(), dict(found.pairs)
    chosen = expressions.outputs(network, _sources(forms, first))
    for open_question in found.ambiguities:
        other = first | dict(open_question.other)
        if expressions.outputs(network, _sources(forms, other)) != chosen:
            raise ambiguity_error(network.name, forms, open_question, origin)
    return [(forms[i], module) for i, module in found.pairs]


def _sources(forms: Sequence[ModuleForm], assigned: Mapping[int, ForeignModule]) -> dict[str, str]:
    return {forms[i].path: module.path for i, module in assigned.items()}


def _convert(
    form: ModuleForm, module: ForeignModule, given: ForeignTensors
) -> Iterable[tuple[str, Array]]:
    """The states of a layer by their names here."""
    for key, state in form.states.items():
        name = module.states.get(key) or module.states[""]
        yield state.name, state.from_torch(given.tensors[name])


def _describe(form: ModuleForm, module: ForeignModule) -> MatchedModule:
    return MatchedModule(form.path, module.path, tuple(module.shapes.values()))
