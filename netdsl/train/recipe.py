"""The `train` section: its keys, resolved with every default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from netdsl.data.config import SIGNATURE as DATA
from netdsl.data.config import DataConfig, resolve_data
from netdsl.errors import NetError, fail, nearest
from netdsl.kinds import Mismatch, Nothing, Number, OneOf, Whole
from netdsl.language import syntax as s
from netdsl.language.elaborate import Settings
from netdsl.language.evaluate import Scope, truth
from netdsl.language.parse import parse_expression
from netdsl.language.program import Program, section_values, self_contained
from netdsl.language.unparse import expression
from netdsl.signature import Chosen, OneFrom, Param, Signature
from netdsl.train.losses import LOSSES
from netdsl.train.optimizers import OPTIMIZERS
from netdsl.values import Argument, Symbol, Value, show


@dataclass(frozen=True)
class _Name:
    """A bare name of something else in the file."""

    def accept(self, value: Value) -> Symbol:
        if not isinstance(value, Symbol):
            raise Mismatch("a name")
        return value


_NAMED = OneOf((Nothing(), _Name()))

SIGNATURE = Signature(
    "train",
    (
        Param("net", _NAMED, None, "which net, the file's first unless given"),
        Param("data", _NAMED, None, "which data section, the unnamed one unless given"),
        Param("loss", OneFrom("loss", LOSSES), Symbol("cross_entropy"), "what is minimised"),
        Param("optimizer", OneFrom("optimizer", OPTIMIZERS), Symbol("sgd"), "how"),
        Param("epochs", Whole(1, 1_000_000), 10, "passes over the training images"),
        Param("seed", Whole(0, 2**31 - 1), 1, "of initial weights, order and dropout"),
        Param(
            "clip",
            OneOf((Nothing(), Number(above=0))),
            None,
            "largest norm that all gradients together may have",
        ),
    ),
    noun="key",
)

METRICS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
)


@dataclass(frozen=True)
class Recipe:
    """A resolved `train` section with the data that it learns from."""

    net: str
    loss: Chosen
    optimizer: Chosen
    epochs: int
    seed: int
    clip: float | None
    data: DataConfig
    expectations: tuple[s.Expr, ...] = ()

    def settings(self, training: bool, batch: int | None = None) -> Settings:
        """How the net is elaborated under this recipe."""
        size = self.data.batch if batch is None else batch
        return Settings(size, training, pixels="uint8", prepare=self.data.prepare)


def net_of(program: Program, name: str | None) -> str | None:
    """The net that a recipe names, if it names one."""
    section = program.section("train", name)
    return _reference(section, "net") if section else None


def _reference(section: s.Section, key: str) -> str | None:
    """The name that a key of a section refers to, unchecked."""
    for e in section.entries:
        if isinstance(e, s.Entry) and e.name == key and isinstance(e.value, s.Name):
            return None if e.value.name == "none" else e.value.name
    return None


def written_out(program: Program, name: str | None) -> s.File:
    """One file, without other files, that repeats a run by itself: its recipe is the only one, and
    recipe and data spell out every default, so that no default of another day changes them."""
    file = self_contained(program)
    train = program.section("train", name)
    if train is None:
        return file
    net, data_name = program.net(_reference(train, "net")), _reference(train, "data")
    data = program.section("data", data_name)
    kept = (i for i in file.items if not _replaced(i, data))
    own = [replace(_spelled(train, SIGNATURE, net=Symbol(net)), name=None)]
    if data is not None:
        own.insert(0, _spelled(data, DATA))
    return replace(file, items=(*kept, *own))


def _replaced(item: s.Item, data: s.Section | None) -> bool:
    """Whether an item of the file gives way to a section that is spelled out."""
    if not isinstance(item, s.Section):
        return False
    return item.kind == "train" or (data is not None and item.name == data.name)


def _spelled(section: s.Section, signature: Signature, **known: Value) -> s.Section:
    """A section with an entry for every key."""
    bound = signature.bind(section_values(section), section.span) | known
    entries = [
        s.Entry(section.span, key, parse_expression(show(value), f"{key} = "))
        for key, value in bound.items()
    ]
    kept = (e for e in section.entries if isinstance(e, s.Expect))
    return replace(section, entries=(*entries, *kept))


def resolve(program: Program, name: str | None = None) -> Recipe:
    """The recipe of a `train` section. Raises NetError for everything that is wrong in it."""
    section = program.section("train", name)
    if section is None:
        help = "a recipe is written `train { optimizer = sgd(lr=0.1), epochs = 10 }`"
        raise fail(f"{program.name} holds no `train` section", help=help)
    try:
        values = SIGNATURE.bind(section_values(section), section.span)
    except NetError as e:
        raise e.located(section.span) from None
    net, data = values.pop("net"), values.pop("data")
    expectations = tuple(e.condition for e in section.entries if isinstance(e, s.Expect))
    recipe = Recipe(
        net=program.net(net.name if net else None, net.span if net else section.span),
        data=_data(program, data.name if data else None, section),
        expectations=expectations,
        **values,
    )
    for condition in expectations:
        _check_expectation(condition, recipe)
    return recipe


def plain(net: str) -> Recipe:
    """The recipe for a net whose file holds none: every key as the table has it."""
    values = SIGNATURE.bind((), None) | {"net": net}
    data = resolve_data((Argument("source", Symbol("digits")),), None)
    return Recipe(**values | {"data": data})


def _data(program: Program, name: str | None, train: s.Section) -> DataConfig:
    section = program.section("data", name)
    if section is None:
        help = "say what to learn from: `data { source = digits }`"
        raise fail(f"{program.name} holds no `data` section", train.span, help=help)
    return resolve_data(section_values(section), section.span)


def check_sections(program: Program) -> None:
    """Resolves every section. Raises NetError with the errors of all of them."""
    errors: list[NetError] = []
    for kind in ("data", "train"):
        for section in program.sections(kind):
            try:
                if kind == "train":
                    resolve(program, section.name)
                else:
                    found = program.section(kind, section.name)
                    assert found is not None
                    resolve_data(section_values(found), found.span)
            except NetError as e:
                errors.append(e)
    unique = {(d.message, str(d.span)): d for e in errors for d in e.diagnostics}
    if unique:
        raise NetError(*unique.values())


def _check_expectation(condition: s.Expr, recipe: Recipe) -> None:
    """Raises NetError where an expectation is none, or speaks of what there will not be."""
    stack: list[Any] = [condition]
    while stack:
        e = stack.pop()
        if isinstance(e, s.Name) and e.name not in METRICS:
            help = nearest(e.name, METRICS, "metrics are")
            raise fail(f"there is no metric `{e.name}`", e.span, help=help)
        if isinstance(e, s.Name) and e.name.startswith("val_") and not recipe.data.validation:
            raise fail(f"`validation = 0` holds nothing out, so there is no `{e.name}`", e.span)
        if isinstance(e, s.Flat):
            stack += [e.first, *(operand for _, operand in e.rest)]
        if isinstance(e, s.Unary):
            stack.append(e.operand)
    truth(condition, Scope(dict.fromkeys(METRICS, 0.5)))


@dataclass(frozen=True)
class Met:
    """An expectation of a run: as written, whether it holds, and the figures behind it."""

    text: str
    ok: bool
    found: str


def judge(recipe: Recipe, metrics: Mapping[str, Any]) -> list[Met]:
    """How a finished run meets its recipe's expectations."""
    known = {k: v for k, v in metrics.items() if v is not None}
    outcomes = []
    for condition in recipe.expectations:
        text = expression(condition)
        figures = ", ".join(f"{k} is {v:.4f}" for k, v in known.items() if k in text)
        outcomes.append(Met(text, truth(condition, Scope(known)), figures))
    return outcomes
