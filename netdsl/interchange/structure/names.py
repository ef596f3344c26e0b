"""Names for labels, blocks and nets: from the graph's own where they say something."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from functools import cache

from netdsl.interchange.layer_graph import INPUT, LayerGraph, LayerNode
from netdsl.interchange.structure.groups import group_starts
from netdsl.interchange.structure.tree import (
    BlockItem,
    CallItem,
    Item,
    LabelItem,
    Sequence,
    StatementItem,
    map_sequences,
    walk_items,
)
from netdsl.language.evaluate import CONSTANTS
from netdsl.language.functions import FUNCTIONS
from netdsl.layers import LAYERS

_KEYWORDS = frozenset(
    "use block net test let shared output in if else for as expect or and not data train main "  # noqa: SIM905
    "input labels weights lr step update seed ema_rate identity same".split()
)
RESERVED = frozenset((*_KEYWORDS, *LAYERS, *CONSTANTS, *FUNCTIONS))
"""Names that no label, block or parameter gets."""
GENERIC = frozenset(("features", "layers", "blocks", "modules", "model", "module", "branch", "net"))
"""Names of modules that say nothing about them."""
STEM, TOP, HEAD = "stem", "top", "head"
"""Labels of the first statement, the one before the last, and the last."""
_LETTERS = {"convtranspose": "t", "hardswish": "h", "globalavgpool": "p", "hardsigmoid": "h"}
Path = tuple[str, ...]


def identifier(text: str) -> str:
    """A text as a name: letters, digits and `_`, beginning with a letter; may be empty."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    return re.sub(r"^\d+_*", "", name)[:40].strip("_")


def net_name(text: str) -> str:
    name = identifier(text) or "net1"
    return f"{name}_" if name in _KEYWORDS else name


def unique_name(name: str, taken: Container[str], numbered: Container[str] = ()) -> str:
    """A name that is not taken, with a number if needed. Calls of what is in `numbered` are called
    `conv1`, `conv2` and so on."""
    stem = name.rstrip("0123456789")
    if name in RESERVED or stem in numbered:
        name += "_"
    found, n = name, 1
    while found in taken:
        n += 1
        found = f"{name}_{n}" if name[-1].isdigit() else f"{name}{n}"
    return found


def letter_name(name: str, taken: Container[str]) -> str:
    """A name that is not taken, with a letter if needed: uses of a block are numbered, so that a
    number at the end of its name could collide."""
    name = name.rstrip("0123456789") or "part"
    if name in RESERVED:
        name += "_"
    found, n = name, 0
    while found in taken:
        n += 1
        found = f"{name}_{'abcdefghijklmnopqrstuvwxyz'[n % 26]}{'_' * (n // 26)}"
    return found


# ---- paths ------------------------------------------------------------------------------------


def node_path(node: LayerNode, is_top_level: bool) -> Path:
    """The modules that a node is in, from its name or else from its states' keys; may be empty. A
    name alone counts if it `is_top_level`, as beside names with paths."""
    if is_top_level or _is_path(node.name):
        path = _split_path(node.name)
        return path[:-1] or path
    for key in node.states.values():
        path = _split_path(key)
        return path[:-1] or path
    return ()


def _is_path(name: str) -> bool:
    return "." in name or "/" in name


@cache
def _split_path(name: str) -> Path:
    """`/layer1/layer1.0/conv1/Conv` is layer1, 0, conv1, Conv."""
    found: list[str] = []
    before = ""
    for part in filter(None, name.split("/")):
        inner = part.removeprefix(f"{before}.") if before else part
        found += filter(None, inner.split("."))
        before = part
    return tuple(found)


def common_path(paths: Iterable[Path]) -> Path:
    """What all paths that are not empty begin with."""
    known = [p for p in paths if p]
    if not known:
        return ()
    shortest = min(known, key=len)
    for i, part in enumerate(shortest):
        if any(p[i] != part for p in known):
            return shortest[:i]
    return shortest


@dataclass(frozen=True)
class Naming:
    """Names for the parts of one graph."""

    paths: Mapping[str, Path]

    def path_of(self, nodes: Iterable[str]) -> Path:
        return common_path(self.paths[n] for n in nodes)

    def name_of_uses(self, uses: SequenceOf[tuple[str, ...]], taken: Container[str]) -> str:
        """The module that most uses of a block are in the graph, by their nodes; may be empty."""
        names = Counter(self._module_name(nodes) for nodes in uses)
        name, count = names.most_common(1)[0]
        return name if 2 * count >= len(uses) and name not in taken else ""

    def _module_name(self, nodes: tuple[str, ...]) -> str:
        path = self.path_of(nodes)
        name = identifier(path[-1]).rstrip("0123456789_").lower() if path else ""
        return name if len(name) > 1 and name not in RESERVED | GENERIC else ""


def graph_naming(graph: LayerGraph) -> Naming:
    """The paths of nodes, without what most of them begin with: `features` says nothing."""
    has_paths = 2 * sum(map(_is_path, graph.nodes)) > len(graph.nodes)
    paths = {n.name: node_path(n, has_paths) for n in graph.nodes.values()}
    depth = _common_depth([p for p in paths.values() if p])
    return Naming({n: p[depth:] if len(p) > depth else p for n, p in paths.items()})


