"""Whether two assignments of weights make the same net: its outputs as expressions of weights."""

from __future__ import annotations

from collections.abc import Mapping

from netdsl.language.network import LayerInfo, Network

_COMMUTATIVE = ("add", "mul")


class ExpressionTable:
    """Numbers of expressions: equal ones have one number, whatever net or branch they are in."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[object, ...], int] = {}

    def outputs(self, network: Network, sources: Mapping[str, str]) -> dict[str, int]:
        """The expression of each output. `sources` names where the states of a layer come from, by
        the path that their names begin with. Operands of sums and products have no order."""
        values = {n.name: self._number("input", n.name) for n in network.graph.inputs}
        for layer in network.layers:
            values[layer.path] = self._layer_number(layer, values, sources)
        return {name: values[path] for name, path in network.output_paths.items()}

    def _layer_number(
        self, layer: LayerInfo, values: Mapping[str, int], sources: Mapping[str, str]
    ) -> int:
        operands = [values[path] for path in layer.input_paths]
        if layer.layer_type in _COMMUTATIVE:
            operands.sort()
        weights = tuple(sources.get(p, "") for p in dict.fromkeys((layer.weight_path, layer.path)))
        arguments = tuple((a.name, str(a.value)) for a in layer.written)
        return self._number(layer.layer_type, arguments, weights, *operands)

    def _number(self, *parts: object) -> int:
        return self._numbers.setdefault(parts, len(self._numbers))
