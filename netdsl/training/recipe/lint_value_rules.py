"""Lint rules for values out of the range that they make sense in, and for text without effect."""

from __future__ import annotations

import re
from collections.abc import Iterator

from netdsl.data.sources import SOURCES
from netdsl.language import syntax as s
from netdsl.language.network import LayerInfo
from netdsl.layers import LAYERS
from netdsl.ops import OPS
from netdsl.training.recipe.intervals import count_validations
from netdsl.training.recipe.lint import Finding, Review, Subject
from netdsl.training.recipe.rate_rules import full_scale
from netdsl.training.recipe.recipe import Recipe
from netdsl.values import Argument, Size, format_value

# ---- of a net ---------------------------------------------------------------------------------


def find_single_branch(review: Review) -> Iterator[Finding]:
    """Finds joins of one branch, as of a residual block without its `identity`."""
    program = review.program
    for step in s.walk(*program.blocks.values(), *program.nets.values()):
        if not isinstance(step, s.Step) or step.branches is None or len(step.branches) != 1:
            continue
        (branch,) = step.branches
        if any(isinstance(e, s.Repeat | s.For) for e in branch.chain.elements):
            continue
        yield Finding(
            f"`{step.name}` has one branch, so it changes nothing",
            step.name_span,
            f"branches are separated by `|`: `{step.name} {{ identity | ... }}`",
        )


def find_repeated_activation(review: Review) -> Iterator[Finding]:
    """Finds an activation alone that is repeated, though the chain before it is meant."""
    program = review.program
    for repeat in s.walk(*program.blocks.values(), *program.nets.values()):
        if not isinstance(repeat, s.Repeat) or not isinstance(repeat.element, s.Step):
            continue
        name = repeat.element.name
        if name in OPS and "activation" in OPS[name].traits and name not in program.blocks:
            yield Finding(
                f"`*` repeats only `{name}`, not the chain before it",
                repeat.span,
                f"put the chain in parentheses: `(... -> {name}) * ...`",
            )


def find_large_momentum(subject: Subject) -> Iterator[Finding]:
    """Finds Keras's momentum of a batch normalisation, the share of the old average."""
    for layer in subject.network.layers:
        momentum = layer.arguments.get("momentum")
        if layer.layer_type == "batchnorm" and momentum is not None and 0.5 < momentum < 1:
            yield Finding(
                f"`momentum` is the weight of the new batch in the moving averages, and "
                f"{format_value(momentum)} of them is replaced by each batch",
                layer.span,
                "Keras's `momentum` is 1 minus this one: write "
                f"`momentum={format_value(1 - momentum)}`",
            )


def find_idle_pool(subject: Subject) -> Iterator[Finding]:
    """Finds poolings of single pixels that are written as such, so not by a block's parameter."""
    for layer in subject.network.layers:
        given = layer.arguments
        if layer.layer_type not in ("maxpool", "avgpool") or given.get("to") is not None:
            continue
        is_idle = max(given["kernel"]) == 1 and max(given["stride"] or (1,)) == 1
        if is_idle and any(re.fullmatch(r"1(x1)?", _text(a)) for a in layer.written[:1]):
            pooling = "globalavgpool" if layer.layer_type == "avgpool" else "globalmaxpool"
            yield Finding(
                f"`{layer.call}` pools single pixels, so it changes nothing",
                layer.span,
                f"did you mean `{pooling}`? A size of the result is written `to=1x1`",
            )


_PRODUCT = re.compile(r"(\d{1,2})\s*\*\s*(\d{1,2})")
_SIZE_NAMES = ("kernel", "stride", "pad", "factor", "to", "dilation")


def find_product_for_size(subject: Subject) -> Iterator[Finding]:
    """Finds `3*3`, which is 9, where a size is expected."""
    for layer in subject.network.layers:
        for name, argument in _named(layer):
            product = _PRODUCT.fullmatch(_text(argument))
            if product and name in _SIZE_NAMES and not isinstance(argument.value, Size):
                yield Finding(
                    f"`{product[0]}` is a product: `{name}` is {format_value(argument.value)}",
                    argument.span,
                    f"a size is written with `x`: `{product[1]}x{product[2]}`",
                )


