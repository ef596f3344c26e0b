"""Makes the number of classes of a structured net a parameter, so that
`net mine = imported(classes=2)` is the same net with another head."""

from __future__ import annotations

import re
from dataclasses import replace

from netdsl.errors import NetError
from netdsl.interchange.structure.structured_net import StructuredNet
from netdsl.language import syntax as s
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_text
from netdsl.language.network import Network
from netdsl.language.override import override
from netdsl.language.program import build_program, reject_read

NAME = "classes"
_MAX_CANDIDATES = 4


def add_class_parameter(structured: StructuredNet, network: Network) -> StructuredNet:
    """The net with the parameter `classes`, if one number in its own body decides alone how many
    scores it gives; else the net as it is. `network` is the elaborated net."""
    scores = network.main_output.type.shape[1:]
    count = scores[-1]
    if any(side != 1 for side in scores[:-1]) or count < 2:
        return structured
    if re.search(rf"\b{NAME}\b", structured.text):
        return structured
    net = next(i for i in structured.file.items if isinstance(i, s.Net))
    literals = [n for n in s.walk(net.body) if isinstance(n, s.NumberLiteral) and n.value == count]
    literals.sort(key=lambda n: -n.span.start)
    for literal in literals[:_MAX_CANDIDATES]:
        found = replace(structured, text=_rewrite(structured.text, net, literal, count))
        if _has_scores(found, count + 1):
            return found
    return structured


def _rewrite(text: str, net: s.Net, literal: s.NumberLiteral, count: int) -> str:
    body = text[: literal.span.start] + NAME + text[literal.span.end :]
    header = f"net {net.name}"
    return format_text(body.replace(f"{header} {{", f"{header}({NAME}={count}) {{", 1))


def _has_scores(structured: StructuredNet, count: int) -> bool:
    """Whether the net with that many classes is valid and has as many scores."""
    try:
        file = override(structured.file, [f"{NAME}={count}"], structured.name)
        network = elaborate(build_program(file, reject_read), structured.name)
    except NetError:
        return False
    return network.main_output.type.shape[-1] == count
