"""Lines of the nets of models/ as they were written and as `structure` writes them:
`python -m tests.structure_lines` prints the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from netdsl.interchange.layer_graph import LayerGraph, layer_graph
from netdsl.interchange.structure.structured_net import fold_graph
from netdsl.language import syntax as s
from netdsl.language.elaborate import elaborate
from netdsl.language.program import Program, load_program
from tests.conftest import ROOT

MODELS = sorted((ROOT / "models").rglob("*.net"))


@dataclass(frozen=True)
class ZooNet:
    """A net of a file in models/."""

    path: Path
    name: str

    @property
    def program(self) -> Program:
        return load_program(str(self.path))

    @property
    def graph(self) -> LayerGraph:
        return layer_graph(elaborate(self.program, self.name))

    def __str__(self) -> str:
        return f"{self.path.stem}:{self.name}"


def nets_of(path: Path) -> Iterator[ZooNet]:
    """The nets of a file that need no arguments."""
    program = load_program(str(path))
    return (ZooNet(path, n) for n in program.nets if program.has_all_defaults(n))


def find_net(spec: str) -> ZooNet:
    """The net of a file in models/, both by name: `resnet:resnet50`."""
    file, net = spec.split(":")
    return ZooNet(next(p for p in MODELS if p.stem == file), net)


def anonymous(graph: LayerGraph) -> LayerGraph:
    """The graph with numbers for names, as some exporters write it."""
    names = {n: f"t{i}" for i, n in enumerate(graph.nodes)}
    keys = {k: f"p{i}" for i, k in enumerate(graph.state_shapes)}
    nodes = (
        replace(
            node,
            name=names[node.name],
            inputs=tuple(names[i] for i in node.inputs),
            states={k: keys[v] for k, v in node.states.items()},
        )
        for node in graph.nodes.values()
    )
    return LayerGraph(
        graph.name,
        {n.name: n for n in nodes},
        {k: names[v] for k, v in graph.outputs.items()},
        {keys[k]: shape for k, shape in graph.state_shapes.items()},
    )


def count_text_lines(text: str) -> int:
    """Lines without blank ones and comments."""
    lines = (line.strip() for line in text.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def count_net_lines(program: Program, net: str) -> int:
    """The lines of a net with the blocks, nets and `let`s that it uses, of used files too."""
    items: dict[str, s.Item] = {**program.lets, **program.blocks, **program.nets}
    wanted, seen = [net], set()
    total = 0
    while wanted:
        name = wanted.pop()
        if name not in items or name in seen:
            continue
        seen.add(name)
        item = items[name]
        total += count_text_lines(item.span.text)
        for node in s.walk(item):
            match node:
                case s.Step(name=used) | s.CallExpr(name=used) | s.Name(name=used):
                    wanted.append(used)
                case s.Instance(base=used):
                    wanted.append(used)
    return total


def main() -> None:
    print("| net | calls | as written | structured | without names |\n|---|--:|--:|--:|--:|")
    for net in (n for path in MODELS for n in nets_of(path)):
        graph = net.graph
        counts = (
            len(graph.nodes),
            count_net_lines(net.program, net.name),
            *(count_text_lines(fold_graph(g).text) for g in (graph, anonymous(graph))),
        )
        print(f"| `{net}` | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
