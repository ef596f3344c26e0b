"""What follows a product in its kernel: what a library can apply to it before writing, and the rest.

`relu(x w' + bias + beside)` and the product where a mask is positive are what the libraries know; a
kernel that begins with that may be bound as one call and a generated map for what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from netdsl.plan.kernel import Kernel, extract_part
from netdsl.types import Graph, Node


@dataclass(frozen=True)
class Epilogue:
    """`value` is what is written: the product, to which `beside` (a tensor of its size) and `bias`
    (a value for each channel) are added, then rectified, or zero where `mask` is not positive."""

    value: str
    bias: str | None = None
    beside: str | None = None
    relu: bool = False
    mask: str | None = None

    @property
    def reads(self) -> dict[str, str]:
        """What it reads, by its fields, in their order."""
        fields = {"bias": self.bias, "beside": self.beside, "mask": self.mask}
        return {field: name for field, name in fields.items() if name is not None}

    @property
    def kind(self) -> str:
        """What it does, in a word that a choice is remembered by."""
        found = {"bias": self.bias, "beside": self.beside, "relu": self.relu, "mask": self.mask}
        return "+".join(name for name, there in found.items() if there) or "cast"


@dataclass(frozen=True)
class Form:
    """A way to cut a kernel: the product with an epilogue, `value` being what that writes, and
    `rest`, a map that computes the other outputs from it."""

    node: Node
    epilogue: Epilogue | None
    rest: Kernel | None

    @property
    def value(self) -> str:
        return self.epilogue.value if self.epilogue else self.node.name


def forms(graph: Graph, kernel: Kernel) -> Iterator[Form]:
    """The ways to cut a product's kernel, the product alone last."""
    node = graph[kernel.name]
    found = _epilogue(graph, kernel)
    if found is not None:
        rest = _after(graph, kernel, found.value)
        if rest is None or kernel.name not in rest.inputs:
            yield Form(node, found, rest)
    yield Form(node, None, _after(graph, kernel, kernel.name))


def _epilogue(graph: Graph, kernel: Kernel) -> Epilogue | None:
    """The steps from the product to the first value that is written, if all of them are known."""
    found = Epilogue(kernel.name)
    while found.value not in kernel.outputs:
        readers = [graph[n] for n in kernel.nodes if found.value in graph[n].args]
        grown = _grown(graph, kernel, found, readers[0]) if len(readers) == 1 else None
        if grown is None:
            return None
        found = replace(grown, value=readers[0].name)
    return found if found.value != kernel.name else None


def _grown(graph: Graph, kernel: Kernel, found: Epilogue, step: Node) -> Epilogue | None:
    """The epilogue with one more step; None where no library knows it."""
    done = found.relu or found.mask is not None
    if step.op == "cast":
        return found
    if step.op == "reshape" and step.type.shape[-1:] == graph[kernel.name].type.shape[-1:]:
        return found
    if step.op == "relu" and not done:
        return replace(found, relu=True)
    if step.op == "add" and not done:
        (other,) = [a for a in step.args if a != found.value] or [found.value]
        return _added(found, graph, _operand(graph, kernel, other), step)
    if step.op == "select" and not done and step.args[1] == found.value:
        mask = _mask(graph, kernel, step)
        return replace(found, mask=mask) if mask else None
    return None


def _added(found: Epilogue, graph: Graph, operand: str | None, step: Node) -> Epilogue | None:
    if operand is None:
        return None
    shape, whole = graph[operand].type.shape, step.type.shape
    if shape == whole and found.beside is None:
        return replace(found, beside=operand)
    vector = shape[-1:] == whole[-1:] and graph[operand].type.size == whole[-1]
    return replace(found, bias=operand) if vector and found.bias is None else None


def _operand(graph: Graph, kernel: Kernel, name: str) -> str | None:
    """What a kernel reads from memory where it uses `name`: that, or what it is cast from."""
    while name not in kernel.inputs:
        if graph[name].op != "cast":
            return None
        (name,) = graph[name].args
    return name


def _mask(graph: Graph, kernel: Kernel, step: Node) -> str | None:
    """What `step` wants to be positive, if it puts zeros elsewhere."""
    condition, _, otherwise = (graph[a] for a in step.args)
    if condition.op != "greater" or condition.name not in kernel.nodes or not _zero(otherwise):
        return None
    mask, least = condition.args
    operand = _operand(graph, kernel, mask) if _zero(graph[least]) else None
    return operand if operand and graph[operand].type.shape == step.type.shape else None


def _zero(node: Node) -> bool:
    return node.op == "const" and node.attrs["value"] == 0


def _after(graph: Graph, kernel: Kernel, value: str) -> Kernel | None:
    """The map that computes what a kernel writes besides `value`, and from that."""
    outputs = [o for o in kernel.outputs if o != value]
    return extract_part(graph, kernel, outputs, {value, kernel.name}) if outputs else None
