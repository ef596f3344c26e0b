"""The `train` section: its keys, resolved with every default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from netdsl.data.config import SIGNATURE as DATA_SIGNATURE
from netdsl.data.config import DataConfig, resolve_data
from netdsl.errors import NetError, Span, fail
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors, limit_error
from netdsl.language.elaborate import Settings, ShrinkSettings, shrink_settings
from netdsl.language.evaluate import TopLevel
from netdsl.language.program import (
    CHOICE_OF_RECIPE,
    Program,
    evaluate_section,
)
from netdsl.limits import MAX_CHAIN_LENGTH, MAX_EPOCHS, MAX_GLOBS
from netdsl.parameter_types import (
    GLOB_LIST,
    Boolean,
    Float,
    Integer,
    ListOfPairs,
    NoneLiteral,
    OneOf,
    QuotedText,
    TypeMismatch,
)
from netdsl.signature import BoundCall, CallOf, Param, Signature
from netdsl.training.metrics.table import MetricName
from netdsl.training.recipe.best import Criterion, CriterionKind
from netdsl.training.recipe.expectations import check_expectation, check_held_out, find_metrics
from netdsl.training.recipe.initial_weights import INITIAL_WEIGHTS
from netdsl.training.recipe.intervals import IntervalKind
from netdsl.training.recipe.key_homes import find_homes
from netdsl.training.recipe.losses import Objective, ObjectiveKind, check_no_sum
from netdsl.training.recipe.net_data import find_data_of_net
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.precision import PRECISIONS
from netdsl.training.recipe.rate_rules import RATE_RULES
from netdsl.training.recipe.recipe_checks import check_clock, check_warmups
from netdsl.training.recipe.schedules import SCHEDULES
from netdsl.values import Call, Symbol, Value, format_value


@dataclass(frozen=True)
class _NameKind:
    """A bare name that refers to another item of the file."""

    def accept(self, value: Value) -> Symbol:
        if not isinstance(value, Symbol):
            raise TypeMismatch("a name")
        return value


@dataclass(frozen=True)
class _NetNameKind(_NameKind):
    """A bare name of a net, which takes no arguments here."""

    def accept(self, value: Value) -> Symbol:
        if isinstance(value, Call):
            help = f"write `net my = {format_value(value)}` outside, and here `net = my`"
            if not value.arguments:
                help = f"write `net = {value.name}`"
            raise fail("`net` takes the name of a net, without arguments", value.span, help=help)
        return super().accept(value)


_OPTIONAL_NAME = OneOf((NoneLiteral(), _NameKind()))
_OPTIONAL_COUNT = OneOf((NoneLiteral(), Integer(1, 1_000_000)))

SIGNATURE = Signature(
    "train",
    (
        Param(
            "net",
            OneOf((NoneLiteral(), _NetNameKind())),
            None,
            "the net to train; default: the first one in the file",
        ),
        Param("data", _OPTIONAL_NAME, None, "the data section; default: the unnamed one"),
        Param(
            "after",
            _OPTIONAL_NAME,
            None,
            "a recipe that runs first; its best weights are the initial ones",
        ),
        Param(
            "init",
            OneOf((NoneLiteral(), CallOf("source of weights", INITIAL_WEIGHTS))),
            None,
            'weights("FILE", except=[globs]): the initial weights',
        ),
        Param("loss", ObjectiveKind(), Symbol("cross_entropy"), "a loss, or [(loss, weight), ...]"),
        Param(
            "optimizer",
            CallOf("optimizer", OPTIMIZERS),
            Symbol("sgd"),
            "how the weights are updated",
        ),
        Param(
            "schedule",
            CallOf("schedule", SCHEDULES),
            Symbol("constant"),
            "how the learning rate changes",
        ),
        Param(
            "lr_rule",
            OneOf((NoneLiteral(), CallOf("rate rule", RATE_RULES))),
            None,
            "how the learning rate depends on the images per update (`batch` x `accumulate`)",
        ),
        Param("precision", CallOf("precision", PRECISIONS), Symbol("full"), "of products"),
        Param(
            "deterministic",
            Boolean(),
            False,
            "gives the same bits on every run, also on a GPU, but is slower",
        ),
        Param("epochs", Integer(1, MAX_EPOCHS), 10, "passes over the training images"),
        Param(
            "patience",
            _OPTIONAL_COUNT,
            None,
            "validated epochs without improvement that end the run early",
        ),
        Param(
            "best",
            CriterionKind(),
            None,
            "the metric that chooses the best weights and that `patience` watches, such as "
            "`max(val_f1)`; `none`: `val_accuracy`, then `val_loss`",
        ),
        Param(
            "seed",
            Integer(0, 2**31 - 1),
            1,
            "seed of the initial weights, the order of images and dropout",
        ),
        Param(
            "clip",
            OneOf((NoneLiteral(), Float(above=0))),
            None,
            "largest global norm of the gradients; larger gradients are scaled down",
        ),
        Param(
            "accumulate",
            Integer(1, 65536),
            1,
            "number of batches whose mean gradient makes one update",
        ),
        Param(
            "ema",
            OneOf((NoneLiteral(), Float(above=0, below=1))),
            None,
            "decay of a moving average of the weights, which is evaluated and saved instead of "
            "the weights",
        ),
        Param("freeze", GLOB_LIST, (), "globs of weights that are not trained"),
        Param(
            "lr_scale",
            ListOfPairs(QuotedText(), Float(0), '[("s3.*", 0.1)]', MAX_GLOBS),
            (),
            "factors of the learning rate: [(glob, factor), ...]; the last match counts",
        ),
        Param(
            "recompute",
            GLOB_LIST,
            (),
            "globs of blocks or layers whose intermediate values the backward pass recomputes",
        ),
        Param(
            "shrink",
            OneOf((NoneLiteral(), Integer(1, 2**20))),
            None,
            "divisor of the net's channels, for a quick trial",
        ),
        Param(
            "validate_every",
            IntervalKind(),
            1,
            "which epochs are validated: the first, the last, and those at whose end this interval "
            "has passed",
        ),
        Param(
            "save_every",
            IntervalKind(),
            1,
            "how often `last` is saved, within epochs too; it is also saved whenever `best` is",
        ),
        Param("keep_every", _OPTIONAL_COUNT, None, "keep a checkpoint every n epochs"),
    ),
    noun="key",
)


HOMES = find_homes((SIGNATURE, DATA_SIGNATURE))
"""What keys and entries of both sections are, for one that is written elsewhere."""


@dataclass(frozen=True)
class Recipe:
    """A resolved `train` section with the data section it uses. `spans` maps keys to the source
    spans of their entries."""

    net: str
    after: str | None
    init: BoundCall | None
    loss: Objective
    optimizer: BoundCall
    schedule: BoundCall
    lr_rule: BoundCall | None
    precision: BoundCall
    deterministic: bool
    epochs: int
    patience: int | None
    best: Criterion | None
    seed: int
    clip: float | None
    accumulate: int
    ema: float | None
    freeze: tuple[str, ...]
    lr_scale: tuple[tuple[str, float], ...]
    recompute: tuple[str, ...]
    shrink: int | None
    validate_every: BoundCall
    save_every: BoundCall
    keep_every: int | None
    data: DataConfig
    has_float_images: bool = False
    """Whether the images are floats that the net takes as they are, instead of bytes."""
    is_multi_label: bool = False
    """Whether an image of the data has several labels, or none, instead of one class."""
    more_metrics: tuple[MetricName, ...] = ()
    """Metrics to measure besides: they are no part of the recipe, as they change nothing in a
    run."""
    expectations: tuple[s.Expression, ...] = ()
    spans: Mapping[str, Span] = field(default_factory=dict, compare=False)
    top_level: TopLevel = field(default_factory=TopLevel, compare=False, repr=False)
    """What the expectations see besides metrics."""

    def settings(self, training: bool, batch: int | None = None, ranks: int = 1) -> Settings:
        """Returns the settings that elaborate the net for this recipe, for each of `ranks` with a
        part of the batch."""
        size = self.data.batch // ranks if batch is None else batch
        settings = Settings(
            size, training, frozen_globs=self.freeze, shrink=self.small, ranks=ranks
        )
        if self.has_float_images:
            return settings
        return replace(settings, input_dtype="uint8", prepare=self.data.normalize_pixels)

    @property
    def images_per_update(self) -> int:
        """The number of images whose mean gradient makes one update."""
        return self.data.batch * self.accumulate

    @property
    def requested_metrics(self) -> tuple[MetricName, ...]:
        """The metrics that `best` and the expectations name, and those asked for besides."""
        return tuple(name for name, _ in self.metric_spans)

    @property
    def metric_spans(self) -> tuple[tuple[MetricName, Span | None], ...]:
        """The metrics that `best` and the expectations name, with the spans of their names, and
        those asked for besides."""
        chosen = [(self.best.metric, self.best.span)] if self.best else []
        expected = (found for e in self.expectations for found in find_metrics(e))
        return (*chosen, *expected, *((name, None) for name in self.more_metrics))

    @property
    def mixes_labels(self) -> bool:
        """Whether training mixes images of several classes."""
        return any(chosen.record.mixes_labels for chosen in self.data.augment)

    @property
    def glob_count(self) -> int:
        """The number of globs matched against the net's weights and paths."""
        keys = (self.freeze, self.lr_scale, self.recompute, self.optimizer.arguments["no_decay"])
        return sum(map(len, keys))

    @property
    def small(self) -> ShrinkSettings | None:
        """The shrink settings if a smaller version of the net is trained. Images keep the size of
        the data."""
        return shrink_settings(self.shrink, shrink_images=False)


