"""Hypothesis strategies for syntax trees that a person could have written."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from netdsl.errors import Source, Span
from netdsl.language import syntax as s
from netdsl.language.diagnose import RESERVED_WORDS
from netdsl.language.unparse import expression_text
from netdsl.values import Size

NOWHERE = Span(Source("drawn", ""), 0, 0)
SECTIONS = ("use", "block", "net", "test", "data", "train")
STATEMENTS = ("let", "shared", "output", "if", "for", "in")
INFIX = ("as",)
WORDS = (*SECTIONS, *STATEMENTS, *INFIX, "not", "expect", *sorted(RESERVED_WORDS))
"""Every word of the grammar."""
plain_names = st.from_regex(r"[a-z_][a-z0-9_]{0,7}", fullmatch=True)


def names_except(*words: str) -> Any:
    """Names, often words of the grammar, except those that would start something else at that
    place."""
    refused = {*words, *RESERVED_WORDS}
    return st.one_of(plain_names, plain_names, st.sampled_from(WORDS)).filter(
        lambda n: n not in refused
    )


names = names_except()
"""For places where only a name is allowed."""
values = names_except("in", "not")
keys = names_except("in", "not", "expect")
layers = names_except(*STATEMENTS)


def tree(record: type, *parts: Any) -> Any:
    """A strategy for a record type from strategies for its fields."""
    return st.builds(lambda *p: record(NOWHERE, *p), *parts)


def tuples_of(item: Any, least: int = 0, most: int = 3) -> Any:
    return st.lists(item, min_size=least, max_size=most).map(tuple)


numbers = st.one_of(
    st.integers(0, 10**9).map(lambda n: s.NumberLiteral(NOWHERE, n, str(n))),
    st.floats(0, 1e9, allow_nan=False).map(lambda x: s.NumberLiteral(NOWHERE, x, _plain_float(x))),
)


def _plain_float(x: float) -> str:
    text = repr(x)
    return text if "." in text or "e" in text else f"{text}.0"


sizes = tuples_of(st.integers(0, 999), 2, 4).map(lambda d: s.SizeLiteral(NOWHERE, Size(d)))
texts = st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=8)
atoms = st.one_of(
    numbers, sizes, tree(s.StringLiteral, texts), tree(s.Name, values), tree(s.MemberExpr, names)
)


def _args(e: Any) -> Any:
    return tuples_of(tree(s.Arg, st.none() | values, e))


def _flat(e: Any, operators: list[str], most: int = 3) -> Any:
    return tree(s.NaryExpr, e, tuples_of(st.tuples(st.sampled_from(operators), e), 1, most))


def _index(ends: tuple[Any, ...]) -> Any:
    """An index, or a slice if there are two ends or none."""
    if len(ends) == 1 and ends[0] is not None:
        return ends[0]
    return s.Slice(NOWHERE, ends[0], ends[-1])


def _compound(e: Any) -> Any:
    return st.one_of(
        tree(s.ListLiteral, tuples_of(e)),
        tree(s.PairLiteral, e, e),
        tree(s.CallExpr, values, _args(e)),
        tree(
            s.IndexExpr,
            e.filter(lambda x: not isinstance(x, s.IndexExpr)),
            tuples_of(tuples_of(st.none() | e, 1, 2).map(_index), 1, 2),
        ),
        tree(s.UnaryExpr, st.sampled_from(["-", "not"]), e),
        _flat(e, ["+", "-"]),
        _flat(e, ["*", "/", "//", "%"]),
        _flat(e, ["==", "<", ">=", "~"], most=1),
        _flat(e, ["and"]),
        _flat(e, ["or"]),
        tree(s.Conditional, tuples_of(st.tuples(e, e), 1, 2), e),
    )


expressions = st.recursive(atoms, _compound, max_leaves=6)


def steps(chain: Any) -> Any:
    args = st.none() | _args(expressions)
    branch = tree(s.Branch, chain, st.none() | expressions)
    return tree(s.Step, layers, args, st.none() | tuples_of(branch, 1), st.just(NOWHERE))


def _elements(chain: Any, body: Any) -> Any:
    plain = st.one_of(
        steps(chain),
        tree(s.Incoming),
        tree(s.ChainGroup, chain),
        tree(s.If, tuples_of(st.tuples(expressions, body), 1, 2), st.none() | body),
        tree(s.For, tuples_of(names, 1, 2), expressions, st.none() | names, body),
    )
    return plain | tree(s.Repeat, plain, expressions, st.none() | names)


parameters = tuples_of(tree(s.Parameter, names, st.none() | expressions))
lets = tree(s.Let, names, st.none() | parameters, expressions)


def _bodies(chain: Any) -> Any:
    statement = st.one_of(
        chain,
        lets,
        tree(s.Shared, names, chain),
        tree(s.SideOutput, names, _args(expressions), chain),
    )
    return tree(s.Body, tuples_of(statement, 0, 3))


_simple = tree(s.Chain, st.none() | layers, tuples_of(steps(st.nothing()), 1, 2))
chains = st.recursive(
    _simple,
    lambda chain: tree(
        s.Chain, st.none() | layers, tuples_of(_elements(chain, _bodies(chain)), 1, 3)
    ),
    max_leaves=4,
)
bodies = _bodies(chains)


def _can_follow_a_comma(e: s.Expression) -> bool:
    """Whether an expectation may be any but the first: `expect` then begins one of a recipe."""
    return not expression_text(e).startswith("expect")


items = st.one_of(
    tree(s.Use, texts),
    lets,
    tree(s.Block, names, parameters, bodies),
    tree(s.Net, names, parameters, bodies),
    tree(s.Instance, names, names, _args(expressions)),
    tree(
        s.Section,
        st.sampled_from(["data", "train"]),
        st.none() | names,
        tuples_of(tree(s.SectionEntry, keys, expressions) | tree(s.Expect, expressions)),
    ),
    tree(s.Test, st.none() | names, tuples_of(expressions.filter(_can_follow_a_comma))),
)
files = tuples_of(items, 0, 4).map(lambda i: s.File(NOWHERE, i))
