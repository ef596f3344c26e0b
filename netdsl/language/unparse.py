"""Formats any part of a syntax tree as one line of text, with only the brackets it needs."""

from __future__ import annotations

from collections.abc import Sequence

from netdsl.language import syntax as s
from netdsl.values import format_value

_PRECEDENCE = {"or": 1, "and": 2, "not": 3, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6}
_COMPARISON_PRECEDENCE = 4
UNARY_PRECEDENCE = 7


def _precedence(e: s.Expression) -> int:
    if isinstance(e, s.Conditional):
        return 0
    if isinstance(e, s.NaryExpr):
        return _PRECEDENCE.get(e.rest[0][0], _COMPARISON_PRECEDENCE)
    if isinstance(e, s.UnaryExpr):
        return 3 if e.op == "not" else UNARY_PRECEDENCE
    return UNARY_PRECEDENCE + 1


def expression_text(e: s.Expression) -> str:
    """Formats an expression with only the brackets it needs."""
    match e:
        case s.NumberLiteral():
            return e.text
        case s.SizeLiteral():
            return str(e.value)
        case s.StringLiteral():
            return format_value(e.value)
        case s.Name():
            return e.name
        case s.ListLiteral():
            return f"[{', '.join(map(expression_text, e.items))}]"
        case s.PairLiteral():
            return f"({expression_text(e.first)}, {expression_text(e.second)})"
        case s.CallExpr():
            return f"{e.name}{args_text(e.args)}"
        case s.MemberExpr():
            return f"in.{e.name}"
        case s.IndexExpr():
            base = operand_text(e.base, UNARY_PRECEDENCE + 1)
            return base + "".join(f"[{_index_text(i)}]" for i in e.indices)
        case s.UnaryExpr():
            if e.op == "not":
                return f"not {operand_text(e.operand, 4)}"
            return f"{e.op}{operand_text(e.operand, UNARY_PRECEDENCE + 1)}"
        case s.NaryExpr():
            return _nary_text(e)
        case s.Conditional():
            arms = (f"{operand_text(a, 1)} if {operand_text(c, 1)}" for a, c in e.arms)
            return f"{' else '.join(arms)} else {operand_text(e.otherwise, 1)}"


def _index_text(e: s.Expression | s.Slice) -> str:
    if not isinstance(e, s.Slice):
        return expression_text(e)
    return ":".join(expression_text(end) if end else "" for end in (e.start, e.stop))


def operand_text(e: s.Expression, min_precedence: int) -> str:
    return expression_text(e) if _precedence(e) >= min_precedence else f"({expression_text(e)})"


def _nary_text(e: s.NaryExpr) -> str:
    precedence = _precedence(e)
    parts = [operand_text(e.first, precedence + 1)]
    is_tight = all(op in ("*", "/") for op, _ in e.rest)  # `a // 8*8` would look like a // (8*8)
    gap = "" if is_tight else " "
    for op, operand in e.rest:
        parts.append(f"{gap}{op}{gap}{operand_text(operand, precedence + 1)}")
    return "".join(parts)


def args_text(args: Sequence[s.Arg] | None) -> str:
    if args is None:
        return ""
    return (
        "("
        + ", ".join(
            f"{a.name}={expression_text(a.value)}" if a.name else expression_text(a.value)
            for a in args
        )
        + ")"
    )


def params_text(params: Sequence[s.Parameter] | None) -> str:
    if params is None:
        return ""
    inside = (
        p.name if p.default is None else f"{p.name}={expression_text(p.default)}" for p in params
    )
    return f"({', '.join(inside)})"


def expectation_text(e: s.Expression) -> str:
    """Formats an expectation. One that starts with `-` gets brackets: without them it would
    continue the expression on the line above."""
    text = expression_text(e)
    return f"({text})" if text.startswith("-") else text


def entry_text(e: s.SectionEntry | s.Expect) -> str:
    if isinstance(e, s.Expect):
        return f"expect {expression_text(e.condition)}"
    return f"{e.name} = {expression_text(e.value)}"


def body_text(body: s.Body) -> str:
    statements = "; ".join(map(statement_text, body.statements))
    return f"{{ {statements} }}" if statements else "{}"


def statement_text(st: s.Statement) -> str:
    match st:
        case s.Let():
            return f"let {st.name}{params_text(st.params)} = {expression_text(st.value)}"
        case s.Shared():
            return f"shared {st.name} = {chain_text(st.chain)}"
        case s.SideOutput():
            return f"output {st.name}{args_text(st.args or None)}: {chain_text(st.chain)}"
        case s.Chain():
            return chain_text(st)


def chain_text(chain: s.Chain) -> str:
    label = f"{chain.label}: " if chain.label else ""
    return label + " -> ".join(map(element_text, chain.elements))


def element_text(e: s.Element) -> str:
    match e:
        case s.Step():
            head = e.name + args_text(e.args)
            if e.branches is None:
                return head
            return f"{head} {{ {' | '.join(map(_branch_text, e.branches))} }}"
        case s.Incoming():
            return "in"
        case s.ChainGroup():
            return f"({chain_text(e.chain)})"
        case s.Repeat():
            return element_text(e.element) + count_text(e)
        case s.For():
            return f"{for_text(e)} {body_text(e.body)}"
        case s.If():
            arms = [f"if {expression_text(c)} {body_text(body)}" for c, body in e.arms]
            if e.otherwise is not None:
                arms.append(body_text(e.otherwise))
            return " else ".join(arms)


def _branch_text(branch: s.Branch) -> str:
    return chain_text(branch.chain) + condition_text(branch)


def condition_text(branch: s.Branch) -> str:
    """The part of a branch behind its chain."""
    return f" if {expression_text(branch.condition)}" if branch.condition else ""


def count_text(e: s.Repeat) -> str:
    """The part of a repeat behind its element."""
    return f" * {operand_text(e.count, UNARY_PRECEDENCE + 1)}{counter_text(e.index)}"


def for_text(e: s.For) -> str:
    """The part of a loop before its body."""
    return f"for {', '.join(e.variables)} in {expression_text(e.items)}{counter_text(e.index)}"


def counter_text(index: str | None) -> str:
    """The part of a loop or a repeat that names its index."""
    return f" as {index}" if index else ""