def _named(layer: LayerInfo) -> Iterator[tuple[str, Argument]]:
    """The written arguments of a layer with the names of their parameters."""
    if layer.layer_type in LAYERS:
        params = LAYERS[layer.layer_type].signature.params
        for i, argument in enumerate(layer.written):
            yield argument.name or params[min(i, len(params) - 1)].name, argument


def _text(argument: Argument) -> str:
    return argument.span.text.rpartition("=")[2].strip() if argument.span else ""


def find_dropped_scores(subject: Subject) -> Iterator[Finding]:
    """Finds dropout of the scores themselves."""
    graph = subject.network.graph
    for name in graph.outputs.values() if subject.recipe else ():
        node = graph[name]
        if node.op == "dropout":
            yield Finding(
                "the net ends in `dropout`, which sets class scores to 0 during training",
                node.span,
                "put it before the last layer: `dropout(...) -> fc(...)`",
            )


# ---- of a recipe ------------------------------------------------------------------------------

_RATES = {"sgd": (2.0, 0.1), "adam": (0.03, 1e-3), "adamw": (0.03, 1e-3), "rmsprop": (0.1, 1e-3)}
"""For each optimizer a rate above those of published recipes and of short ones for small nets, and
one to begin with."""
_MAX_DECAY = 1.0
_MAX_DECAY_STEP = 0.1
"""The largest share of a weight that its decay takes in one update of `adamw`."""


def find_extreme_rate(subject: Subject) -> Iterator[Finding]:
    """Finds learning rates and weight decays that no training survives. An `eps` far from its
    default is taken as intended, since it scales the steps."""
    if subject.recipe is None:
        return
    optimizer = subject.recipe.optimizer
    given = optimizer.arguments
    rate, decay = given["lr"], given["weight_decay"]
    limit, usual = _RATES.get(optimizer.name, (rate, rate))
    if rate == 0:
        help = "leave `lr` out for the default, or `freeze` the weights that are to stay"
        yield Finding("with `lr=0`, nothing is learned", optimizer.span, help)
    elif rate > limit and given.get("eps", 0) < 1e-4:
        yield Finding(
            f"a learning rate of {format_value(rate)} is far too large for `{optimizer.name}`",
            optimizer.span,
            f"begin with `lr={format_value(usual)}`",
        )
    is_decoupled = optimizer.name == "adamw"
    if (rate * decay >= _MAX_DECAY_STEP) if is_decoupled else decay >= _MAX_DECAY:
        yield Finding(
            f"a weight decay of {format_value(decay)} shrinks all weights to 0",
            optimizer.span,
            f"usual values are `weight_decay={'0.05' if is_decoupled else '1e-4'}` and around",
        )


def find_rising_step(subject: Subject) -> Iterator[Finding]:
    schedule = subject.recipe.schedule if subject.recipe else None
    if schedule is not None and schedule.name == "step" and schedule.arguments["gamma"] > 1:
        gamma = schedule.arguments["gamma"]
        yield Finding(
            f"the rate is multiplied by {format_value(gamma)} at each step, so it rises",
            schedule.span,
            f"to divide it, write `gamma={format_value(1 / gamma)}`",
        )


def find_long_patience(subject: Subject) -> Iterator[Finding]:
    """A `patience` of the recipe itself: one that it inherits is meant for longer recipes, and
    fewer epochs may be set for a quick trial."""
    recipe = subject.recipe
    if recipe is None or recipe.patience is None:
        return
    judged = count_validations(recipe.validate_every, recipe.epochs)
    if recipe.patience < judged or not _is_own_entry(recipe, "patience"):
        return
    every = "validated ones" if judged < recipe.epochs else "`epochs`"
    count = f" ({judged} of them validated)" * (judged < recipe.epochs)
    yield Finding(
        f"the run ends after {recipe.epochs} epochs{count}, before `patience = {recipe.patience}` "
        "can end it",
        recipe.spans.get("patience"),
        f"set `patience` below {every}, or remove it",
    )


def _is_own_entry(recipe: Recipe, key: str) -> bool:
    """Whether a section has an entry itself, beside its `epochs`."""
    section, entry = recipe.spans["train"], recipe.spans.get(key)
    epochs = recipe.spans.get("epochs", section)
    if entry is None or not section.start <= entry.start < section.end:
        return False
    return entry.source is section.source is epochs.source


