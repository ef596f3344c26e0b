"""The grid of a sweep: recipes, values of keys and seeds, and the names of its runs."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from netdsl.errors import fail
from netdsl.language import syntax as s
from netdsl.language.override import Setting, parse_setting
from netdsl.language.parse import parse_expression
from netdsl.language.unparse import expression_text
from netdsl.limits import MAX_SWEEP_RUNS

SEED_KEY = "train.seed"
_MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Axis:
    """A key of `--set`, and the values that it takes."""

    key: str
    values: tuple[s.Expression, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(map(expression_text, self.values))


@dataclass(frozen=True)
class Combination:
    """A recipe and a value for each axis; the runs of all seeds are a row of the table."""

    recipe: str | None
    settings: tuple[Setting, ...]
    labels: tuple[str, ...]

    @property
    def values(self) -> tuple[str, ...]:
        return tuple(expression_text(x.value) for x in self.settings)

    def describe(self, seed: int | None = None) -> str:
        """The recipe, if it has a name, the values and a seed, on a line."""
        named = [*zip(self.labels, self.values, strict=True)]
        if seed is not None:
            named.append(("seed", str(seed)))
        return ", ".join([*filter(None, [self.recipe]), *map("=".join, named)])


@dataclass(frozen=True)
class Grid:
    """All combinations of recipes and values, each with all seeds. Without seeds, a recipe keeps
    its own."""

    recipes: tuple[str | None, ...]
    axes: tuple[Axis, ...] = ()
    seeds: tuple[int, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """A name for each axis: the last part of its key, or the whole key if that is not
        unique."""
        short = [axis.key.rpartition(".")[2] for axis in self.axes]
        known = Counter([*short, "recipe", "seed"])
        return tuple(
            name if known[name] == 1 else axis.key
            for name, axis in zip(short, self.axes, strict=True)
        )

    @property
    def size(self) -> int:
        """The number of runs."""
        values = math.prod(len(axis.values) for axis in self.axes)
        return len(self.recipes) * values * max(1, len(self.seeds))

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """The rows of the table: the last axis changes first, the recipe last."""
        axes = [[Setting(axis.key, value) for value in axis.values] for axis in self.axes]
        return tuple(
            Combination(recipe, settings, self.labels)
            for recipe in self.recipes
            for settings in product(*axes)
        )


def make_grid(
    recipes: Sequence[str | None],
    vary: Sequence[str],
    seeds: str | None = None,
    settings: Sequence[Setting] = (),
) -> Grid:
    """The grid of the command line's texts; `settings` are those that all runs have. Raises
    NetError if a text is wrong, something is given twice, or there are too many runs."""
    axes = tuple(map(parse_axis, vary))
    grid = Grid(tuple(recipes), axes, parse_seeds(seeds) if seeds is not None else ())
    _require_unique([f"the recipe `{name}`" for name in recipes])
    keys = [*(axis.key for axis in axes), *(x.key for x in settings)]
    _require_unique([f"`{key}`" for key in (*keys, *[SEED_KEY] * bool(grid.seeds))])
    if any(axis.key == SEED_KEY for axis in axes):
        help = "`--seeds 3` runs the seeds 1 to 3, and `--seeds 1,5,7` runs these"
        raise fail(f"`{SEED_KEY}` cannot be varied: a row is the mean over its seeds", help=help)
    for axis in axes:
        _require_different(axis)
    if grid.size > MAX_SWEEP_RUNS:
        message = f"these are {grid.size:,} runs, but a sweep has at most {MAX_SWEEP_RUNS:,}"
        raise fail(message, help="give fewer values or seeds")
    return grid


def _require_unique(things: Sequence[str]) -> None:
    for thing, count in Counter(things).items():
        if count > 1:
            raise fail(f"{thing} is given {'twice' if count == 2 else f'{count} times'}")


def _require_different(axis: Axis) -> None:
    """Raises NetError if an axis has the same value twice, however its numbers are written."""
    first: dict[str, str] = {}
    for value, text in zip(axis.values, axis.texts, strict=True):
        same = first.setdefault(expression_text(s.transform(value, _spell_number)), text)
        if same != text:
            raise fail(f"`{axis.key}={same}` and `{axis.key}={text}` are the same value")
    _require_unique([f"`{axis.key}={text}`" for text in axis.texts])


def _spell_number(e: Any) -> s.Expression | None:
    return replace(e, text=repr(e.value)) if isinstance(e, s.NumberLiteral) else None


def parse_axis(text: str) -> Axis:
    """Parses `KEY=[value, value, ...]`. Raises NetError, with the position in the text."""
    found = parse_setting(text, "--vary")
    if not isinstance(found.value, s.ListLiteral) or not found.value.items:
        help = f"write the values in brackets: `--vary '{found.key}=[value, value]'`"
        raise fail(f"`{found.key}` needs a list of values", found.value.span, help=help)
    return Axis(found.key, found.value.items)


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that `3` (1 to 3) or `1,5,7` names. Raises NetError if it is neither."""
    if not re.fullmatch(r"\s*\d{1,10}\s*(,\s*\d{1,10}\s*)*", text, re.ASCII):
        raise fail(f"`{text}` is not a list of seeds", help=_SEEDS_HELP)
    numbers = tuple(map(int, text.split(",")))
    if len(numbers) > 1:
        if max(numbers) > _MAX_SEED:
            raise fail(f"{max(numbers):,} is not a valid seed: the largest is {_MAX_SEED:,}")
        _require_unique([f"the seed {n}" for n in numbers])
        return numbers
    if not 1 <= numbers[0] <= MAX_SWEEP_RUNS:
        message = f"{numbers[0]:,} is not a valid number of seeds: use 1 to {MAX_SWEEP_RUNS:,}"
        raise fail(message, help=_SEEDS_HELP)
    return tuple(range(1, numbers[0] + 1))


_SEEDS_HELP = (
    "`--seeds 3` runs the seeds 1 to 3, `--seeds 1,5,7` runs these, and `--set train.seed=5` one"
)


def seed_setting(seed: int) -> Setting:
    return Setting(SEED_KEY, parse_expression(str(seed), "--seeds "))


_MAX_FOLDER_NAME = 120


def name_runs(runs: Sequence[tuple[Combination, int]]) -> list[str]:
    """A name for each run, usable as that of a folder: `head,lr=0.1,seed=2`. Characters that a
    shell or a file system might not take are left out; names that are then equal, or too long, end
    in a checksum of the run's settings."""
    short = [f"{_name_combination(run)}seed={seed}" for run, seed in runs]
    counts = Counter(name.lower() for name in short)  # some file systems ignore case
    return [
        name
        if counts[name.lower()] == 1 and len(name) <= _MAX_FOLDER_NAME
        else f"{name[:_MAX_FOLDER_NAME]}~{_checksum(run, seed)}"
        for name, (run, seed) in zip(short, runs, strict=True)
    ]


def _name_combination(run: Combination) -> str:
    named = zip(run.labels, run.values, strict=True)
    values = (f"{_keep_plain(x)}={_keep_plain(value).strip('_.')}," for x, value in named)
    return (f"{_keep_plain(run.recipe)}," if run.recipe else "") + "".join(values)


def _keep_plain(text: str) -> str:
    """A text in which each run of other characters than those of numbers and names is one `_`."""
    return re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII)


def _checksum(run: Combination, seed: int) -> str:
    content = (run.recipe, [(x.key, expression_text(x.value)) for x in run.settings], seed)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]
