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
from netdsl.training.recipe.lints import LINTS
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.precision import LOW_PRECISIONS, PRECISIONS
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
in a file: `train fast { epochs = 2 }` starts from the unnamed `train` and overrides its entries;
`netdsl train file.net:fast` picks it, its `net` and `data` keys name a net and a data section.
`expect CONDITION` lines in `train` are checked when the run ends (exit code 1 if one fails), with the
metrics of the table below: `expect test_accuracy > 0.9`, `expect val_recall("ants") > val_recall("bees")`.
`best = max(val_f1)` chooses the best weights by a metric, which `patience` then waits for; by default it
is `val_accuracy`, of equal ones the smaller `val_loss`, and without validation images `train_loss`
([training.md](training.md#what-is-best)).

`after = head` runs the recipe `head` first, in a directory of that name within the run's, and starts
from its best weights (only the last recipe's expectations are checked);
`init = weights("FILE", except="head.*")` starts from those of another run, and draws what `except`
matches: the weights of a layer of class scores `score_scale=0.01` times as large as otherwise, unless the
layer has an initialiser of its own ([training.md](training.md#transfer)). FILE is looked up beside the
.net file that names it, then in the working directory. Weights are named by
their paths, as in `freeze = "stem.*"`; `*` crosses dots, and a glob that matches nothing is an error
(except in `no_decay`). Frozen weights have no gradient and no update, and a batch normalisation whose
statistics are frozen uses them as they are. A schedule counts epochs from 0: `step(at=[30, 60])`
lowers the rate after 30 and 60 epochs; `warmup` may be a part of one."""

_EXPRESSIONS = (
    """Numbers (`12`, `0.5`, `1e-4`, `25_557_032`), sizes (`3x3`, `224x224x3`), texts (`"..."`), `yes`,
`no`, `none`, lists (`[1, 2]`), pairs, `+ - * / // %`, comparisons, `and or not`, entries of lists and sizes
(`depths[0]`, `list[-1]`), parts of them (`depths[:s]`, `depths[1:]`, `depths[a:b]`, ends as in Python, no step),
`a if condition else b`, `in.channels`, `in.height`, `in.width`, and the functions """
    + ", ".join(f"`{usage}`" for _, usage in FUNCTIONS.values())
    + """. A division without remainder gives an integer, so `in.channels/4` is a channel count. `a + b` joins two
lists; `min` and `max` also take one. Comparisons do not chain (`1 < x and x < 20`), a list has no loops inside, and
nothing but a number is multiplied. A name that nothing defines is a word, such as `same` or `relu`. Words can be
passed to blocks and nets, and `==` and `!=` compare them:
`block gate(act=relu) { if act == relu { relu } else { silu } }`. A text in quotes equals no word.

`pad` takes `same`, one number, a size such as `1x2`, or `[top, bottom, left, right]`. `same` adds
dilation * (kernel - 1) pixels along each axis, half on each side whatever the stride, the odd one of an even
kernel below and to the right; the output is the input over the stride, rounded up. In `convtranspose`
it makes the output the input times the stride, and crops kernel - stride pixels as evenly.

`for c in list { }` and `for c, n in list_of_lists { }`, with as many names as each list has entries,
are chains too, in nets and in blocks. `for c in list as i { }` and `block * n as i` count from 0; the name is
visible in the body or the repeated element. `if` without `else` passes its input through if its condition is
`no`.

A branch may end with a condition, on the line where its chain ends:
`add { unit(c) | identity if stride == 1 and in.channels == c }`. If it is `no`, the branch is left out. A join of
one branch that is left is that branch, without a layer; `sub` needs both of its branches, and one branch must stay.

`let n = 4` names a value, `let f(a, b=2) = a + b` a function. A function may call itself, and is no value: it
can be called, not passed on. In the body of a net or block, a `let` is visible below it, and a function sees what is
visible where it stands. A `let` in the taken branch of an `if` is visible below the `if` too; one in a `for` until the
loop ends, in its later rounds too, so `let k = k + 1` counts. A second `let` of the same name hides the first. Between
items, a `let` is visible in the whole file and in the files that use it; their order has no
meaning, and they see only each other. An expression looks a name up among the variables of its body, then among
the `let`s of the file, then among the words of the language.

`check` also looks at what no net reaches, such as the body of a function that nothing calls: names that nothing
defines, and parameters of one name.

A name consists of letters, digits and `_`. `and`, `or` and `else` are not names: they continue the line before.

A path holds the labels, blocks and layers along the way. What has no label is called by its name and
its number among those of that name there, from 1; so is a label in a loop or a repeat:
`s1.basic4.cb1.conv1.weight`."""
)

_TESTS = (
    """`test NET { ... }` holds comparisons (`== != < <= > >=`, and `~` for within one per cent) of
`params`, `macs`, `activations` (of one image; side outputs, which only training needs, count in
`params` alone) and queries about a place; the word `gradients`, which
checks every layer's gradient numerically; and `equal` or `not equal` of two places. A place is a
path of labels, blocks and layers, as `netdsl summary` prints it. If a query needs values, the net
is run on white noise with its initial weights, as in evaluation unless
`training=yes`.

`"""
    + str(PUBLISHED_SIGNATURE)
    + """` states a fact and is not a test: shares of the test images whose class is
the most likely, or among the five most likely, as a paper or a library reports them:
`published(top1=0.744, source="paper, table 3", crops=dense, train=[256, 512], test=384)`. A net may have several, if they
differ in source, crops or sizes. `netdsl test` prints them all, `netdsl summary FOLDER` the first next to the net's
figures, and all in a second table."""
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

Given by name only: {", ".join(f"`{n}`" for n in keyword_only)}.

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
    equality = "whether two places give the same values, up to a share `within` of the largest"
    return [
        "## Tests",
        _TESTS,
        _format_table("`published`", [(p.name, p.doc) for p in PUBLISHED_SIGNATURE.params]),
        _format_table("of places", [*rows, (str(EQUAL_SIGNATURE), equality)]),
    ]


_LINTS = """`check`, `train` and `train --dry-run` warn about what is allowed but probably not intended. `# allow: NAME`
on the line that a warning names, or on the one above, silences it."""


def lints_section() -> list[str]:
    """The warnings that a file can get."""
    rows = [(x.name, x.doc) for x in LINTS.values()]
    return ["## Warnings", _LINTS, _format_table("lint", rows)]


def _describe_metric(metric: Metric) -> tuple[str, str]:
    """The names of a metric, and what it is."""
    names = ", ".join(f"{part}_{metric.name}" for part in metric.parts)
    by_class = f'; `{names.split(", ")[0]}("ants")` is that of one class'
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
