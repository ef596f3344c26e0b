"""Elaborates a net to its graph: expands blocks, infers shapes, reports errors at their source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from netdsl.errors import NetError, Span, fail
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, ensure_recursion_limit, nesting_error
from netdsl.language.evaluate import InvalidValue, evaluate, evaluate_arguments, evaluate_condition
from netdsl.language.frame import (
    CallSite,
    ChainValue,
    Frame,
    MissingValue,
    NameScope,
    OptionalChainValue,
    SharedChain,
    format_call,
    join_path,
)
from netdsl.language.lookup import (
    LAYER_IN_LET,
    duplicate_label_error,
    find_layer,
    is_layer,
    suggest_for_items,
    unpack_item,
)
from netdsl.language.network import Network
from netdsl.language.network_builder import (
    RESERVED_INPUTS,
    InputCall,
    LayerCall,
    NetworkBuilder,
    Settings,
    ShrinkSettings,
    shrink_settings,
)
from netdsl.language.program import Program, bind_arguments, resolve_instance
from netdsl.language.shrink import shrink_network
from netdsl.limits import MAX_CALL_DEPTH, MAX_REPEATS
from netdsl.parameter_types import Float, Shape
from netdsl.signature import Param, Signature
from netdsl.value_advice import suggest_for_value
from netdsl.values import Argument, Call, Value, format_value


@pause_garbage_collection()
def elaborate(
    program: Program,
    name: str | None = None,
    settings: Settings = Settings(),
    budget: Budget | None = None,
) -> Network:
    """Returns the network of a net or instance of `program`, by default the first. Counts against
    `budget`, or a new one.

    Raises NetError with every independent error found, or if the network cannot be shrunk as
    `settings` request.
    """
    ensure_recursion_limit()
    budget = budget or Budget()
    net_name = program.resolve_net_name(name)
    net, arguments_by_name = resolve_instance(program, net_name, budget)
    span = program.net_table.find(net_name).item.span
    variables = bind_arguments(program, net, tuple(arguments_by_name.values()), span, budget)
    return _Elaborator(program, settings, budget).run(net_name, net, variables)


_INPUT = Signature("input", (Param("shape", Shape()),))
_OUTPUT = Signature("output", (Param("weight", Float(), 1.0),))


class _Elaborator:
    """Walks a net's syntax tree and emits the network through a NetworkBuilder."""

    def __init__(self, program: Program, settings: Settings, budget: Budget) -> None:
        self.program = program
        self.budget = budget
        self.builder = NetworkBuilder(settings, budget)
        self.depth = 0

    def run(self, name: str, net: s.Net, variables: dict[str, Value]) -> Network:
        self.budget.spend_steps(1, net.span)
        top = self.program.top_level
        frame = Frame(NameScope("", ""), dict(variables), MissingValue.NOTHING, self.budget, top)
        end = self._visit_body(net.body, MissingValue.NOTHING, frame)
        if end is MissingValue.NOTHING and not self.builder.errors:
            help = "begin it with `input(height x width x channels)`, such as `input(28x28x1)`"
            self._report_error(
                fail(f"the net `{net.name}` has no input", net.span, help=help), frame
            )
        main = end if isinstance(end, ChainValue) else None
        network = self.builder.build_network(name, main)
        return (
            shrink_network(self.builder, name, main)
            if main and self.builder.settings.shrink
            else network
        )

    def _report_error(self, error: NetError, frame: Frame, span: Span | None = None) -> None:
        self.builder.report_error(error, frame, span)

    # ---- statements

    def _visit_body(
        self, body: s.Body, current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        for statement in body.statements:
            current = self._visit_statement(statement, current, frame)
        return current

    def _visit_statement(
        self, statement: s.Statement, current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        match statement:
            case s.Chain():
                return self._visit_chain(statement, current, frame)
            case s.Let():
                self._visit_let(statement, current, frame)
            case s.Shared():
                self._visit_shared(statement, frame)
            case s.SideOutput():
                self._visit_output(statement, current, frame)
        return current

    def _visit_let(self, let: s.Let, current: OptionalChainValue, frame: Frame) -> None:
        if let.params is not None:
            frame.define_function(let, current)
            return
        try:
            value = evaluate(let.value, frame.expression_scope(current))
            if isinstance(value, Call) and is_layer(value.name, self.program):
                help = f"name a place in the net with a label: `{let.name}: {value.name}(...)`"
                raise fail(LAYER_IN_LET, let.value.span, help=help)
            frame.variables[let.name] = value
        except NetError as e:
            frame.variables[let.name] = InvalidValue()
            self._report_error(e, frame, let.span)

    def _visit_shared(self, shared: s.Shared, frame: Frame) -> None:
        try:
            frame.name_scope.claim(shared.name)
        except NetError as e:
            self._report_error(e, frame, shared.span)
        weight_path = join_path(frame.name_scope.weight_path, shared.name)
        frame.shared_chains[shared.name] = SharedChain(
            shared.chain, weight_path, replace(frame, variables=frame.copy_variables(shared.span))
        )

    def _visit_output(
        self, output: s.SideOutput, current: OptionalChainValue, frame: Frame
    ) -> None:
        try:
            name_scope = frame.name_scope.child(output.name, is_numbered=False)
        except NetError as e:
            self._report_error(e, frame, output.span)
            return
        inner = replace(frame, name_scope=name_scope)
        end = self._visit_chain(output.chain, current, inner)
        try:
            arguments = evaluate_arguments(output.args, frame.expression_scope(current))
            weight = _OUTPUT.bind(arguments, output.span)["weight"]
            if name_scope.path == "main":
                raise fail(
                    "`main` is the net's own output", output.span, help="choose another name"
                )
        except NetError as e:
            self._report_error(e, frame, output.span)
            return
        if isinstance(end, ChainValue):
            self.builder.outputs[name_scope.path] = end
            self.builder.loss_weights[name_scope.path] = weight
            self.builder.values_by_path[name_scope.path] = end

    # ---- chains

    def _visit_chain(
        self, chain: s.Chain, current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        """Returns the output of a chain. A label names that value. It also names the single layer
        or block in the chain; with several elements it opens a scope."""
        if chain.label is None:
            return self._visit_elements(chain.elements, current, frame)
        if not frame.is_repeated and chain.label in frame.name_scope.used_names:
            path = join_path(frame.name_scope.path, chain.label)
            self._report_error(duplicate_label_error(chain, path, self.program), frame)
            return MissingValue.INVALID
        first = chain.elements[0]
        if (
            len(chain.elements) == 1
            and isinstance(first, s.Step)
            and self._can_take_label(first, frame)
        ):
            with self._enter_element(first.span, frame):
                end = self._visit_step(first, current, frame, chain.label, is_first=True)
        else:
            end = self._visit_labelled_chain(chain, current, frame)
        frame.labels[chain.label] = end
        return end

    def _visit_labelled_chain(
        self, chain: s.Chain, current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        assert chain.label is not None
        try:
            name_scope = frame.name_scope.child(chain.label, frame.is_repeated)
        except NetError as e:
            self._report_error(e, frame, chain.span)
            return MissingValue.INVALID
        return self._record_value(
            self._visit_elements(chain.elements, current, replace(frame, name_scope=name_scope)),
            name_scope,
        )

    def _can_take_label(self, step: s.Step, frame: Frame) -> bool:
        """Whether a label replaces this step's own name in paths."""
        return step.branches is None and step.name not in frame.labels

    def _visit_elements(
        self, elements: Sequence[s.Element], current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        for i, element in enumerate(elements):
            current = self._visit_element(element, current, frame, is_first=i == 0)
        return current

    def _visit_element(
        self, element: s.Element, current: OptionalChainValue, frame: Frame, is_first: bool = False
    ) -> OptionalChainValue:
        with self._enter_element(element.span, frame):
            return self._dispatch_element(element, current, frame, is_first)

    @contextmanager
    def _enter_element(self, span: Span, frame: Frame) -> Iterator[None]:
        """Counts one step and one level of nesting."""
        self.budget.spend_steps(1, span)
        if self.depth >= MAX_CALL_DEPTH:
            raise nesting_error(_enclosing_blocks(frame), span)
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def _dispatch_element(
        self, element: s.Element, current: OptionalChainValue, frame: Frame, is_first: bool
    ) -> OptionalChainValue:
        match element:
            case s.Step():
                return self._visit_step(element, current, frame, None, is_first)
            case s.Incoming():
                return self._visit_incoming(element, frame)
            case s.ChainGroup():
                return self._visit_chain(element.chain, current, frame)
            case s.Repeat():
                return self._visit_repeat(element, current, frame)
            case s.If():
                return self._visit_if(element, current, frame)
            case s.For():
                return self._visit_for(element, current, frame)

    def _visit_incoming(self, element: s.Incoming, frame: Frame) -> OptionalChainValue:
        if frame.incoming is MissingValue.NOTHING and not frame.call_stack:
            help = "`in` is the input of a block; in a net, use a label to name a value"
            self._report_error(fail("a net has no `in`", element.span, help=help), frame)
            return MissingValue.INVALID
        return frame.incoming

    def _visit_repeat(
        self, repeat: s.Repeat, current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        try:
            count = evaluate(repeat.count, frame.expression_scope(current))
            if isinstance(count, bool) or not isinstance(count, int):
                message = f"the repeat count must be an integer, not {format_value(count)}"
                raise fail(message, repeat.count.span, help=suggest_for_value(count))
            if not 0 <= count <= MAX_REPEATS:
                help = f"the repeat count can be from 0 to {MAX_REPEATS:,}"
                raise fail(f"{count:,} repeats", repeat.count.span, help=help)
        except NetError as e:
            self._report_error(e, frame, repeat.span)
            return MissingValue.INVALID
        inner = replace(frame, is_repeated=True)
        with frame.restored_variables() if repeat.index else nullcontext():
            for i in range(count):
                if repeat.index:
                    frame.variables[repeat.index] = i
                current = self._visit_element(repeat.element, current, inner)
        return current

    def _visit_if(
        self, choice: s.If, current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        if current is MissingValue.INVALID:
            return current
        try:
            for condition, body in choice.arms:
                if evaluate_condition(condition, frame.expression_scope(current)):
                    return self._visit_body(body, current, frame)
        except NetError as e:
            self._report_error(e, frame, choice.span)
            return MissingValue.INVALID
        return self._visit_body(choice.otherwise, current, frame) if choice.otherwise else current

    def _visit_for(
        self, loop: s.For, current: OptionalChainValue, frame: Frame
    ) -> OptionalChainValue:
        try:
            items = evaluate(loop.items, frame.expression_scope(current))
            if not isinstance(items, tuple):
                help = suggest_for_items(items) or "`range(3)` is the list [0, 1, 2]"
                message = f"`for` iterates over a list, not {format_value(items)}"
                raise fail(message, loop.items.span, help=help)
        except NetError as e:
            self._report_error(e, frame, loop.span)
            return MissingValue.INVALID
        inner = replace(frame, is_repeated=True)
        with frame.restored_variables():
            for i, item in enumerate(items):
                self.budget.spend_steps(1, loop.span)
                try:
                    frame.variables.update(unpack_item(loop, i, item))
                except NetError as e:
                    self._report_error(e, frame, loop.span)
                    return MissingValue.INVALID
                current = self._visit_body(loop.body, current, inner)
        return current

    # ---- steps

    def _visit_step(
        self,
        step: s.Step,
        current: OptionalChainValue,
        frame: Frame,
        label: str | None,
        is_first: bool,
    ) -> OptionalChainValue:
        is_bare_name = step.args is None and step.branches is None
        if is_bare_name and step.name in frame.labels:
            return self._resolve_label(step, frame, is_first)
        try:
            if step.name in frame.shared_chains:
                return self._call_shared(step, current, frame, label)
            if step.name in self.program.blocks:
                return self._call_block(step, current, frame, label)
            if step.name == "input":
                return self._visit_input(step, frame, label, is_first)
            return self._call_layer(step, current, frame, label)
        except NetError as e:
            self._report_error(e, frame, step.span)
            return MissingValue.INVALID

    def _resolve_label(self, step: s.Step, frame: Frame, is_first: bool) -> OptionalChainValue:
        if not is_first:
            help = f"begin a branch or a statement with it: `{step.name} -> ...`"
            message = f"the label `{step.name}` can only begin a chain"
            self._report_error(fail(message, step.span, help=help), frame)
        return frame.labels[step.name]

    def _child_scope(self, frame: Frame, name: str, label: str | None) -> NameScope:
        if label is None:
            return frame.name_scope.child(name)
        return frame.name_scope.child(label, is_numbered=frame.is_repeated)

    def _check_no_branches(self, step: s.Step) -> None:
        if step.branches is not None:
            help = "`add`, `sub`, `mul` and `concat` take branches; a group is `( ... )`"
            raise fail(f"`{step.name}` takes no branches", step.name_span, help=help)

    def _call_shared(
        self, step: s.Step, current: OptionalChainValue, frame: Frame, label: str | None
    ) -> OptionalChainValue:
        self._check_no_branches(step)
        if step.args:
            raise fail(f"the shared chain `{step.name}` takes no arguments", step.span)
        shared = frame.shared_chains[step.name]
        name_scope = self._child_scope(frame, step.name, label)
        name_scope.weight_path = shared.weight_path
        call = CallSite(step.name, step.span)
        inner = replace(
            shared.frame,
            name_scope=name_scope,
            incoming=current,
            call_stack=(*frame.call_stack, call),
            labels={},
        )
        end = self._visit_elements(shared.chain.elements, current, inner)
        return self._record_value(end, name_scope)

    def _record_value(self, value: OptionalChainValue, name_scope: NameScope) -> OptionalChainValue:
        if isinstance(value, ChainValue):
            self.builder.values_by_path[name_scope.path] = value
        return value

    def _call_block(
        self, step: s.Step, current: OptionalChainValue, frame: Frame, label: str | None
    ) -> OptionalChainValue:
        self._check_no_branches(step)
        block = self.program.blocks[step.name]
        arguments = evaluate_arguments(step.args, frame.expression_scope(current))
        variables = bind_arguments(self.program, block, arguments, step.span, self.budget)
        name_scope = self._child_scope(frame, step.name, label)
        if current is MissingValue.INVALID:
            return current
        shown_arguments = [Argument(p, v) for p, v in variables.items()]
        call = CallSite(format_call(step.name, shown_arguments), step.span)
        calls = (*frame.call_stack, call)
        top = self.program.top_level
        inner = Frame(name_scope, dict(variables), current, self.budget, top, calls)
        return self._record_value(self._visit_body(block.body, current, inner), name_scope)

    def _visit_input(
        self, step: s.Step, frame: Frame, label: str | None, is_first: bool
    ) -> OptionalChainValue:
        self._check_no_branches(step)
        if not is_first:
            raise fail("an input can only begin a chain", step.span)
        arguments = evaluate_arguments(step.args, frame.expression_scope(MissingValue.NOTHING))
        shape = _INPUT.bind(arguments, step.span)["shape"]
        name_scope = self._input_scope(frame, label)
        return self.builder.add_call(InputCall(name_scope.path, shape, step.span))

    def _input_scope(self, frame: Frame, label: str | None) -> NameScope:
        """Names an input by its label; without one `input`, then `input2`, `input3`, ..."""
        name_scope = self._child_scope(frame, "input", label)
        if label is None and name_scope.path == "input1":
            frame.name_scope.claim("input")
            name_scope = NameScope("input", "input")
        if name_scope.path in RESERVED_INPUTS:
            help = f"a training step has its own {', '.join(RESERVED_INPUTS)}"
            raise fail(f"an input cannot be called `{name_scope.path}`", help=help)
        return name_scope

    def _call_layer(
        self, step: s.Step, current: OptionalChainValue, frame: Frame, label: str | None
    ) -> OptionalChainValue:
        layer = find_layer(step, frame, self.program)
        arguments = evaluate_arguments(step.args, frame.expression_scope(current))
        bound = layer.signature.bind(arguments, step.span)
        if layer.arity == "many":
            branches = self._visit_branches(step, current, frame)
            inputs = [value for _, value in branches]
            if layer.can_join_one and len(inputs) == 1 < len(step.branches or ()):
                return inputs[0]
        else:
            self._check_no_branches(step)
            branches, inputs = [], [current]
        name_scope = self._child_scope(frame, step.name, label)
        values = [f for f in inputs if isinstance(f, ChainValue)]
        if len(values) < len(inputs):
            if MissingValue.NOTHING in inputs:
                help = "begin the net with `input(height x width x channels)`"
                raise fail(f"`{step.name}` has no input", step.name_span, help=help)
            return MissingValue.INVALID
        caller = frame.call_stack[-1] if frame.call_stack else None
        return self.builder.add_call(
            LayerCall(
                layer,
                step,
                arguments,
                bound,
                name_scope.path,
                name_scope.weight_path,
                caller,
                tuple(values),
                tuple(branch for branch, _ in branches),
                current.origin if isinstance(current, ChainValue) else None,
            )
        )

    def _visit_branches(
        self, step: s.Step, current: OptionalChainValue, frame: Frame
    ) -> list[tuple[s.Branch, OptionalChainValue]]:
        """The values of the branches, without those that are left out."""
        kept: list[tuple[s.Branch, OptionalChainValue]] = []
        for branch in step.branches or ():
            try:
                scope = frame.expression_scope(current)
                if branch.condition is None or evaluate_condition(branch.condition, scope):
                    kept.append((branch, self._visit_chain(branch.chain, current, frame)))
            except NetError as e:
                self._report_error(e, frame, branch.span)
                kept.append((branch, MissingValue.INVALID))
        if not kept:
            help = "a branch without `if` is always kept; `identity` passes the input through"
            raise fail(f"all branches of `{step.name}` are left out", step.name_span, help=help)
        return kept


def _enclosing_blocks(frame: Frame) -> str:
    """The innermost block calls of a frame, formatted for a message."""
    return " in ".join(c.text.split("(")[0] for c in frame.call_stack[-1:-4:-1]) or "a chain"


__all__ = ["Settings", "ShrinkSettings", "elaborate", "shrink_settings"]
