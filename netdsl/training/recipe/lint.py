"""What a lint is, what it looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from netdsl.errors import Span
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.training.recipe.recipe import Recipe


@dataclass(frozen=True)
class Subject:
    """What lints look at: a net as training sees it, and the recipe that trains it, if one does."""

    program: Program
    network: Network
    recipe: Recipe | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the net is not a small version of what the file says."""
        return self.recipe is None or self.recipe.shrink is None


@dataclass(frozen=True)
class Review:
    """All that lints look at at once; `is_whole` where that is a file as it stands, with all of
    its nets and recipes."""

    program: Program
    subjects: tuple[Subject, ...]
    is_whole: bool = False


@dataclass(frozen=True)
class Finding:
    """A warning of a lint: its message, its place, and what to do."""

    message: str
    span: Span | None
    help: str


@dataclass(frozen=True)
class Lint:
    """A lint by its name. `doc` is a line of the reference; of the two files that stand for
    examples `wrong` is warned of, and `right` is not."""

    name: str
    doc: str
    find: Callable[[Review], Iterable[Finding]]
    wrong: str
    right: str
