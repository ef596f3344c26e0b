"""Lines of the nets of models/ as they were written and as `structure` writes them:
`python -m tests.structure_lines` prints the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from netdsl.interchange.layer_graph import LayerGraph, layer_graph
from netdsl.interchange.structure import fold_graph
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


def zoo_nets() -> Iterator[ZooNet]:
    for path in MODELS:
        program = load_program(str(path))
        yield from (ZooNet(path, n) for n in program.nets if program.has_all_defaults(n))


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
    print("| net | calls | as written | structured |\n|---|--:|--:|--:|")
    for net in zoo_nets():
        graph = net.graph
        lines = count_text_lines(fold_graph(graph).text)
        print(
            f"| `{net}` | {len(graph.nodes)} | {count_net_lines(net.program, net.name)} | {lines} |"
        )


if __name__ == "__main__":
    main()
