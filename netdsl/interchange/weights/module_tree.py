"""The names of weights as a tree of modules, as PyTorch's `state_dict` has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from netdsl.interchange.weights.torch_layout import COUNTER

Shape = tuple[int, ...]
_MODULE_STATES = frozenset(
    ("weight", "bias", "running_mean", "running_var", "weight_g", "weight_v")
)
"""Names that together are the states of one module, even if it has modules inside."""
_PARAMETRIZED = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
"""How newer versions of PyTorch name the parts of weight normalisation."""


@dataclass(frozen=True)
class ForeignModule:
    """A module with states, or a parameter on its own. `states` maps their names in the module to
    their names in the file, `shapes` to their shapes; that of a lone parameter is ``."""

    path: str
    states: Mapping[str, str]
    shapes: Mapping[str, Shape]


@dataclass(frozen=True)
class ModuleNode:
    """A node of the tree: a module, or what contains some. `runs` are its children in groups whose
    names differ in their numbers alone, each in the order of the numbers: `conv1`, `conv2`."""

    path: str
    module: ForeignModule | None
    runs: tuple[tuple[ModuleNode, ...], ...] = ()
    size: int = field(default=1)
    """How many modules it holds."""

    def modules(self) -> Iterator[ForeignModule]:
        if self.module is not None:
            yield self.module
        for run in self.runs:
            for child in run:
                yield from child.modules()


def module_tree(shapes: Mapping[str, Shape]) -> ModuleNode:
    """The tree of the names of weights and their shapes; counters of batches are left out."""
    names = {n: _components(n) for n in shapes if not n.endswith(COUNTER)}
    parents = {".".join(c[:i]) for c in names.values() for i in range(1, len(c) - 1)}
    states: dict[str, dict[str, str]] = {}
    for name, (*path, state) in names.items():
        parent = ".".join(path)
        is_alone = state not in _MODULE_STATES and (parent in parents or not path)
        states.setdefault(_join(parent, state) if is_alone else parent, {})[
            "" if is_alone else state
        ] = name
    modules = [
        ForeignModule(path, found, {k: tuple(shapes[n]) for k, n in found.items()})
        for path, found in states.items()
    ]
    return _build_node("", modules, 0)


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _components(name: str) -> tuple[str, ...]:
    for suffix, state in _PARAMETRIZED.items():
        if name.endswith(f".{suffix}"):
            name = f"{name.removesuffix(suffix)}{state}"
    return tuple(name.split("."))


def _build_node(path: str, modules: Iterable[ForeignModule], depth: int) -> ModuleNode:
    groups: dict[str, list[ForeignModule]] = {}
    own = None
    for module in modules:
        components = module.path.split(".") if module.path else []
        if len(components) == depth:
            own = module
        else:
            groups.setdefault(components[depth], []).append(module)
    if own is not None and not groups:
        return ModuleNode(path, own)
    children = {
        name: _build_node(_join(path, name), inside, depth + 1) for name, inside in groups.items()
    }
    if own is not None:
        children[""] = ModuleNode(path, own)
    size = sum(c.size for c in children.values())
    return ModuleNode(path, None, _numbered_runs(children), size)


_Rank = tuple[tuple[int, str], ...]
_NUMBER = re.compile(r"\d{1,4}x\d{1,4}|(\d{1,9})([a-z]?)(?![a-z0-9])|(\d{1,9})", re.IGNORECASE)


def _numbered_runs(
    children: Mapping[str, ModuleNode],
) -> tuple[tuple[ModuleNode, ...], ...]:
    runs: dict[str, list[tuple[_Rank, str]]] = {}
    for name in children:
        stem, rank = split_number(name)
        runs.setdefault(stem, []).append((rank, name))
    return tuple(tuple(children[name] for _, name in sorted(run)) for run in runs.values())


def split_number(name: str) -> tuple[str, _Rank]:
    """A name without its numbers, and these, each with a letter behind it: `layer2` is `layer#`
    and 2, `inception4a` is `inception#` and 4a. A single letter counts as one; a size such as `3x3`
    is not a number."""
    if len(name) == 1 and name.isalpha():
        return "#", ((0, name),)
    found = [m for m in _NUMBER.finditer(name) if "x" not in m[0].lower() or m[1]]
    rank = tuple((int(m[1] or m[3]), m[2] or "") for m in found if m[1] or m[3])
    return _NUMBER.sub(lambda m: "#" if m[1] or m[3] else m[0], name), rank