def net_name(program: Program, name: str | None) -> str | None:
    """The name of the net that a recipe names, or None."""
    section = program.find_section("train", name)
    return program.reference_name(section, "net") if section else None


def list_choices(program: Program, name: str | None) -> list[str]:
    """A line for each section that is used because it is the first of several named ones, as no
    other was asked for."""
    recipe = program.find_section("train", name)
    wanted = program.reference_name(recipe, "data") if recipe else None
    lines = []
    for kind, asked, how in (
        ("train", name, "FILE:{}"),
        ("data", wanted, "data = {}"),
    ):
        names = [x.name for x in program.sections(kind)]
        if asked is None and len(names) > 1 and names[0] and None not in names:
            other = how.format(names[1])
            lines.append(
                f"uses `{kind} {names[0]}`, the first of {len(names)}; `{other}` chooses another"
            )
    return lines


def stage_names(program: Program, name: str | None) -> tuple[str | None, ...]:
    """The names of the recipes that run before a recipe, first to last, followed by its own. Raises
    NetError if one does not exist or if they form a cycle."""
    order = [name]
    while True:
        section = program.find_section("train", order[0])
        before = program.reference_name(section, "after") if section else None
        if section is None or before is None:
            return tuple(order)
        if before in order or before == section.name:
            way = " after ".join(str(n) for n in (*order[::-1], before) if n)
            help = f"`train {before} {{ after = none ... }}` starts from scratch"
            raise fail(
                f"the `after` keys of the recipes form a cycle: {way}", section.span, help=help
            )
        if len(order) > MAX_CHAIN_LENGTH:
            message = f"more than {MAX_CHAIN_LENGTH} recipes follow each other with `after`"
            raise limit_error(
                message, section.span, "start one of them with `init = weights(...)` instead"
            )
        try:
            program.find_section("train", before)
        except NetError as e:
            raise e.with_default_span(section.span) from None
        order.insert(0, before)


