"""What an elaborator carries along: values that flow, their makers, frames of calls, and paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from netdsl.errors import NetError, Span, fail
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.evaluate import InvalidValue, Scope
from netdsl.types import Node, dims
from netdsl.values import Argument, Value, format_value


class MissingValue(Enum):
    """No value flows: nothing yet, or something broken whose error has been told."""

    NOTHING = "nothing"
    INVALID = "broken"


@dataclass(frozen=True)
class CallSite:
    """A block's call: what was called, with which values, where."""

    text: str
    span: Span

    def describe(self, relative_to: Span | None) -> str:
        return f"block {self.text} called at {self.span.format_relative_to(relative_to)}"


@dataclass(frozen=True)
class ShapeOrigin:
    """The call that gave a value its shape, and the block it stands in."""

    text: str
    span: Span
    caller: CallSite | None

    def describe(self, relative_to: Span) -> str:
        caller_note = f", from {self.caller.describe(relative_to)}" if self.caller else ""
        return f"{self.text} at {self.span.format_relative_to(relative_to)}{caller_note}"


@dataclass(frozen=True)
class ChainValue:
    """A value on its way along a chain; `call_index` counts the calls of layers up to its own."""

    node: Node
    origin: ShapeOrigin
    call_index: int

    def members(self) -> dict[str, int]:
        """What `in.NAME` can ask."""
        shape = self.node.type.shape
        known = {"channels": shape[-1], "batch": shape[0]}
        return known | ({"height": shape[1], "width": shape[2]} if len(shape) == 4 else {})

    def format_size(self) -> str:
        return dims(self.node.type.shape[1:])


OptionalChainValue = ChainValue | MissingValue


@dataclass
class NameScope:
    """Names for the things in one scope: same-named siblings are numbered from 1, always.

    `weight_path` is where values live that uses of a shared chain have in common;
    `duplicate_name_error` are the names that things in this scope have already."""

    path: str
    weight_path: str
    counts: dict[str, int] = field(default_factory=dict)
    used_names: set[str] = field(default_factory=set)

    def child(self, name: str, is_numbered: bool = True) -> NameScope:
        """The scope of the next thing called `name`; a label is numbered only when repeated.

        Raises NetError where that very path is taken: two things must not share their weights
        without `shared` saying so.
        """
        self.counts[name] = self.counts.get(name, 0) + 1
        if is_numbered:
            name = f"{name}{self.counts[name]}"
        self.claim(name)
        return NameScope(join_path(self.path, name), join_path(self.weight_path, name))

    def claim(self, name: str) -> None:
        """Takes a name in this scope, once."""
        if name in self.used_names:
            raise duplicate_name_error(self, name)
        self.used_names.add(name)


def duplicate_name_error(scope: NameScope, name: str) -> NetError:
    """What is said where a name would stand twice in a scope."""
    help = "layers without a label are called conv1, conv2, ...; choose another name"
    return fail(f"two things here are called `{join_path(scope.path, name)}`", help=help)


def join_path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


@dataclass(frozen=True)
class SharedChain:
    """`shared enc = ...`: its chain and the frame that it was written in."""

    chain: s.Chain
    weight_path: str
    frame: Frame


@dataclass
class Frame:
    """One body being elaborated: its variables, labels, shared chains and place."""

    name_scope: NameScope
    variables: dict[str, Value | InvalidValue]
    incoming: OptionalChainValue
    budget: Budget
    call_stack: tuple[CallSite, ...] = ()
    labels: dict[str, OptionalChainValue] = field(default_factory=dict)
    shared_chains: dict[str, SharedChain] = field(default_factory=dict)
    is_repeated: bool = False

    def expression_scope(self, current: OptionalChainValue) -> Scope:
        """What an expression sees here: `in` is what flows into the block, in a net what flows now.
        What is broken stays quiet, its error has been told."""
        input_value = self.incoming if self.call_stack else current
        if isinstance(input_value, ChainValue):
            return Scope(self.variables, input_value.members(), self.budget)
        members = InvalidValue() if input_value is MissingValue.INVALID else None
        return Scope(self.variables, members, self.budget)

    def copy_variables(self) -> dict[str, Value | InvalidValue]:
        """The variables as they are now."""
        self.budget.spend_leaves(len(self.variables), None)
        return dict(self.variables)


def format_call(name: str, arguments: Sequence[Argument]) -> str:
    """A call with its values, as the reader would have written it with numbers only."""
    parts = [
        f"{a.name}={format_value(a.value)}" if a.name else format_value(a.value) for a in arguments
    ]
    return f"{name}({', '.join(parts)})" if parts else name