def find_long_interval(subject: Subject) -> Iterator[Finding]:
    """Finds intervals that never pass before the run ends."""
    recipe = subject.recipe
    if recipe is None or recipe.epochs == 1:
        return
    effects = {
        "validate_every": "only the first and the last epoch are validated",
        "save_every": "`last` is saved only with `best` and at the end",
    }
    for key, chosen in zip(effects, (recipe.validate_every, recipe.save_every), strict=True):
        is_long = chosen.name == "epochs" and chosen.arguments["count"] >= recipe.epochs
        if is_long and _is_own_entry(recipe, key):
            yield Finding(
                f"the run has {recipe.epochs} epochs: {effects[key]}",
                recipe.spans.get(key),
                f"set `{key}` to fewer epochs",
            )


_MAX_SUDDEN_SCALE = 4.0
"""Below, a rate chosen with some care still trains. At 32, Goyal et al. 2017 lose a point of
accuracy without a gradual warm-up."""


def find_sudden_rate(subject: Subject) -> Iterator[Finding]:
    recipe = subject.recipe
    if recipe is None or recipe.lr_rule is None:
        return
    scale = full_scale(recipe.lr_rule, recipe.images_per_update)
    calls = (recipe.lr_rule, recipe.schedule)
    rises = any(c.arguments.get("warmup") or "rise" in c.arguments for c in calls)
    if scale > _MAX_SUDDEN_SCALE and not rises:
        base, name = recipe.lr_rule.arguments["batch"], recipe.lr_rule.name
        yield Finding(
            f"`{name}` multiplies the rate by {format_value(round(scale, 2))} from the first "
            "update on",
            recipe.lr_rule.span,
            f"add a warm-up: `{name}({base}, warmup=5)`",
        )


_MIN_EMA = 0.5


def find_small_ema(subject: Subject) -> Iterator[Finding]:
    recipe = subject.recipe
    if recipe is not None and recipe.ema is not None and recipe.ema < _MIN_EMA:
        yield Finding(
            f"`ema` is the weight of the old average, and {format_value(recipe.ema)} averages "
            "almost nothing",
            recipe.spans.get("ema"),
            f"write `ema = 0.999`, or for {format_value(recipe.ema)} of the new weights "
            f"`ema = {format_value(1 - recipe.ema)}`",
        )


def find_small_validation(subject: Subject) -> Iterator[Finding]:
    """Finds a number of validation images that cannot hold one of each class."""
    if subject.recipe is None:
        return
    data, graph = subject.recipe.data, subject.network.graph
    count, classes = data.validation, graph[graph.outputs["main"]].type.shape[-1]
    if not isinstance(count, bool | float) and 0 < count < classes:
        share = "0.1" if count == 1 else format_value(count / 100)
        yield Finding(
            f"`validation = {count}` is a number of images, fewer than the {classes} classes",
            data.spans.get("validation"),
            f"a share is a fraction: `validation = {share}`",
        )


_PARTS = ("val", "valid", "validation", "dev", "test")


def find_part_as_data(review: Review) -> Iterator[Finding]:
    """Finds `data val { ... }` beside other data sections, if no recipe uses it: a section is a
    whole data set, not its part for validation."""
    program = review.program
    used = {program.reference_name(recipe, "data") for recipe in program.sections("train")}
    sections = list(program.sections("data"))
    for section in sections:
        if section.name in _PARTS and section.name not in used and len(sections) > 1:
            yield Finding(
                f"no recipe uses `data {section.name}`",
                section.span,
                "a data section has training, validation and test images: "
                '`source = folder("DIR")` finds DIR/train, DIR/val and DIR/test',
            )


def find_source_as_name(review: Review) -> Iterator[Finding]:
    """Finds `data digits { ... }`, where the source is taken for the name of the section."""
    sections = [i for i in review.program.items if isinstance(i, s.Section) and i.kind == "data"]
    if any(x.name is None for x in sections):  # the others inherit its source
        return
    for section in sections:
        keys = {e.name for e in section.entries if isinstance(e, s.SectionEntry)}
        if section.name in SOURCES and "source" not in keys:
            yield Finding(
                f"`{section.name}` is only the name of this section, which has no `source`",
                section.span,
                f"did you mean `data {{ source = {section.name} }}`?",
            )
