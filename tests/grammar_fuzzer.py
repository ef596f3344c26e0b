"""Random texts from the grammar and the tables of the language, and random mutations of them.

`draw_file` makes a file that is mostly valid: nets of layers from the layer table, sections of keys
from theirs. `mutate_text` then nests, doubles, repeats, swaps and overwrites some of its words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.config import SIGNATURE as DATA
from netdsl.data.config import STATISTICS
from netdsl.data.mixing import MIXINGS
from netdsl.data.sources import SOURCES
from netdsl.errors import NetError
from netdsl.insight.net_tests import QUERIES
from netdsl.language.evaluate import Scope, evaluate
from netdsl.language.functions import FUNCTIONS
from netdsl.language.parse import parse_expression
from netdsl.layers import LAYERS
from netdsl.layers.init import INITIALISERS
from netdsl.parameter_types import ParameterType, TypeMismatch
from netdsl.signature import REQUIRED, Param, Signature
from netdsl.training.recipe.intervals import INTERVALS
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.precision import PRECISIONS
from netdsl.training.recipe.rate_rules import RATE_RULES
from netdsl.training.recipe.recipe import SIGNATURE as TRAIN
from netdsl.training.recipe.schedules import SCHEDULES


class TextDraw(random.Random):
    """A random generator; `wild` is the probability of writing something that does not fit its
    place."""

    def __init__(self, seed: int, wild: float | None = None) -> None:
        super().__init__(seed)
        self.wild = self.choice((0.0, 0.02, 0.1, 0.4)) if wild is None else wild

    def runs_wild(self) -> bool:
        return self.random() < self.wild


TABLES: dict[str, Sequence[Signature]] = {
    key: [x.signature for x in table.values()]
    for key, table in (
        ("source", SOURCES),
        ("normalize", {k: x for k, x in STATISTICS.items() if len(x.mean) == 1}),  # of digits
        ("augment", {**AUGMENTATIONS, **MIXINGS}),
        ("eval_transform", {k: a for k, a in AUGMENTATIONS.items() if not a.draw_count}),
        ("loss", LOSSES),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("lr_rule", RATE_RULES),
        ("validate_every", INTERVALS),
        ("save_every", INTERVALS),
        ("precision", PRECISIONS),
        ("weight", INITIALISERS),
        ("bias", INITIALISERS),
    )
}
"""The callables that a parameter or key of that name accepts."""
NAMES = ["a", "b", "c", "stem", "x1", "conv", "relu", "data", "train", "test", "input", "é"]
PLAIN_LAYERS = [
    "relu",
    "tanh",
    "identity",
    "batchnorm",
    "sigmoid",
    "globalavgpool",
    "flatten",
    "dropout",
]
NUMBERS = ["0", "1", "2", "3", "4", "8", "0.5", "1e-3", "7", "16", "10_000", "-1", "1e15", "999"]
SIZES = ["1x1", "3x3", "2x2", "8x8x1", "5x5", "1x2x3x4", "0x0", "99999x99999"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "~", "and", "or"]
FUNCTION_NAMES = ["f1", "f2", "max"]
STRAY_TOKENS = [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "|",
    "->",
    ";",
    ",",
    "\n",
    ":",
    "=",
    "#",
    '"',
    "*",
    ".",
]
WORD = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|\d+(?:x\d+)+|\w+|->|[<>=!]=|//|[^\w\s]|\s+')


def expression(r: TextDraw, depth: int = 2) -> str:
    """Any expression; mostly a number."""
    if not r.runs_wild():
        return r.choice(
            (
                *("1", "2", "3", "n", "n + 1", "2 * n - 1", "len([1, 2])", "2 if n > 1 else 3"),
                *("f1(n)", "sum([1, 2][:n])"),
            )
        )
    if depth == 0 or r.random() < 0.4:
        text = '"' + r.choice(["conv1", "*.bias", "stem.*", "", "x.npz", r"\"", "a" * 90]) + '"'
        plain = [*NAMES[:5], "yes", "no", "none", "same", "he", "in.channels", "in.height", text]
        return r.choice([r.choice(NUMBERS), r.choice(SIZES), r.choice(plain)])
    inner = [expression(r, depth - 1) for _ in range(r.randint(0, 3))] or ["1"]
    listed = ", ".join(inner)
    return r.choice(
        [
            f"[{listed}]",
            f"({inner[0]}, {inner[-1]})",
            f"{r.choice([*FUNCTIONS, *FUNCTION_NAMES, *NAMES[:3]])}({listed})",
            f"{inner[0]} {r.choice(OPERATORS)} {inner[-1]}",
            f"({inner[0]})[{inner[-1]}]",
            f"[{listed}][{r.randint(-3, 3)}]",
            f"({inner[0]})[{r.choice(inner)}:{r.choice(('', inner[-1]))}]",
            f"-{inner[0]}",
            f"not ({inner[0]})",
            f"{inner[0]} if n == {inner[-1]} else {inner[0]}",
        ]
    )


def call(r: TextDraw, signature: Signature) -> str:
    """A call with mostly valid arguments, all of them named."""
    given = (p for p in signature.params if r.random() < 0.3 or p.default is REQUIRED)
    args = [f"{p.name}={matching_value(r, p)}" for p in given]
    return f"{signature.name}({', '.join(args)})" if args else signature.name


def matching_value(r: TextDraw, p: Param) -> str:
    """A value that the parameter mostly accepts."""
    if r.runs_wild():
        return expression(r)
    if p.name in TABLES:
        return call(r, r.choice(TABLES[p.name]))
    return r.choice(_accepted_values(p.type) or VALUES)


VALUES = [
    *("1", "2", "3", "4", "8", "0.5", "1e-3", "0.1", "yes", "no", "none", "3x3", "2x2", "same"),
    *("[1, 2]", "[1, 1, 1, 1]", '"*.bias"', '("*.bias", 0.1)', "[0.25, 1]", "float16"),
    *("refuse", "balanced", "max(val_f1)", 'min(val_recall("8"))'),
]
SCOPE = Scope()


_ACCEPTED_BY_KIND: dict[int, list[str]] = {}


def _accepted_values(kind: ParameterType) -> list[str]:
    """The values that a kind accepts. Kinds are table entries that are never freed, so their ids
    are stable."""
    if id(kind) not in _ACCEPTED_BY_KIND:
        _ACCEPTED_BY_KIND[id(kind)] = [text for text in VALUES if _accepts(kind, text)]
    return _ACCEPTED_BY_KIND[id(kind)]


def _accepts(kind: ParameterType, text: str) -> bool:
    try:
        kind.accept(evaluate(parse_expression(text, ""), SCOPE))
    except (TypeMismatch, NetError):
        return False
    return True


def element(r: TextDraw, depth: int) -> str:
    """An element of a chain."""
    if depth == 0 or r.random() < 0.6:
        if r.random() < 0.5:
            return r.choice(PLAIN_LAYERS)
        layer = r.choice([x for x in LAYERS.values() if x.arity == "one"])
        return call(r, layer.signature)
    inner = [chain(r, depth - 1) for _ in range(r.randint(1, 3))]
    many = r.choice(["add", "mul", "concat"])
    optional = [f"{x} if n > {expression(r, 1)}" if r.random() < 0.2 else x for x in inner]
    times = r.choice(["99", "9999"] if r.runs_wild() else ["0", "1", "2", "3", "n"])
    items = r.choice(["n", "range(9999)"] if r.runs_wild() else ["range(3)", "[1, n]"])
    made: list[Callable[[], str]] = [
        lambda: f"{many} {{ {' | '.join(optional)} }}",
        lambda: f"({inner[0]})",
        lambda: f"({inner[0]}) * {times}",
        lambda: f"({inner[0]} -> dropout(0.1 * i)) * {times} as i",
        lambda: f"if n == {expression(r, 1)} {{ {inner[0]} }} else {{ {inner[-1]} }}",
        lambda: f"for v in {items} {{ {body(r, depth - 1)} }}",
        lambda: f"for v in {items} as n {{ {body(r, depth - 1)} }}",
        lambda: r.choice(["in", "a", "s", "b1", "b2(3)"]) if r.runs_wild() else "tanh",
    ]
    return r.choice(made)()


def chain(r: TextDraw, depth: int) -> str:
    label = ""
    if r.random() < 0.15:
        label = f"{r.choice(NAMES)}: " if r.runs_wild() else f"l{r.randrange(10**6)}: "
    return label + " -> ".join(element(r, depth) for _ in range(r.randint(1, 3)))


def function(r: TextDraw) -> str:
    """A function that is mostly sound; it may call itself or others."""
    name = r.choice(FUNCTION_NAMES)
    other = r.choice(FUNCTION_NAMES if r.runs_wild() else (name, "f1"))
    inner = r.choice((f"{other}(n - 1)", f"{other}(n - 1) + {other}(n - 2)", expression(r)))
    made = f"{expression(r)} if n <= 1 else {inner}" if r.random() < 0.8 else inner
    return f"let {name}(n, m={expression(r)}) = {made}"


def body(r: TextDraw, depth: int) -> str:
    def statement() -> str:
        kinds = [
            lambda: chain(r, depth),
            lambda: chain(r, depth),
            lambda: f"let {r.choice(NAMES[:4])} = {expression(r)}",
            lambda: function(r),
            lambda: f"shared s{r.randrange(10**6)} = {chain(r, depth)}",
            lambda: f"output o{r.randrange(10**6)}(weight=0.3): fc(10)",
        ]
        return r.choice(kinds)()

    return r.choice(["\n  ", "; "]).join(statement() for _ in range(r.randint(1, 4)))


def section(r: TextDraw, signature: Signature) -> str:
    keys = [p for p in signature.params if r.random() < 0.3]
    left_out = ("source", "net", "data", "after", "init", "freeze", "lr_scale", "recompute")
    kept = (p for p in keys if p.name not in left_out or r.runs_wild())
    entries = [f"{p.name} = {matching_value(r, p)}" for p in kept]
    if signature is DATA:
        entries.insert(0, "source = digits")
    elif r.random() < 0.3:
        metric = r.choice(["test_accuracy", 'test_recall("8")', "test_roc_auc"])
        entries.append(f"expect {metric} > {r.choice(NUMBERS)}")
    name = f" {r.choice(NAMES)}" if r.runs_wild() else ""
    return f"{signature.name}{name} {{ {', '.join(entries)} }}"


def test(r: TextDraw) -> str:
    """A test of the net `a`; its paths mostly exist."""
    place = r.choice(["conv1", "relu1", "a"]) if r.runs_wild() else "input"
    asked = [
        "params == 10",
        "macs ~ 1e6",
        "gradients",
        f'equal("{place}", "input")',
        *(f'{query}("{place}") >= {r.choice(NUMBERS)}' for query in QUERIES),
    ]
    if r.runs_wild():
        asked.append(f"{expression(r)} == {expression(r)}")
    return f"test a {{ {', '.join(r.sample(asked, r.randint(1, 3)))} }}"


def draw_file(r: TextDraw) -> str:
    """A mostly valid file."""
    shape = r.choice(["16", "64x64x3", "3x32x32"]) if r.runs_wild() else "8x8x1"
    parts = [
        "let f1(n) = n if n < 4 else f1(n - 1)",
        f"let {r.choice(NAMES[5:])} = {expression(r)}",
        f"block b1(n=2) {{ {body(r, 1)} }}",
        f"block b2(n=1) {{ {body(r, 1)} }}",
        f"net a(n=2) {{\n  input({shape})\n  {body(r, 2)}\n  b1 -> fc(10)\n}}",
        "net c = a(n=3)",
        r.choice(("net x = x", "net e = x", "let x2 = x + 1", "net a = a(n=3)")),
        section(r, DATA),
        section(r, TRAIN),
        section(r, TRAIN).replace("train {", "train d {"),
        test(r),
        f'use "{r.choice(NAMES) if r.runs_wild() else "x"}.net"',
    ]
    return "\n".join(x for x in parts if not r.runs_wild()) + "\n"


def mutate_text(r: TextDraw, text: str) -> str:
    """A text with some of its words nested, doubled, repeated, swapped or overwritten."""
    words = WORD.findall(text)
    for _ in range(r.choice((0, 1, 1, 2, 4))):
        i, j = sorted(r.randrange(len(words) + 1) for _ in range(2))
        j = min(j, i + r.choice((1, 1, 2, 8, 40)))
        words = r.choice(MUTATIONS)(r, words, i, j)
    return "".join(words)


def _nest(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    deep = r.choice((1, 5, 30, 38, 45))
    opening, closing = r.choice((("(", ")"), ("[", "]"), ("add { ", " | relu }"), ("f(", ")")))
    return [*words[:i], opening * deep, *words[i:j], closing * deep, *words[j:]]


def _double(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    value = r.choice(("[V, V]", "(V, V)", "f(V, V)", "V + V", "[V]"))
    lets = (f"let v{n + 1} = {value.replace('V', f'v{n}')}\n" for n in range(r.choice((3, 14, 60))))
    return [*words[:i], "\nlet v0 = [1, 2]\n", *lets, *words[i:]]


def _repeat(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    most = max(1, 20_000 // (1 + sum(map(len, words[i:j]))))
    return [*words[:i], *words[i:j] * min(most, r.choice((2, 10, 1000, 5000))), *words[j:]]


def _multiply(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    return [*words[:i], *words[i:j], f" * {r.choice((2, 50, 9999, 10**9))} ", *words[j:]]


def _delete(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    return words[:i] + words[j:]


def _overwrite(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    made: list[Any] = [expression(r), element(r, 1), r.choice(STRAY_TOKENS), r.choice(NUMBERS)]
    return [*words[:i], r.choice(made), *words[j:]]


def _swap(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    return [*words[:i], *reversed(words[i:j]), *words[j:]]


def _lengthen(r: TextDraw, words: list[str], i: int, j: int) -> list[str]:
    return [*words[:i], r.choice('x9 \n#"') * r.choice((10, 1000, 50_000)), *words[i:]]


MUTATIONS: tuple[Callable[[TextDraw, list[str], int, int], list[str]], ...] = (
    _nest,
    _double,
    _repeat,
    _multiply,
    _delete,
    _overwrite,
    _overwrite,
    _swap,
    _lengthen,
)
