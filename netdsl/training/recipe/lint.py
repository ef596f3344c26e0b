"""The types of a lint, its input and its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from netdsl.errors import Span
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.training.recipe.recipe import Recipe


@dataclass(frozen=True)
class Subject:
    """What a lint examines: a net as elaborated for training, and the recipe that trains it, if
    any."""

    program: Program
    network: Network
    recipe: Recipe | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the net has its full size, not shrunk by the recipe."""
        return self.recipe is None or self.recipe.shrink is None


@dataclass(frozen=True)
class Review:
    """The input of one run of all lints. `is_whole` is true if it is a whole file, unchanged, with
    all its nets and recipes."""

    program: Program
    subjects: tuple[Subject, ...]
    is_whole: bool = False


@dataclass(frozen=True)
class Finding:
    """A lint's warning: message, source span and advice."""

    message: str
    span: Span | None
    help: str


@dataclass(frozen=True)
class Lint:
    """A named lint. `doc` is its line in the reference; `wrong` and `right` are example files:
    `wrong` triggers the lint, `right` does not."""

    name: str
    doc: str
    find: Callable[[Review], Iterable[Finding]]
    wrong: str
    right: str