def resolve_recipe(
    program: Program, name: str | None = None, budget: Budget | None = None
) -> Recipe:
    """Resolves a `train` section. Raises NetError for any error in it."""
    budget = budget or Budget()
    section = program.find_section("train", name)
    if section is None:
        help = "a recipe is written `train { optimizer = sgd(lr=0.1), epochs = 10 }`"
        raise fail(f"{program.name} has no `train` section", help=help)
    try:
        for entry in section.entries:
            if isinstance(entry, s.SectionEntry) and entry.name == "loss":
                check_no_sum(entry.value)
        given = evaluate_section(program, section, budget)
        values = SIGNATURE.bind(given, section.span, homes=HOMES)
    except NetError as e:
        raise e.with_default_span(section.span) from None
    net, data, after = (values.pop(key) for key in ("net", "data", "after"))
    entries = [e for e in section.entries if isinstance(e, s.SectionEntry)]
    recipe = Recipe(
        net=program.resolve_net_name(
            net.name if net else None, net.span if net else section.span, CHOICE_OF_RECIPE
        ),
        after=after.name if after else None,
        data=_resolve_data_section(program, data, section, budget),
        expectations=tuple(e.condition for e in section.entries if isinstance(e, s.Expect)),
        spans={"train": section.span} | {e.name: e.span for e in entries},
        top_level=program.top_level,
        **values,
    )
    _check(program, name, recipe, budget)
    return recipe


