"""Resolves names in a chain to layers, or explains how to fix an unknown one."""

from __future__ import annotations

from collections.abc import Iterable

from netdsl.errors import NetError, Span, fail, suggest_alias, suggest_word
from netdsl.language import syntax as s
from netdsl.language.characters import describe_foreign_letters
from netdsl.language.evaluate import Function, InvalidValue, Unknown
from netdsl.language.foreign_calls import suggest_call
from netdsl.language.frame import Frame
from netdsl.language.functions import FUNCTIONS
from netdsl.language.program import Program
from netdsl.layers import LAYERS, Layer
from netdsl.layers.init import INITIALISERS
from netdsl.value_advice import INDEX_NAMES, suggest_for_value
from netdsl.values import Call, Size, Symbol, Value, format_value

_MAX_SHORT_NAME = 2
"""Names up to this length are rather labels than misspelt layers."""
LAYER_IN_LET = "`let` names numbers and lists, not layers"


def find_layer(step: s.Step, frame: Frame, program: Program) -> Layer:
    """Returns the layer that a step calls. Raises NetError if it does not exist, or if its
    branches are missing."""
    layer = LAYERS.get(step.name)
    if layer is None:
        help = _unknown_name_help(step, frame, program)
        raise fail(f"unknown layer or block `{step.name}`", step.name_span, help=help)
    if layer.arity == "many" and not step.branches:
        given = [
            item
            for a in step.args or ()
            if a.name is None
            for item in (a.value.items if isinstance(a.value, s.ListLiteral) else (a.value,))
        ]
        names = [x.name for x in given if isinstance(x, s.Name)]
        branches = names if len(names) == len(given) > 1 else ["a", "b"]
        help = f"write them as `{step.name} {{ {' | '.join(branches)} }}`"
        raise fail(f"`{step.name}` needs branches", step.name_span, help=help)
    return layer


def is_layer(name: str, program: Program) -> bool:
    """Whether a call of that name in an expression can only mean a layer or block."""
    return (name in LAYERS or name in program.blocks) and name not in INITIALISERS


def _unknown_name_help(step: s.Step, frame: Frame, program: Program) -> str:
    """A help line for a name that is neither a layer nor a block."""
    if found := _find_unreachable_label(step, program) or suggest_call(step):
        return found
    name = step.name
    value = frame.expression_scope(frame.incoming).find(name)
    if isinstance(value, Function):
        return f"`{name}` is a function of numbers; a function of layers is a `block`"
    if isinstance(value, Call):
        return f"`let` names numbers and lists; write `block {name} {{ {value} }}`"
    if isinstance(value, Symbol):
        condition = f"if {name} == {value} {{ {value} }}"
        return f"`{name}` is the word {value} here: compare it, as in `{condition}`"
    if not isinstance(value, Unknown | InvalidValue):
        kind = _name_kind(value)
        return f"`{name}` is {kind} here; a label names a value in the chain: `{name}: ...`"
    return suggest_for_unknown_layer(name, [*frame.labels, *frame.shared_chains], program)


def suggest_for_unknown_layer(name: str, labels: Iterable[str], program: Program) -> str:
    """A help line for a name in a chain that is neither a layer nor a value."""
    if name in FUNCTIONS:
        return f"`{name}` is a function of numbers, not a layer"
    if program.has_net(name):
        return f"`{name}` is a net; only blocks can be used as layers: put its body into a `block`"
    if name == "output":
        return "the output of a net is that of its last line; a side output is `output NAME: ...`"
    labels = list(labels)
    known = [*LAYERS, *program.blocks, *labels, "input"]
    if suggestion := suggest_alias(name, known, ["layer"]):
        return suggestion
    define = f"define `block {name}(...) {{ ... }}`, or `use` the file that defines it"
    if letters := describe_foreign_letters(name):
        return letters
    near = suggest_word(name, known)
    if labels and len(name) <= _MAX_SHORT_NAME:
        listed = ", ".join(f"`{label}`" for label in labels[:8])
        return f"the labels up to here are {listed}. Otherwise {define}"
    return f"{near} Otherwise {define}" if near else define


def _find_unreachable_label(step: s.Step, program: Program) -> str | None:
    """A help line for the name of a label that comes later in the same net or block, or that
    another one has."""
    items = (*program.items, *program.blocks.values())
    own = [item for item in items if _contains(item.span, step.span)]
    if line := _find_label_line(step.name, own):
        return f"the label `{step.name}` is on line {line}; it can be used only after that"
    for item in items:
        if isinstance(item, s.Net | s.Block) and _find_label_line(step.name, [item]):
            kind = "net" if isinstance(item, s.Net) else "block"
            where = f"`{step.name}` is a label in the {kind} `{item.name}`"
            return f"{where}; a label can be used only in its own net or block"
    return None


def _find_label_line(label: str, items: Iterable[s.SyntaxNode]) -> int | None:
    chains = (x for item in items for x in s.walk(item) if isinstance(x, s.Chain))
    return next((x.span.position[0] for x in chains if x.label == label), None)


def duplicate_label_error(chain: s.Chain, path: str, program: Program) -> NetError:
    """The error for a label that is taken, with the line of the first one."""
    help = "layers without a label are called conv1, conv2, ...; choose another name"
    for item in (*program.items, *program.blocks.values()):
        if not _contains(item.span, chain.span):
            continue
        for other in s.walk(item):
            if isinstance(other, s.Chain) and other.label == chain.label and other is not chain:
                line, _ = other.span.position
                help = f"the first `{chain.label}` is on line {line}; choose another name"
                break
    return fail(f"two things here are called `{path}`", chain.span, help=help)


def _contains(outer: Span, inner: Span) -> bool:
    return outer.source is inner.source and outer.start <= inner.start < outer.end


def _name_kind(value: Value) -> str:
    """What a value is, for a message."""
    match value:
        case bool() | None:
            return f"`{format_value(value)}`"
        case str():
            return "a text"
        case tuple():
            return "a list"
        case Size():
            return "a size"
    return "a number"


def suggest_for_items(items: Value) -> str | None:
    """A help line for what `for` cannot iterate over."""
    if isinstance(items, Call) and items.name == "enumerate":
        return "`for c in list as i { ... }` counts the entries from 0"
    if isinstance(items, Call) and items.name == "zip":
        return "write the pairs: `for c, n in [[8, 1], [16, 2]] { ... }`"
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
        help = f"each entry of the list must itself be a list: [{', '.join(names)}]"
        if len(names) == 2 and names[0] in INDEX_NAMES and not isinstance(item, tuple):
            help += f"; `for {names[1]} in list as {names[0]}` counts the entries"
        raise fail(
            f"`for {', '.join(names)}` needs {len(names)} values per iteration, "
            f"but {format_value(item)} {problem}",
            span,
            help=help,
        )
    return dict(zip(names, item, strict=True)) | counter
