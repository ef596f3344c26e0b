"""The language reference as Markdown tables, generated from the tables that the compiler uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netdsl.data.augment import AUGMENTATIONS
from netdsl.data.config import SIGNATURE as DATA
from netdsl.data.config import STATISTICS
from netdsl.data.mixing import MIXINGS
from netdsl.data.sources import SOURCES
from netdsl.insight.net_tests import EQUAL_SIGNATURE, QUERIES
from netdsl.insight.published_accuracy import PUBLISHED_SIGNATURE
from netdsl.language.functions import FUNCTIONS
from netdsl.layers import LAYERS, Layer
from netdsl.layers.init import INITIALISERS
from netdsl.signature import REQUIRED, Param, Signature
from netdsl.training.metrics.table import METRICS, Metric
from netdsl.training.recipe.intervals import INTERVALS
from netdsl.training.recipe.lints import LINTS
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.precision import LOW_PRECISIONS, PRECISIONS
from netdsl.training.recipe.rate_rules import RATE_RULES
from netdsl.training.recipe.recipe import SIGNATURE as TRAIN
from netdsl.training.recipe.schedules import SCHEDULES
from netdsl.values import format_value


def reference() -> str:
    """The whole page; `python -m netdsl.insight.reference` prints it."""
    sections = [_INTRO, "## Layers", layers_table(), "## Sections", _INHERIT, sections_table()]
    return (
        "\n\n".join([*sections, "## Expressions", _EXPRESSIONS, *tests_section(), *lints_section()])
        + "\n"
    )


_INTRO = """# Language reference

