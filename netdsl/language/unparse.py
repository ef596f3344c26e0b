"""Any piece of a syntax tree as one line of text, with no more brackets than it needs."""

from __future__ import annotations

from collections.abc import Sequence

from netdsl.language import syntax as s
from netdsl.values import format_value

_LEVEL = {"or": 1, "and": 2, "not": 3, "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6}
_COMPARISON = 4
TIGHT = 7


def _level(e: s.Expr) -> int:
    if isinstance(e, s.Flat):
        return _LEVEL.get(e.rest[0][0], _COMPARISON)
    if isinstance(e, s.Unary):
        return 3 if e.op == "not" else TIGHT
    return TIGHT + 1


def expression(e: s.Expr) -> str:
    """An expression with no more brackets than it needs."""
    match e:
        case s.Number():
            return e.text
        case s.Dims():
            return str(e.value)
        case s.Text():
            return format_value(e.value)
        case s.Name():
            return e.name
        case s.Listing():
            return f"[{', '.join(map(expression, e.items))}]"
        case s.Pair():
            return f"({expression(e.first)}, {expression(e.second)})"
        case s.CallExpr():
            return f"{e.name}{args_text(e.args)}"
        case s.Member():
            return f"in.{e.name}"
        case s.Index():
            base = inside(e.base, TIGHT + 1)
            return base + "".join(f"[{expression(i)}]" for i in e.indices)
        case s.Unary():
            space = " " if e.op == "not" else ""
            return f"{e.op}{space}{inside(e.operand, 4 if e.op == 'not' else TIGHT + 1)}"
        case s.Flat():
            return _flat(e)


def inside(e: s.Expr, level: int) -> str:
    return expression(e) if _level(e) >= level else f"({expression(e)})"


def _flat(e: s.Flat) -> str:
    level = _level(e)
    parts = [inside(e.first, level + 1)]
    for op, operand in e.rest:
        gap = "" if level == 6 and op in ("*", "/") else " "
        parts.append(f"{gap}{op}{gap}{inside(operand, level + 1)}")
    return "".join(parts)


def args_text(args: Sequence[s.Arg] | None) -> str:
    if args is None:
        return ""
    return (
        "("
        + ", ".join(
            f"{a.name}={expression(a.value)}" if a.name else expression(a.value) for a in args
        )
        + ")"
    )


def expectation_text(e: s.Expr) -> str:
    """An expectation; one that begins with a sign would go on with the line above."""
    text = expression(e)
    return f"({text})" if text.startswith("-") else text


def entry_text(e: s.Entry | s.Expect) -> str:
    if isinstance(e, s.Expect):
        return f"expect {expression(e.condition)}"
    return f"{e.name} = {expression(e.value)}"


def body_text(body: s.Body) -> str:
    inside = "; ".join(map(statement_text, body.statements))
    return f"{{ {inside} }}" if inside else "{}"


def statement_text(st: s.Statement) -> str:
    match st:
        case s.Let():
            return f"let {st.name} = {expression(st.value)}"
        case s.Shared():
            return f"shared {st.name} = {chain_text(st.chain)}"
        case s.Output():
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
            return f"{head} {{ {' | '.join(map(chain_text, e.branches))} }}"
        case s.Incoming():
            return "in"
        case s.Group():
            return f"({chain_text(e.chain)})"
        case s.Repeat():
            return f"{element_text(e.element)} * {inside(e.count, TIGHT + 1)}"
        case s.For():
            return f"for {', '.join(e.variables)} in {expression(e.items)} {body_text(e.body)}"
        case s.If():
            arms = [f"if {expression(c)} {body_text(body)}" for c, body in e.arms]
            if e.otherwise is not None:
                arms.append(body_text(e.otherwise))
            return " else ".join(arms)
