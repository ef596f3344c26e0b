"""The reference of the language as Markdown tables, read from the tables that the compiler uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netdsl.data.config import SIGNATURE as DATA
from netdsl.data.config import STATISTICS
from netdsl.data.sources import SOURCES
from netdsl.layers import LAYERS
from netdsl.layers.init import INITS
from netdsl.signature import REQUIRED, Param, Signature
from netdsl.train.losses import LOSSES
from netdsl.train.optimizers import OPTIMIZERS
from netdsl.train.recipe import SIGNATURE as TRAIN
from netdsl.values import show


def reference() -> str:
    """The whole page; `python -m netdsl.insight.reference` prints it."""
    intro = "Written by `python -m netdsl.insight.reference > docs/reference.md`; a test compares."
    parts = ["# The language's words", intro, "## Layers", layers_table(), "## Sections"]
    return "\n\n".join([*parts, sections_table()]) + "\n"


def layers_table() -> str:
    """Every word that can stand in a chain."""
    rows = [(_call(x.signature, x.arity == "many"), x.doc) for x in LAYERS.values()]
    rows.insert(0, ("input(shape)", "what the net is given"))
    inits = ", ".join(f"`{i.signature}`".replace("()", "") for i in INITS.values())
    return f"{_table('layer', rows)}\n\nInitialisers: {inits}; a bare number is a constant."


def sections_table() -> str:
    """The keys of `data` and `train`, and what their values can be."""
    parts = []
    for signature in (DATA, TRAIN):
        rows = [(_key(p), p.doc) for p in signature.params]
        parts.append(_table(f"`{signature.name}` key and default", rows))
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("Sources", SOURCES),
        ("Losses", LOSSES),
        ("Optimizers", OPTIMIZERS),
    )
    for title, table in tables:
        parts.append(_table(title, [(_call(r.signature, False), r.doc) for r in table.values()]))
    known = ", ".join(f"`{s.signature}`".replace("()", "") for s in STATISTICS.values())
    parts.append(f"Statistics: {known}.")
    return "\n\n".join(parts)


def _key(p: Param) -> str:
    return p.name if p.default is REQUIRED else f"{p.name} = {show(p.default)}"


def _call(signature: Signature, joins: bool) -> str:
    text = str(signature).replace("()", "")
    return f"{text} {{ a | b }}" if joins else text


def _table(heading: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {heading} | |", "|---|---|"]
    lines += [f"| `{a}` | {b} |".replace("{ a | b }", r"{ a \| b }") for a, b in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference(), end="")
