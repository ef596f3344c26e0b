"""The lint rule for words: what is passed to a block that compares it with other words only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from netdsl.errors import suggest_spelling
from netdsl.language import syntax as s
from netdsl.language.evaluate import CONSTANTS
from netdsl.language.program import Program
from netdsl.training.recipe.lint import Finding, Review


def find_unknown_word(review: Review) -> Iterator[Finding]:
    """A word that a block compares with none of its own, or a text that it compares with words."""
    program = review.program
    known: dict[str, Mapping[str, frozenset[str]]] = {}
    for item in program.items:
        bound = s.bound_names(item)
        for step in s.walk(item):
            if not isinstance(step, s.Step) or step.name not in program.blocks or not step.args:
                continue
            block = program.blocks[step.name]
            if step.name not in known:
                known[step.name] = _known_words(block, program)
            for name, value in _name_arguments(step.args, block.params):
                words = known[step.name].get(name)
                if words is not None:
                    yield from _check_word(block.name, name, value, words, bound, program)


def _name_arguments(
    args: Sequence[s.Arg], params: Sequence[s.Parameter]
) -> Iterator[tuple[str, s.Expression]]:
    for i, a in enumerate(args):
        if a.name is not None:
            yield a.name, a.value
        elif i < len(params):
            yield params[i].name, a.value


def _check_word(
    block: str,
    param: str,
    value: s.Expression,
    words: frozenset[str],
    bound: set[str],
    program: Program,
) -> Iterator[Finding]:
    match value:
        case s.StringLiteral(value=text) if text in words:
            message = (
                f"`{block}` compares `{param}` with words, but a quoted string never equals a word"
            )
            yield Finding(message, value.span, f"write `{text}` without quotes")
        case s.Name(name=word) if word not in words and _is_word(word, bound, program):
            message = f"`{block}` compares `{param}` with words other than `{word}`"
            help = suggest_spelling(word, words) or f"look for its spelling in `{block}`"
            yield Finding(message, value.span, help)


def _known_words(block: s.Block, program: Program) -> dict[str, frozenset[str]]:
    """For each parameter that a block only compares with words: these, its default, and all other
    words and layers of the block, which may be the case of an `else`."""
    bound = s.bound_names(block)
    bindings = Counter(name for node in s.walk(block) for name in s.names_given_by(node))
    reads = Counter(node.name for node in s.walk(block) if isinstance(node, s.Name))
    comparisons = Counter(_names_compared_with_words(block, bound, program))
    layers = {node.name for node in s.walk(block) if isinstance(node, s.Step)}
    words = frozenset({name for name in reads if _is_word(name, bound, program)} | layers)
    return {
        p.name: words
        for p in block.params
        if comparisons[p.name] == reads[p.name] > 0 and bindings[p.name] == 1
    }


def _names_compared_with_words(block: s.Block, bound: set[str], program: Program) -> Iterator[str]:
    for node in s.walk(block):
        match node:
            case s.NaryExpr(first=s.Name(name=a), rest=(("==" | "!=", s.Name(name=b)),)):
                if _is_word(b, bound, program):
                    yield a
                elif _is_word(a, bound, program):
                    yield b


def _is_word(name: str, bound: set[str], program: Program) -> bool:
    return name not in bound and name not in program.lets and name not in CONSTANTS
