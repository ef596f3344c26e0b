"""Splits a product's kernel into an epilogue that a library can apply and the rest.

The libraries compute `relu(x w' + bias + addend)`, and the product where a mask is positive, zero
elsewhere. A kernel that starts like that may be bound as one call and a generated map for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from netdsl.plan.kernel import Kernel, extract_part
from netdsl.types import Graph, Node


@dataclass(frozen=True)
class Epilogue:
    """What the library call writes, as `value`: the product plus `addend` (a tensor of its shape)
    and `bias` (a value per channel), rectified if `relu`, and zero where `mask` is not positive."""

    value: str
    bias: str | None = None
    addend: str | None = None
    relu: bool = False
    mask: str | None = None

    @property
    def operand_names(self) -> dict[str, str]:
        """The values that it reads, in the order of the libraries' operations. The direct kernel
        has pointers of these names."""
        fields = {"bias": self.bias, "beside": self.addend, "mask": self.mask}
        return {field: name for field, name in fields.items() if name is not None}

    @property
    def kind(self) -> str:
        """Its operations in one word, a part of the keys of the tuning cache."""
        found = {"bias": self.bias, "beside": self.addend, "relu": self.relu, "mask": self.mask}
        return "+".join(name for name, operand in found.items() if operand) or "cast"


@dataclass(frozen=True)
class KernelSplit:
    """A kernel split in two: a product with an epilogue, which writes `value`, and `rest`, a map
    that computes the other outputs from that."""

    node: Node
    epilogue: Epilogue | None
    rest: Kernel | None

    @property
    def value(self) -> str:
        return self.epilogue.value if self.epilogue else self.node.name


def find_splits(graph: Graph, kernel: Kernel) -> Iterator[KernelSplit]:
    """Yields the splits of a product's kernel; the product without an epilogue is last."""
    node = graph[kernel.name]
    epilogue = _find_epilogue(graph, kernel)
    if epilogue is not None:
        rest = _extract_rest(graph, kernel, epilogue.value)
        if rest is None or kernel.name not in rest.inputs:
            yield KernelSplit(node, epilogue, rest)
    yield KernelSplit(node, None, _extract_rest(graph, kernel, kernel.name))


def _find_epilogue(graph: Graph, kernel: Kernel) -> Epilogue | None:
    """Returns the epilogue from the product to the first output; None if a step has no counterpart
    in the libraries."""
    epilogue = Epilogue(kernel.name)
    while epilogue.value not in kernel.outputs:
        readers = [graph[n] for n in kernel.nodes if epilogue.value in graph[n].args]
        extended = (
            _extend_epilogue(graph, kernel, epilogue, readers[0]) if len(readers) == 1 else None
        )
        if extended is None:
            return None
        epilogue = replace(extended, value=readers[0].name)
    return epilogue if epilogue.value != kernel.name else None


def _extend_epilogue(
    graph: Graph, kernel: Kernel, epilogue: Epilogue, step: Node
) -> Epilogue | None:
    """Returns the epilogue with one more step; None if no library can apply it."""
    is_complete = epilogue.relu or epilogue.mask is not None
    if step.op == "cast":
        return epilogue
    if step.op == "reshape" and step.type.shape[-1:] == graph[kernel.name].type.shape[-1:]:
        return epilogue
    if step.op == "relu" and not is_complete:
        return replace(epilogue, relu=True)
    if step.op == "add" and not is_complete:
        (other,) = [a for a in step.args if a != epilogue.value] or [epilogue.value]
        return _add_operand(epilogue, graph, _find_operand(graph, kernel, other), step)
    if step.op == "select" and not is_complete and step.args[1] == epilogue.value:
        mask = _find_mask(graph, kernel, step)
        return replace(epilogue, mask=mask) if mask else None
    return None


def _add_operand(
    epilogue: Epilogue, graph: Graph, operand: str | None, step: Node
) -> Epilogue | None:
    if operand is None:
        return None
    shape, full_shape = graph[operand].type.shape, step.type.shape
    if shape == full_shape and epilogue.addend is None:
        return replace(epilogue, addend=operand)
    is_vector = shape[-1:] == full_shape[-1:] and graph[operand].type.size == full_shape[-1]
    return replace(epilogue, bias=operand) if is_vector and epilogue.bias is None else None


def _find_operand(graph: Graph, kernel: Kernel, name: str) -> str | None:
    """Returns the input of the kernel that `name` is, or is cast from."""
    while name not in kernel.inputs:
        if graph[name].op != "cast":
            return None
        (name,) = graph[name].args
    return name


def _find_mask(graph: Graph, kernel: Kernel, step: Node) -> str | None:
    """Returns the input that is positive where `step` selects a value, if it selects 0 elsewhere."""
    condition, _, otherwise = (graph[a] for a in step.args)
    if condition.op != "greater" or condition.name not in kernel.nodes or not _is_zero(otherwise):
        return None
    mask, threshold = condition.args
    operand = _find_operand(graph, kernel, mask) if _is_zero(graph[threshold]) else None
    return operand if operand and graph[operand].type.shape == step.type.shape else None


def _is_zero(node: Node) -> bool:
    return node.op == "const" and node.attrs["value"] == 0


def _extract_rest(graph: Graph, kernel: Kernel, value: str) -> Kernel | None:
    """Returns the map that computes a kernel's other outputs from `value`, if there are any."""
    outputs = [o for o in kernel.outputs if o != value]
    return extract_part(graph, kernel, outputs, {value, kernel.name}) if outputs else None
