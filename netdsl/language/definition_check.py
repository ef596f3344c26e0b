"""Checks the definitions of a file without elaborating them: what no net reaches is checked too."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from netdsl.errors import Diagnostic, suggest_spelling
from netdsl.foreign_words import find_advice
from netdsl.language import syntax as s
from netdsl.language.evaluate import CONSTANTS
from netdsl.language.functions import FUNCTIONS
from netdsl.language.lookup import LAYER_IN_LET, is_layer, suggest_for_unknown_layer
from netdsl.language.program import Program
from netdsl.layers import LAYERS
from netdsl.value_advice import explain_label

_WORDS_OF_EXPRESSIONS = ("in", "not")
_EQUALITIES = ("==", "!=", "~")


def find_definition_errors(program: Program) -> Iterator[Diagnostic]:
    """Yields what is wrong with blocks, nets, functions and loops of a file, whatever their
    arguments: their parameters, and names that nothing defines."""
    for item in program.items:
        yield from _check_variables(item)
        yield from _check_let_values(item, program)
        if isinstance(item, s.Block | s.Net) or (isinstance(item, s.Let) and item.params):
            yield from _check_operands(item, program)
            yield from _check_steps(item, program)


# ---- parameters and loops ---------------------------------------------------------------------


def _check_variables(item: s.Item) -> Iterator[Diagnostic]:
    """Checks the names that parameters, `let`s and loops give."""
    for node in s.walk(item):
        match node:
            case s.Block(params=params) | s.Net(params=params):
                yield from _check_repeated_parameters(params)
            case s.Let(params=tuple(params)):
                yield from _check_repeated_parameters(params)
                yield from _check_parameter_order(params)
            case s.For(index=str(index)) if index in node.variables:
                message = f"the index and a variable of this loop are both called `{index}`"
                yield Diagnostic(message, node.items.span, "give them different names")
            case s.For() if len({*node.variables}) < len(node.variables):
                message = "two variables of this loop have the same name"
                yield Diagnostic(message, node.items.span, "give them different names")
        for name in s.names_given_by(node):
            if name in _WORDS_OF_EXPRESSIONS:
                message = (
                    f"`{name}` is a reserved word in expressions, so nothing could read a value "
                    f"of that name"
                )
                yield Diagnostic(message, node.span, f"choose another name, such as `{name}_`")


def _check_repeated_parameters(params: tuple[s.Parameter, ...]) -> Iterator[Diagnostic]:
    names: set[str] = set()
    for p in params:
        if p.name in names:
            yield Diagnostic(f"two parameters are called `{p.name}`", p.span, "rename one of them")
        names.add(p.name)


def _check_parameter_order(params: tuple[s.Parameter, ...]) -> Iterator[Diagnostic]:
    default: s.Parameter | None = None
    for p in params:
        if p.default is None and default is not None:
            message = f"`{p.name}` has no default, but `{default.name}` before it has one"
            yield Diagnostic(message, p.span, "parameters without a default come first")
        default = p if p.default is not None else default


def _check_let_values(item: s.Item, program: Program) -> Iterator[Diagnostic]:
    """Checks that no `let` names a layer. A word that is also a layer's may be compared, so a `let`
    of it is wrong only if nothing in its body reads it."""
    bound = s.bound_names(item)
    read = {node.name for node in s.walk(item) if isinstance(node, s.Name)}
    for let in s.walk(item):
        if not isinstance(let, s.Let):
            continue
        for value in _possible_values(let.value):
            match value:
                case s.CallExpr(name=name):
                    pass
                case s.Name(name=name) if let is not item and let.name not in read:
                    pass
                case _:
                    continue
            if is_layer(name, program) and name not in bound and name not in program.lets:
                help = f"to rename a layer, define a block: `block {let.name} {{ {name} }}`"
                yield Diagnostic(LAYER_IN_LET, let.value.span, help)


def _possible_values(e: s.Expression) -> tuple[s.Expression, ...]:
    if isinstance(e, s.Conditional):
        return (*(value for value, _ in e.arms), e.otherwise)
    return (e,)


# ---- names ------------------------------------------------------------------------------------


def _check_operands(item: s.Item, program: Program) -> Iterator[Diagnostic]:
    """Checks the names where only a number, a list or a condition can stand. Elsewhere a name that
    nothing defines is a word, such as `same`."""
    bound, labels = s.bound_names(item), _find_labels(item)
    for operand in (e for node in s.walk(item) for e in _operands(node)):
        if not isinstance(operand, s.Name | s.CallExpr):
            continue
        kind, words = (
            ("variable", CONSTANTS) if isinstance(operand, s.Name) else ("function", FUNCTIONS)
        )
        visible = (bound, program.lets, words)
        if not any(operand.name in names for names in visible):
            near = suggest_spelling(operand.name, itertools.chain(*visible))
            help = explain_label(operand.name) if operand.name in labels else None
            help = help or find_advice(operand.name, ["operand"]) or near
            yield Diagnostic(f"no {kind} is called `{operand.name}` here", operand.span, help)


def _operands(node: s.SyntaxNode) -> Iterable[s.SyntaxNode | None]:
    """The parts of a node that must be numbers, lists or conditions."""
    match node:
        case s.NaryExpr(first=first, rest=rest) if rest[0][0] not in _EQUALITIES:
            return (first, *(operand for _, operand in rest))
        case s.UnaryExpr(operand=operand):
            return (operand,)
        case s.IndexExpr(base=base, indices=indices):
            return (base, *indices)
        case s.Slice(start=start, stop=stop):
            return (start, stop)
        case s.Conditional(arms=arms):
            return (condition for _, condition in arms)
        case s.CallExpr(name=name, args=args) if name in FUNCTIONS:
            return (a.value for a in args)
        case s.If(arms=arms):
            return (condition for condition, _ in arms)
        case s.Branch(condition=condition):
            return (condition,)
        case s.For(items=items):
            return (items,)
        case s.Repeat(count=count):
            return (count,)
    return ()


def _check_steps(item: s.Item, program: Program) -> Iterator[Diagnostic]:
    """Checks the names in chains."""
    labels = _find_labels(item)
    known = ({"input"}, labels, LAYERS, program.blocks)
    bound = s.bound_names(item)
    for step in s.walk(item):
        if isinstance(step, s.Step) and not any(step.name in names for names in known):
            compare = f"`if {step.name} == relu {{ relu }}` compares a word"
            help = (
                f"`{step.name}` is a value here; {compare}"
                if step.name in bound
                else suggest_for_unknown_layer(step.name, labels, program)
            )
            yield Diagnostic(f"unknown layer or block `{step.name}`", step.name_span, help)


def _find_labels(item: s.Item) -> set[str]:
    labels = {n.label for n in s.walk(item) if isinstance(n, s.Chain) and n.label}
    return labels | {n.name for n in s.walk(item) if isinstance(n, s.Shared)}