def default_recipe(net: str) -> Recipe:
    """The recipe for a net whose file has none: every key has its default."""
    values = SIGNATURE.bind((), None) | {"net": net}
    return Recipe(**values | {"data": resolve_data((), None)})


def find_recipe_of_net(program: Program, net: str) -> s.Section | None:
    """The `train` section of a file that trains this net, the unnamed one first."""
    for section in sorted(program.sections("train"), key=lambda x: x.name is not None):
        if program.find_trained_net(section.name) == net:
            return section
    return None


def recipe_of_net(program: Program, net: str) -> Recipe:
    """The recipe in a file that trains this net, the unnamed one first; if there is none, the
    default one, with the data section that `find_data_of_net` finds, if any."""
    section = find_recipe_of_net(program, net)
    if section is not None:
        return resolve_recipe(program, section.name)
    recipe = default_recipe(net)
    data = find_data_of_net(program, net)
    if data is None:
        return recipe
    entries = evaluate_section(program, data, Budget())
    return replace(recipe, data=resolve_data(entries, data.span))


def recipe_of_weights(program: Program) -> Recipe:
    """The recipe in the text of a checkpoint, by which its weights are used: that of its run, or
    for imported weights, which lack one, the default with the text's data section."""
    if program.find_section("train") is None:
        return recipe_of_net(program, program.resolve_net_name())
    return resolve_recipe(program)


def _check(program: Program, name: str | None, recipe: Recipe, budget: Budget) -> None:
    budget.spend_steps(len(stage_names(program, name)), recipe.spans["train"])
    if recipe.after and recipe.init:
        message = "`after` and `init` both set the initial weights"
        raise fail(message, recipe.spans["init"], help="one of them must be `none`")
    check_warmups(recipe.schedule, recipe.lr_rule)
    check_clock(recipe.validate_every, recipe.schedule, recipe.deterministic)
    if recipe.best is not None:
        check_held_out(recipe.best.metric, recipe.data.validation, recipe.best.span)
    for condition in recipe.expectations:
        check_expectation(condition, recipe.data.validation, budget, recipe.top_level)


def _resolve_data_section(
    program: Program, reference: Symbol | None, train: s.Section, budget: Budget
) -> DataConfig:
    try:
        section = program.find_section("data", reference.name if reference else None)
    except NetError as e:
        raise e.with_default_span(reference.span if reference else train.span) from None
    if section is None:
        help = "add a data section: `data { source = digits }`"
        raise fail(f"{program.name} has no `data` section", train.span, help=help)
    return resolve_data(evaluate_section(program, section, budget), section.span, HOMES)


def check_sections(program: Program, budget: Budget) -> None:
    """Resolves every section. Raises NetError with the errors of all of them."""
    errors = Errors()
    for kind in ("data", "train"):
        for section in program.sections(kind):
            try:
                if kind == "train":
                    resolve_recipe(program, section.name, budget)
                else:
                    found = program.find_section(kind, section.name)
                    assert found is not None
                    resolve_data(evaluate_section(program, found, budget), found.span, HOMES)
            except NetError as e:
                errors.collect(e)
    errors.raise_if_any()
