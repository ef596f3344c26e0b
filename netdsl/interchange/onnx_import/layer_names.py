"""Names of imported layers, from those of an ONNX graph where they say something."""

from __future__ import annotations

import re
from collections.abc import Iterable

from netdsl.interchange.onnx_import.graph import OnnxNode

_WEIGHT_NAME = re.compile(
    r"(.*[^./_:])[./_]?(?:weights?|w|W|kernel|gamma|scale|running_mean|moving_mean|bias|b|slope)"
    r"(?::0)?",
)
"""The name of a weight: that of its layer, then what it is there."""
_GENERATED_NAME = re.compile(r"(?:onnx::|val_|_val|t)?\w*?_?\d+|node_\w+|\w*_output_\d+")
"""A name that an exporter counted up."""


class LayerNamer:
    """Names layers after the modules of the graph: paths with dots."""

    def __init__(self, nodes: Iterable[OnnxNode]) -> None:
        scopes = {n.scope for n in nodes if n.scope}
        self._containers = {s[:i] for s in scopes for i, c in enumerate(s) if c == "."}

    def __call__(self, node: OnnxNode, layer: str) -> str:
        """The name of a layer that a node becomes."""
        found = self._weight_scope(node) or node.scope
        if found and found not in self._containers:
            return found
        if found:
            return f"{found}.{layer}"
        own = _clean(node.name)
        return own if own and not _GENERATED_NAME.fullmatch(own) else layer

    def _weight_scope(self, node: OnnxNode) -> str:
        """What the names of its weights say about where a node belongs."""
        for name in node.inputs[1:]:
            found = _WEIGHT_NAME.fullmatch(name)
            if found and not name.startswith("onnx::"):
                return _clean(found[1])
        return ""


def _clean(name: str) -> str:
    parts = (re.sub(r"\W+", "_", p).strip("_") for p in re.split(r"[./]", name))
    return ".".join(p for p in parts if p)
