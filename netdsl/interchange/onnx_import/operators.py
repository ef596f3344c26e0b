"""The ONNX operators that netdsl knows: one rule for each."""

from __future__ import annotations

from netdsl.interchange.onnx_import.call import Rule
from netdsl.interchange.onnx_import.elementwise_rules import ELEMENTWISE_RULES
from netdsl.interchange.onnx_import.layer_rules import LAYER_RULES
from netdsl.interchange.onnx_import.shape_rules import SHAPE_RULES

RULES: dict[str, Rule] = {**LAYER_RULES, **ELEMENTWISE_RULES, **SHAPE_RULES}
