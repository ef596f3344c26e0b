"""Resolves names in a chain to layers, or explains how to fix an unknown one."""

from __future__ import annotations

from netdsl.errors import fail, suggest_alias, suggest_spelling
from netdsl.language import syntax as s
from netdsl.language.evaluate import Function, Unknown
from netdsl.language.frame import Frame
from netdsl.language.program import Program
from netdsl.layers import LAYERS, Layer
from netdsl.layers.init import INITIALISERS
from netdsl.signature import suggest_for_value
from netdsl.values import Call, Value, format_value


def find_layer(step: s.Step, frame: Frame, program: Program) -> Layer:
    """Returns the layer that a step calls. Raises NetError if it does not exist, or if its
    branches are missing."""
    layer = LAYERS.get(step.name)
    if layer is None:
        help = _unknown_name_help(step.name, frame, program)
        raise fail(f"unknown layer or block `{step.name}`", step.name_span, help=help)
    if layer.arity == "many" and not step.branches:
        help = f"write them as `{step.name} {{ a | b }}`"
        raise fail(f"`{step.name}` needs branches", step.name_span, help=help)
    return layer


def is_layer(name: str, program: Program) -> bool:
    """Whether a call of that name in an expression can only mean a layer or block."""
    return (name in LAYERS or name in program.blocks) and name not in INITIALISERS


def _unknown_name_help(name: str, frame: Frame, program: Program) -> str:
    """A help line for a name that is neither a layer nor a block."""
    value = frame.expression_scope(frame.incoming).find(name)
    if isinstance(value, Function):
        return f"`{name}` is a function of numbers; a function of layers is a `block`"
    if isinstance(value, Call):
        return f"`let` names numbers and lists; write `block {name} {{ {value} }}`"
    if value is not Unknown.UNKNOWN:
        return f"`{name}` is a number here; a label names a value in the chain: `{name}: ...`"
    known = [*LAYERS, *program.blocks, *frame.labels, *frame.shared_chains, "input"]
    if suggestion := suggest_alias(name, known):
        return suggestion
    define = f"define `block {name}(...) {{ ... }}`, or `use` the file that has it"
    near = suggest_spelling(name, known)
    return f"{near} Otherwise {define}" if near else define


def suggest_for_items(items: Value) -> str | None:
    """A help line for what `for` cannot iterate over."""
    if isinstance(items, Call) and items.name == "enumerate":
        return "`for c in list as i { ... }` counts the entries from 0"
    return suggest_for_value(items)


def unpack_item(loop: s.For, index: int, item: Value) -> dict[str, Value]:
    """Binds the loop variables for one iteration."""
    names = loop.variables
    counter: dict[str, Value] = {loop.index: index} if loop.index else {}
    if len(names) == 1:
        return {names[0]: item} | counter
    if not isinstance(item, tuple) or len(item) != len(names):
        item_exprs = loop.items.items if isinstance(loop.items, s.ListLiteral) else ()
        span = item_exprs[index].span if item_exprs else loop.items.span
        problem = f"has {len(item)}" if isinstance(item, tuple) else "is not a list"
        raise fail(
            f"`for {', '.join(names)}` needs {len(names)} values per iteration, "
            f"{format_value(item)} {problem}",
            span,
            help=f"each entry of the list must itself be a list: [{', '.join(names)}]",
        )
    return dict(zip(names, item, strict=True)) | counter
