"""The Python API of .net files: their nets as networkx graphs."""

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
    """A file, and the name of a net or recipe in it; without a name, its first net."""

    program: Program
    name: str | None = None

    def graph(
        self, train: bool = False, batch: int | None = None, passes: bool = True
    ) -> nx.DiGraph:
        """The net as a networkx graph, a copy that you may change: for inference, or with `train`
        the whole step of a recipe, including gradients and updates; without `passes` as the source
        describes it, before the compiler rewrites it.

        Nodes are names, in an order in which they can run; `graph.nodes[name]["node"]` holds
        operator, operands, attributes and type. An edge leads from an operand to its reader; its
        `operands` are the positions at which it is read. `graph.graph` holds `name`, and under
        `outputs` and `updates` the nodes of the outputs and of the new values of the states. Raises
        NetError if there is no such net, or if it has errors.
        """
        target = CompileTarget(self.name, train, batch)
        if passes:
            return to_networkx(prepare_target(self.program, target).graph)
        return to_networkx(build_unoptimized_graph(self.program, target))


def load(place: str) -> NetFile:
    """A .net file, or a net or recipe in it: `FILE` or `FILE:NAME`. Raises NetError with all errors
    in the file."""
    path, name = split_file_and_name(place)
    return NetFile(program_of(path), name)