def _common_depth(paths: SequenceOf[Path]) -> int:
    """How many leading segments four of five paths have in common."""
    depth = 0
    while True:
        counts = Counter(p[: depth + 1] for p in paths if len(p) > depth + 1)
        if not counts or counts.most_common(1)[0][1] * 5 < len(paths) * 4:
            return depth
        depth += 1


def name_blocks(
    chains: list[Sequence],
    blocks: Mapping[str, BlockItem],
    naming: Naming,
    taken: Collection[str],
) -> tuple[list[Sequence], dict[str, BlockItem]]:
    """Chains and blocks with names for the blocks, each of which stands behind those it uses."""
    uses: dict[str, list[tuple[str, ...]]] = {name: [] for name in blocks}
    for body in (*chains, *(b.body for b in blocks.values())):
        for item in walk_items(body):
            if isinstance(item, CallItem) and item.name in uses:
                uses[item.name].append(item.nodes)
    modules: dict[str, str] = {}
    for name in reversed([*blocks]):  # the largest block of a module gets its name
        if not _is_plain_unit(blocks[name].body):
            used = {*taken, *modules.values()}
            modules[name] = naming.name_of_uses(uses[name], used)
    names: dict[str, str] = {}
    found: dict[str, BlockItem] = {}

    def rename(sequence: Sequence) -> Sequence:
        return tuple(
            replace(i, name=names.get(i.name, i.name)) if isinstance(i, CallItem) else i
            for i in sequence
        )

    for name, block in blocks.items():
        body = map_sequences(block.body, rename)
        own = modules.pop(name, "")
        used = {*taken, *found, *modules.values()}
        names[name] = letter_name(own or _content_name(body, found), used)
        found[names[name]] = replace(block, name=names[name], body=body)
    return [map_sequences(c, rename) for c in chains], found


def _is_plain_unit(body: Sequence) -> bool:
    """Whether a block is a few layers, whose initials name it best."""
    return len(body) < 5 and all(map(_initial, body))


def _content_name(body: Sequence, blocks: Mapping[str, BlockItem]) -> str:
    """A name for a block: the initials of its layers, or what its join is for."""
    joins = [i for i in body if isinstance(i, CallItem) and i.branches]
    if joins:
        return _join_name(joins[0], blocks)
    names = [_initial(i) for i in body]
    if all(names) and len(names) < 6:
        return "".join(names)
    last = body[-1]
    return "down" if isinstance(last, CallItem) and last.name.endswith("pool") else "stage"


def _initial(item: Item) -> str:
    """The letter of a layer; empty for anything else."""
    if not isinstance(item, CallItem) or item.name not in LAYERS or item.branches is not None:
        return ""
    return _LETTERS.get(item.name, item.name[0])


def _join_name(join: CallItem, blocks: Mapping[str, BlockItem]) -> str:
    branches = join.branches or ()
    if join.name == "mul" and not all(branches):
        return "se" if any(_calls_layer(b, "globalavgpool", blocks) for b in branches) else "gate"
    if join.name == "add":
        if any(_calls_layer(b, "depthwise", blocks) for b in branches):
            return "inverted"
        main = max(len(group_starts(b)) - 1 for b in branches)
        return {1: "residual", 2: "basic"}.get(main, "bottleneck")
    if join.name == "concat":
        return "inception" if len(branches) > 2 else "mix" if all(branches) else "dense"
    return "part"


def _calls_layer(items: Sequence, layer: str, blocks: Mapping[str, BlockItem]) -> bool:
    return any(
        i.name == layer or (i.name in blocks and _calls_layer(blocks[i.name].body, layer, blocks))
        for i in walk_items(items)
        if isinstance(i, CallItem)
    )


# ---- labels -----------------------------------------------------------------------------------


def label_statements(
    graph: LayerGraph, statements: tuple[StatementItem, ...], taken: Collection[str]
) -> tuple[tuple[StatementItem, ...], dict[str, str], dict[str, str]]:
    """The statements with labels, the labels by node, and the names of outputs. A label that a
    statement has already is only a wish."""
    used = set(taken)
    outputs = {"main": "main"}
    for name in graph.outputs:
        if name != "main":
            outputs[name] = unique_name(identifier(name) or "side", used)
            used.add(outputs[name])
    needed = needed_labels(statements)
    inputs = [n.name for n in graph.nodes.values() if n.layer == INPUT]
    needed |= {*inputs} if len(inputs) > 1 else set()
    numbered = {
        i.name
        for st in statements
        if not st.label and st.node not in needed and st.output is None
        for i in walk_items(st.items)
        if isinstance(i, CallItem)
    }
    labels: dict[str, str] = {}
    found = []
    for st in statements:
        wish = st.label
        if st.node in needed and not wish:
            own = identifier(_split_path(st.node)[-1])
            wish = own if st.node in inputs and own not in _KEYWORDS else "x"
        label = None
        if wish and st.output is None and st.node not in labels:
            label = unique_name(wish, used, numbered)
            used.add(label)
            labels[st.node] = label
        output = outputs[st.output] if st.output else None
        found.append(replace(st, label=label, output=output))
    return tuple(found), labels, outputs


def needed_labels(statements: tuple[StatementItem, ...]) -> set[str]:
    """Nodes whose values something reads that does not follow directly."""
    needed, current = set(), None
    for st in statements:
        needed |= {i.node for i in walk_items(st.items) if isinstance(i, LabelItem)}
        if st.source is not None and st.source != current:
            needed.add(st.source)
        if st.output is None:
            current = st.node
    return needed
