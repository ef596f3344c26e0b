"""The state of elaboration: values in chains, their origins, call frames, and paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum

from netdsl.errors import NetError, Span, fail
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.evaluate import Function, InvalidValue, Scope, TopLevel, Variable
from netdsl.types import Node, dims
from netdsl.values import Argument, format_value


class MissingValue(Enum):
    """Why a chain has no value: there is no input yet, or an error was already reported."""

    NOTHING = "nothing"
    INVALID = "broken"


@dataclass(frozen=True)
class CallSite:
    """A call of a block: its name and arguments, and its location."""

    text: str
    span: Span

    def describe(self, relative_to: Span | None) -> str:
        return f"block {self.text} called at {self.span.format_relative_to(relative_to)}"


@dataclass(frozen=True)
class ShapeOrigin:
    """The call that determined a value's shape, and the block call that contains it."""

    text: str
    span: Span
    caller: CallSite | None

    def describe(self, relative_to: Span) -> str:
        caller_note = f", from {self.caller.describe(relative_to)}" if self.caller else ""
        return f"{self.text} at {self.span.format_relative_to(relative_to)}{caller_note}"


@dataclass(frozen=True)
class ChainValue:
    """A value in a chain; `call_index` is the index of the call that produced it in
    `NetworkBuilder.call_results`."""

    node: Node
    origin: ShapeOrigin
    call_index: int

    def members(self) -> dict[str, int]:
        """The members that `in.NAME` can read."""
        shape = self.node.type.shape
        known = {"channels": shape[-1], "batch": shape[0]}
        return known | ({"height": shape[1], "width": shape[2]} if len(shape) == 4 else {})

    def format_size(self) -> str:
        return dims(self.node.type.shape[1:])


OptionalChainValue = ChainValue | MissingValue


@dataclass
class NameScope:
    """Assigns names in one scope; siblings of the same name are always numbered from 1.

    `weight_path` is the path of the weights that all uses of a shared chain have in common;
    `used_names` contains the names already taken in this scope."""

    path: str
    weight_path: str
    counts: dict[str, int] = field(default_factory=dict)
    used_names: set[str] = field(default_factory=set)

    def child(self, name: str, is_numbered: bool = True) -> NameScope:
        """Returns the scope of the next item called `name`; labels are numbered only in repeats.

        Raises NetError if that path is already taken: items must not share weights without an
        explicit `shared`.
        """
        self.counts[name] = self.counts.get(name, 0) + 1
        if is_numbered:
            name = f"{name}{self.counts[name]}"
        self.claim(name)
        return NameScope(join_path(self.path, name), join_path(self.weight_path, name))

    def claim(self, name: str) -> None:
        """Reserves a name in this scope. Raises NetError if it is taken."""
        if name in self.used_names:
            raise duplicate_name_error(self, name)
        self.used_names.add(name)


def duplicate_name_error(scope: NameScope, name: str) -> NetError:
    """The error for a name that occurs twice in a scope."""
    help = "layers without a label are called conv1, conv2, ...; choose another name"
    return fail(f"two things here are called `{join_path(scope.path, name)}`", help=help)


def join_path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


@dataclass(frozen=True)
class SharedChain:
    """`shared enc = ...`: its chain and the frame in which it was defined."""

    chain: s.Chain
    weight_path: str
    frame: Frame


@dataclass
class Frame:
    """A body being elaborated: its variables, labels, shared chains and name scope."""

    name_scope: NameScope
    variables: dict[str, Variable]
    incoming: OptionalChainValue
    budget: Budget
    top_level: TopLevel
    call_stack: tuple[CallSite, ...] = ()
    labels: dict[str, OptionalChainValue] = field(default_factory=dict)
    shared_chains: dict[str, SharedChain] = field(default_factory=dict)
    is_repeated: bool = False

    def expression_scope(self, current: OptionalChainValue) -> Scope:
        """Returns the scope of an expression at this point. `in` is the input of the block, or the
        current value in a net. An invalid value raises no further diagnostic: its error was
        already reported."""
        input_value = self.incoming if self.call_stack else current
        members: dict[str, int] | InvalidValue | None = None
        if isinstance(input_value, ChainValue):
            members = input_value.members()
        elif input_value is MissingValue.INVALID:
            members = InvalidValue()
        return Scope(self.variables, members, self.budget, self.top_level, self.labels)

    def define_function(self, let: s.Let, current: OptionalChainValue) -> None:
        """Defines a function that sees the variables as they are here, and itself."""
        variables = self.copy_variables(let.span)
        scope = replace(self.expression_scope(current), variables=variables)
        variables[let.name] = self.variables[let.name] = Function(let, scope)

    @contextmanager
    def restored_variables(self) -> Iterator[None]:
        """Gives the variables back their values at the end: those of a loop are its own."""
        outer = self.copy_variables(None)
        try:
            yield
        finally:
            self.variables.clear()
            self.variables.update(outer)

    def copy_variables(self, span: Span | None) -> dict[str, Variable]:
        """Returns a copy of the variables, counted in the budget."""
        self.budget.spend_leaves(len(self.variables), span)
        return dict(self.variables)


def format_call(name: str, arguments: Sequence[Argument]) -> str:
    """Formats a call with the values of its arguments."""
    parts = [
        f"{a.name}={format_value(a.value)}" if a.name else format_value(a.value) for a in arguments
    ]
    return f"{name}({', '.join(parts)})" if parts else name
