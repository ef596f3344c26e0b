"""What Python code asks of a .net file: its nets as networkx graphs."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from netdsl.file_io import split_file_and_name
from netdsl.insight.compile_target import CompileTarget, build_unoptimized_graph, prepare_target
from netdsl.ir.export import to_networkx
from netdsl.language.program import Program
from netdsl.language.program import load_program as program_of


@dataclass(frozen=True)
class NetFile:
    """A file and the net or recipe in it that was named; without a name, its first net."""

    program: Program
    name: str | None = None

    def graph(
        self, train: bool = False, batch: int | None = None, passes: bool = True
    ) -> nx.DiGraph:
        """The net as a networkx graph, your own to change: for inference, or with `train` the whole
        step of a recipe, its gradients and updates; without `passes` as the text says it, before
        the compiler rewrites it.

        Nodes are names, in an order in which they can run; `graph.nodes[name]["node"]` holds
        operator, operands, attributes and type. An edge leads from an operand to its reader, and
        `operands` on it says in which places it is read. `graph.graph` holds `name`, and under
        `outputs` and `updates` the nodes that give the outputs and the new values of the states.
        Raises NetError where there is no such net, or something is wrong with it.
        """
        target = CompileTarget(self.name, train, batch)
        if passes:
            return to_networkx(prepare_target(self.program, target).graph)
        return to_networkx(build_unoptimized_graph(self.program, target))


def load(place: str) -> NetFile:
    """A .net file, or a net or recipe of it: `FILE` or `FILE:NAME`. Raises NetError with all that
    is wrong with the file."""
    path, name = split_file_and_name(place)
    return NetFile(program_of(path), name)