Written by `python -m netdsl.insight.reference > docs/reference.md`; a test checks that it is current."""

_INHERIT = """Entries are separated by line breaks or commas. Several `data` and `train` sections may appear
in a file: `train fast { epochs = 2 }` inherits from the unnamed `train` and overrides its
entries. `netdsl train file.net:fast` selects it; its keys `net` and `data` name a net and a data section.
`expect CONDITION` lines in `train` are checked when the run ends (exit code 1 if one fails). They use the metrics
in the table below: `expect test_accuracy > 0.9`, `expect val_recall("ants") > val_recall("bees")`.
`best = max(val_f1)` chooses the best weights by a metric, which `patience` also watches. The default is
`val_accuracy`, with ties broken by the smaller `val_loss`, or `train_loss` without validation images
([training.md](training.md#what-is-best)).

`after = head` runs the recipe `head` first, in a subdirectory `head` of the run directory, and starts
from its best weights (only the last recipe's expectations are checked);
`init = weights("FILE", except="head.*")` starts from the weights of another run, but initialises the
weights that match `except` at random. In a layer of class scores, these are `score_scale=0.01` times as large as
usual, unless the layer has its own initialiser ([training.md](training.md#transfer)). Weights are named by
their paths, as in `freeze = "stem.*"`; `*` also matches dots, and a glob that matches nothing is an error
(except in `no_decay`). Frozen weights have no gradient and no update, and a batch normalisation with frozen
statistics uses them unchanged. A schedule counts epochs from 0: `step(at=[30, 60])`
lowers the learning rate after 30 and 60 epochs; `warmup` can be a fraction of an epoch."""

_EXPRESSIONS = (
    """Numbers (`12`, `0.5`, `1e-4`, `25_557_032`), sizes (`3x3`, `224x224x3`), strings (`"..."`), `yes`,
`no`, `none`, lists (`[1, 2]`), pairs, `+ - * / // %`, comparisons, `and or not`, entries of lists and sizes
(`depths[0]`, `list[-1]`), slices of them (`depths[:s]`, `depths[1:]`, `depths[a:b]`, as in Python, without a step),
`a if condition else b`, `in.channels`, `in.height`, `in.width`, and the functions """
    + ", ".join(f"`{usage}`" for _, usage in FUNCTIONS.values())
    + """. A division without remainder gives an integer, so `in.channels/4` is a channel count. `a + b` joins two
lists; `min` and `max` also take one. Comparisons do not chain (`1 < x and x < 20`), there are no list comprehensions, and
only numbers can be multiplied. An undefined name is a word, such as `same` or `relu`. Words can be
passed to blocks and nets, and compared with `==` and `!=`:
`block gate(act=relu) { if act == relu { relu } else { silu } }`. A quoted string never equals a word.

`pad` takes `same`, one number, a size such as `1x2`, or `[top, bottom, left, right]`. `same` adds
dilation * (kernel - 1) pixels along each axis, half on each side whatever the stride; with an even kernel, the odd pixel is added
at the bottom and right. The output size is the input size divided by the stride, rounded up. In `convtranspose`,
`same` makes the output size the input size times the stride, and crops kernel - stride pixels in the same way.

`for c in list { }` and `for c, n in list_of_lists { }`, with as many names as each inner list has entries,
are also chains, in nets and in blocks. `for c in list as i { }` and `block * n as i` count from 0; the name is
visible in the body or the repeated element. `if` without `else` passes its input through if its condition is
`no`.

A branch can end with a condition, on the line where its chain ends:
`add { unit(c) | identity if stride == 1 and in.channels == c }`. If it is `no`, the branch is left out. If one branch
remains, the join is that branch, without a layer. `sub` needs both of its branches, and at least one branch must
remain.

`let n = 4` defines a value, `let f(a, b=2) = a + b` a function. A function can call itself, but it is not a value: it
can be called, not passed as an argument. In the body of a net or block, a `let` is visible below it, and a function can
use what is visible where it is defined. A `let` in the branch of an `if` that is taken is also visible below the `if`. A
`let` in a `for` is visible until the loop ends, also in later iterations, so `let k = k + 1` counts. A second `let`
with the same name hides the first. Outside nets and blocks, a `let` is visible in the whole file and in the files that
use it; the order of these `let`s does not matter, and they can use only each other. A name in an expression is looked
up among the variables of the body, then among the `let`s of the file, then among the words of the language.

`check` also examines code that no net uses, such as the body of a function that is never called, and reports
undefined names and parameters with the same name.

A name consists of letters, digits and `_`. `and`, `or` and `else` are not names: they continue the line before.

A path consists of the labels, blocks and layers along the way. Anything without a label is named by its type and a
number that counts from 1 among those of the same name; a label in a loop or a repeat is numbered in the same way:
`s1.basic4.cb1.conv1.weight`."""
)

_TESTS = (
    """`test NET { ... }` contains comparisons (`== != < <= > >=`, and `~` for equality within one per cent) of
`params`, `macs`, `activations` (for one image; side outputs, which only training uses, count only
in `params`) and queries about a place; the word `gradients`, which
checks every layer's gradient numerically; and `equal` or `not equal` of two places. A place is a
path of labels, blocks and layers, as `netdsl summary` prints it. If a query needs values, the net
is run on white noise with its initial weights, in evaluation mode unless
`training=yes`.

`"""
    + str(PUBLISHED_SIGNATURE)
    + """` records a fact and is not a test: the shares of the test images whose class is
the most likely, or among the five most likely, as reported by a paper or a library:
`published(top1=0.744, source="paper, table 3", crops=dense, train=[256, 512], test=384)`. A net can have
several, if they differ in source, crops or sizes. `netdsl test` prints all of them; `netdsl summary FOLDER` prints the
first one next to the figures of the net, and all of them in a second table."""
)


_STATISTICS = """`normalize` subtracts a mean from each pixel, scaled from bytes to 0..1, and divides by a standard
deviation, for each channel:"""


def layers_table() -> str:
    """Every layer that a chain can contain."""
    rows = [
        (_format_call(x.signature, x.arity == "many"), _describe_layer(x)) for x in LAYERS.values()
    ]
    rows.insert(0, ("input(shape)", "the net's input"))
    inits = ", ".join(f"`{i.signature}`".replace("()", "") for i in INITIALISERS.values())
    keyword_only = dict.fromkeys(
        p.name for x in LAYERS.values() for p in x.signature.params if p.is_keyword_only
    )
    return f"""{_format_table("layer", rows)}

Must be given by name: {", ".join(f"`{n}`" for n in keyword_only)}.

Initialisers: {inits}; a bare number is a constant."""


def sections_table() -> str:
    """The keys of `data` and `train`, and their possible values."""
    parts = []
    for signature in (DATA, TRAIN):
        rows = [(_format_key(p), p.doc) for p in signature.params]
        parts.append(_format_table(f"`{signature.name}` key and default", rows))
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("Sources", SOURCES),
        ("Augmentations", {**AUGMENTATIONS, **MIXINGS}),
        ("Losses", LOSSES),
        ("Optimizers", OPTIMIZERS),
        ("Schedules", SCHEDULES),
        ("Rate rules", RATE_RULES),
        ("Intervals", INTERVALS),
        ("Precisions", PRECISIONS),
        ("16-bit types", LOW_PRECISIONS),
    )
    for title, table in tables:
        parts.append(
            _format_table(
                title, [(_format_call(r.signature, False), r.doc) for r in table.values()]
            )
        )
    parts.append(_format_table("Metrics", [_describe_metric(m) for m in METRICS.values()]))
    statistics = [(_format_call(x.signature, False), x.doc) for x in STATISTICS.values()]
    parts += [_STATISTICS, _format_table("Statistics", statistics)]
    return "\n\n".join(parts)


def tests_section() -> list[str]:
    """What a `test` section can contain."""
    rows = [(str(q.signature), q.doc) for q in QUERIES.values()]
    equality = (
        "whether two places give the same values, with a tolerance of `within` times the "
        "largest value"
    )
    return [
        "## Tests",
        _TESTS,
        _format_table("`published`", [(p.name, p.doc) for p in PUBLISHED_SIGNATURE.params]),
        _format_table("of places", [*rows, (str(EQUAL_SIGNATURE), equality)]),
    ]


_LINTS = """`check`, `train` and `train --dry-run` warn about what is allowed but probably not intended. `# allow: NAME`
on the line of a warning, or on the line above, silences it."""


def lints_section() -> list[str]:
    """The warnings that a file can get."""
    rows = [(x.name, x.doc) for x in LINTS.values()]
    return ["## Warnings", _LINTS, _format_table("lint", rows)]


def _describe_metric(metric: Metric) -> tuple[str, str]:
    """The names of a metric, and what it is."""
    names = ", ".join(f"{part}_{metric.name}" for part in metric.parts)
    by_class = f'; `{names.split(", ")[0]}("ants")` is the value of one class'
    return names, metric.doc + (by_class if metric.measure_classes else "")


def _describe_layer(layer: Layer) -> str:
    """What a layer does, and the meaning of its parameters that have a description."""
    parameter_docs = "; ".join(f"`{p.name}`: {p.doc}" for p in layer.signature.params if p.doc)
    return f"{layer.doc}. {parameter_docs}" if parameter_docs else layer.doc


def _format_key(p: Param) -> str:
    return p.name if p.default is REQUIRED else f"{p.name} = {format_value(p.default)}"


def _format_call(signature: Signature, has_branches: bool) -> str:
    text = str(signature).replace("()", "")
    return f"{text} {{ a | b }}" if has_branches else text


def _format_table(heading: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {heading} | |", "|---|---|"]
    lines += [f"| `{_escape_cell(a)}` | {_escape_cell(b)} |" for a, b in rows]
    return "\n".join(lines)


def _escape_cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print(reference(), end="")
