"""What an elaborator carries along: values that flow, their makers, frames of calls, and paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from netdsl.errors import NetError, Span, fail
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.evaluate import Broken, Scope
from netdsl.types import Node, dims
from netdsl.values import Argument, Value, format_value


class Absent(Enum):
    """No value flows: nothing yet, or something broken whose error has been told."""

    NOTHING = "nothing"
    BROKEN = "broken"


@dataclass(frozen=True)
class CallSite:
    """A block's call: what was called, with which values, where."""

    text: str
    span: Span

    def note(self, told_at: Span | None) -> str:
        return f"block {self.text} called at {self.span.format_relative_to(told_at)}"


@dataclass(frozen=True)
class Maker:
    """The call that gave a value its shape, and the block it stands in."""

    text: str
    span: Span
    within: CallSite | None

    def note(self, told_at: Span) -> str:
        inside = f", from {self.within.note(told_at)}" if self.within else ""
        return f"{self.text} at {self.span.format_relative_to(told_at)}{inside}"


@dataclass(frozen=True)
class Flow:
    """A value on its way along a chain; `index` counts the calls of layers up to its own."""

    node: Node
    maker: Maker
    index: int

    def members(self) -> dict[str, int]:
        """What `in.NAME` can ask."""
        shape = self.node.type.shape
        known = {"channels": shape[-1], "batch": shape[0]}
        return known | ({"height": shape[1], "width": shape[2]} if len(shape) == 4 else {})

    def size(self) -> str:
        return dims(self.node.type.shape[1:])


Flowing = Flow | Absent


@dataclass
class PathScope:
    """Names for the things in one scope: same-named siblings are numbered from 1, always.

    `weights` is where values live that uses of a shared chain have in common; `taken` are the names
    that things in this scope have already.
    """

    path: str
    weights: str
    counts: dict[str, int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def child(self, name: str, numbered: bool = True) -> PathScope:
        """The scope of the next thing called `name`; a label is numbered only when repeated.

        Raises NetError where that very path is taken: two things must not share their weights
        without `shared` saying so.
        """
        self.counts[name] = self.counts.get(name, 0) + 1
        if numbered:
            name = f"{name}{self.counts[name]}"
        self.claim(name)
        return PathScope(join(self.path, name), join(self.weights, name))

    def claim(self, name: str) -> None:
        """Takes a name in this scope, once."""
        if name in self.taken:
            raise taken(self, name)
        self.taken.add(name)


def taken(scope: PathScope, name: str) -> NetError:
    """What is said where a name would stand twice in a scope."""
    help = "layers without a label are called conv1, conv2, ...; choose another name"
    return fail(f"two things here are called `{join(scope.path, name)}`", help=help)


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


@dataclass(frozen=True)
class SharedChain:
    """`shared enc = ...`: its chain and the frame that it was written in."""

    chain: s.Chain
    weights: str
    frame: Frame


@dataclass
class Frame:
    """One body being elaborated: its variables, labels, shared chains and place."""

    names: PathScope
    variables: dict[str, Value | Broken]
    incoming: Flowing
    budget: Budget
    calls: tuple[CallSite, ...] = ()
    labels: dict[str, Flowing] = field(default_factory=dict)
    shared: dict[str, SharedChain] = field(default_factory=dict)
    repeated: bool = False

    def scope(self, current: Flowing) -> Scope:
        """What an expression sees here: `in` is what flows into the block, in a net what flows now.
        What is broken stays quiet, its error has been told."""
        flowing = self.incoming if self.calls else current
        if isinstance(flowing, Flow):
            return Scope(self.variables, flowing.members(), self.budget)
        broken = Broken() if flowing is Absent.BROKEN else None
        return Scope(self.variables, broken, self.budget)

    def copied(self) -> dict[str, Value | Broken]:
        """The variables as they are now."""
        self.budget.spend_leaves(len(self.variables), None)
        return dict(self.variables)


def call_text(name: str, given: Sequence[Argument]) -> str:
    """A call with its values, as the reader would have written it with numbers only."""
    parts = [
        f"{a.name}={format_value(a.value)}" if a.name else format_value(a.value) for a in given
    ]
    return f"{name}({', '.join(parts)})" if parts else name
