"""A kernel: the set of nodes that one launch computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KernelKind = Literal["map", "anchor", "opaque", "copy"]


@dataclass(frozen=True)
class Kernel:
    """`map` runs over a domain element by element (with reductions of it), `anchor` is a product
    with what happens to its tiles, `opaque` one node of its own, `copy` moves a value.

    `nodes` stand in order, those that another kernel computes too among them; `inputs` are what
    they read from memory, each under the name of the view that is read, `outputs` what is written.
    A launch over several domains has a kernel for each in `parts`.
    """

    name: str
    kind: KernelKind
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[Kernel, ...] = ()
