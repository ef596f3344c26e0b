"""A net's text to its graph: blocks expanded, shapes inferred, every error told in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from netdsl.errors import NetError, Span, fail, suggest_alias, suggest_spelling
from netdsl.ir.garbage_collection import pause_garbage_collection
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, make_room, too_deep
from netdsl.language.draft import Draft, InputCall, LayerCall, Settings, Shrink, small
from netdsl.language.evaluate import Broken, arguments, evaluate, truth
from netdsl.language.flow import (
    Absent,
    CallSite,
    Flow,
    Flowing,
    Frame,
    PathScope,
    SharedChain,
    call_text,
    join,
    taken,
)
from netdsl.language.network import Network
from netdsl.language.program import Program, bind_params, instance_chain
from netdsl.language.shrink import shrunk
from netdsl.layers import LAYERS, Layer
from netdsl.limits import MAX_CALL_DEPTH, MAX_REPEATS
from netdsl.parameter_types import Float, Shape
from netdsl.signature import Param, Signature, suggest_for_value
from netdsl.values import Argument, Call, Value, format_value


@pause_garbage_collection()
def elaborate(
    program: Program,
    name: str | None = None,
    settings: Settings = Settings(),
    budget: Budget | None = None,
) -> Network:
    """The network of a net or instance of `program` (its first unless named), at the cost of a
    budget; of its own unless given.

    Raises NetError with every independent error found in it, and where it cannot be made as small
    as `settings` ask for.
    """
    make_room()
    budget = budget or Budget()
    chosen = program.net(name)
    net, values = instance_chain(program, chosen, budget)
    variables = bind_params(net, tuple(values.values()), program.nets[chosen].span, budget)
    return _Elaborator(program, settings, budget).run(chosen, net, variables)


_INPUT = Signature("input", (Param("shape", Shape()),))
_STEP_INPUTS = ("labels", "weights", "lr", "step", "update", "seed", "ema_rate")
_OUTPUT = Signature("output", (Param("weight", Float(), 1.0),))


class _Elaborator:
    """Walks a net's syntax; what it makes is kept in a draft."""

    def __init__(self, program: Program, settings: Settings, budget: Budget) -> None:
        self.program = program
        self.budget = budget
        self.draft = Draft(settings, budget)
        self.depth = 0

    def run(self, name: str, net: s.Net, variables: dict[str, Value]) -> Network:
        self.budget.spend_steps(1, net.span)
        frame = Frame(PathScope("", ""), dict(variables), Absent.NOTHING, self.budget)
        end = self._body(net.body, Absent.NOTHING, frame)
        if end is Absent.NOTHING and not self.draft.errors:
            help = "begin it with `input(height x width x channels)`, such as `input(28x28x1)`"
            self._tell(fail(f"the net `{net.name}` takes no input", net.span, help=help), frame)
        main = end if isinstance(end, Flow) else None
        network = self.draft.network(name, main)
        return shrunk(self.draft, name, main) if main and self.draft.settings.shrink else network

    def _tell(self, error: NetError, frame: Frame, span: Span | None = None) -> None:
        self.draft.tell(error, frame, span)

    # ---- statements

    def _body(self, body: s.Body, current: Flowing, frame: Frame) -> Flowing:
        for statement in body.statements:
            current = self._statement(statement, current, frame)
        return current

    def _statement(self, statement: s.Statement, current: Flowing, frame: Frame) -> Flowing:
        match statement:
            case s.Chain():
                return self._chain(statement, current, frame)
            case s.Let():
                self._let(statement, current, frame)
            case s.Shared():
                self._shared(statement, frame)
            case s.Output():
                self._output(statement, current, frame)
        return current

    def _let(self, let: s.Let, current: Flowing, frame: Frame) -> None:
        try:
            value = evaluate(let.value, frame.scope(current))
            if isinstance(value, Call) and self._is_layer(value.name):
                help = f"a place in the net is named by a label: `{let.name}: {value.name}(...)`"
                raise fail("`let` names numbers and lists, no layers", let.value.span, help=help)
            frame.variables[let.name] = value
        except NetError as e:
            frame.variables[let.name] = Broken()
            self._tell(e, frame, let.span)

    def _shared(self, shared: s.Shared, frame: Frame) -> None:
        try:
            frame.names.claim(shared.name)
        except NetError as e:
            self._tell(e, frame, shared.span)
        weights = join(frame.names.weights, shared.name)
        frame.shared[shared.name] = SharedChain(
            shared.chain, weights, replace(frame, variables=frame.copied())
        )

    def _output(self, output: s.Output, current: Flowing, frame: Frame) -> None:
        try:
            names = frame.names.child(output.name, numbered=False)
        except NetError as e:
            self._tell(e, frame, output.span)
            return
        inner = replace(frame, names=names)
        end = self._chain(output.chain, current, inner)
        try:
            given = arguments(output.args, frame.scope(current))
            weight = _OUTPUT.bind(given, output.span)["weight"]
            if names.path == "main":
                raise fail(
                    "`main` is the net's own output", output.span, help="choose another name"
                )
        except NetError as e:
            self._tell(e, frame, output.span)
            return
        if isinstance(end, Flow):
            self.draft.outputs[names.path] = end
            self.draft.weights[names.path] = weight
            self.draft.places[names.path] = end

    # ---- chains

    def _chain(self, chain: s.Chain, current: Flowing, frame: Frame) -> Flowing:
        """What flows out of a chain. A label names its value, and the single layer or block in it;
        over several it is a scope of its own."""
        if chain.label is None:
            return self._elements(chain.elements, current, frame)
        if not frame.repeated and chain.label in frame.names.taken:
            self._tell(taken(frame.names, chain.label), frame, chain.span)
            return Absent.BROKEN
        first = chain.elements[0]
        if len(chain.elements) == 1 and isinstance(first, s.Step) and self._named_by(first, frame):
            with self._deeper(first.span, frame):
                end = self._step(first, current, frame, chain.label, starts=True)
        else:
            end = self._labelled(chain, current, frame)
        frame.labels[chain.label] = end
        return end

    def _labelled(self, chain: s.Chain, current: Flowing, frame: Frame) -> Flowing:
        assert chain.label is not None
        try:
            names = frame.names.child(chain.label, frame.repeated)
        except NetError as e:
            self._tell(e, frame, chain.span)
            return Absent.BROKEN
        return self._left(
            self._elements(chain.elements, current, replace(frame, names=names)), names
        )

    def _named_by(self, step: s.Step, frame: Frame) -> bool:
        """Whether a label takes the place of this step's own name in paths."""
        return step.branches is None and step.name not in frame.labels

    def _elements(self, elements: Sequence[s.Element], current: Flowing, frame: Frame) -> Flowing:
        for i, element in enumerate(elements):
            current = self._element(element, current, frame, starts=i == 0)
        return current

    def _element(
        self, element: s.Element, current: Flowing, frame: Frame, starts: bool = False
    ) -> Flowing:
        with self._deeper(element.span, frame):
            return self._by_kind(element, current, frame, starts)

    @contextmanager
    def _deeper(self, span: Span, frame: Frame) -> Iterator[None]:
        """One step, inside those that stand around it."""
        self.budget.spend_steps(1, span)
        if self.depth >= MAX_CALL_DEPTH:
            raise too_deep(_within(frame), span)
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def _by_kind(self, element: s.Element, current: Flowing, frame: Frame, starts: bool) -> Flowing:
        match element:
            case s.Step():
                return self._step(element, current, frame, None, starts)
            case s.Incoming():
                return self._incoming(element, frame)
            case s.Group():
                return self._chain(element.chain, current, frame)
            case s.Repeat():
                return self._repeat(element, current, frame)
            case s.If():
                return self._if(element, current, frame)
            case s.For():
                return self._for(element, current, frame)

    def _incoming(self, element: s.Incoming, frame: Frame) -> Flowing:
        if frame.incoming is Absent.NOTHING and not frame.calls:
            help = "`in` is what flows into a block; in a net a label names a value"
            self._tell(fail("nothing flows into a net", element.span, help=help), frame)
            return Absent.BROKEN
        return frame.incoming

    def _repeat(self, repeat: s.Repeat, current: Flowing, frame: Frame) -> Flowing:
        try:
            times = evaluate(repeat.count, frame.scope(current))
            if isinstance(times, bool) or not isinstance(times, int):
                message = f"repeats are a whole number, not {format_value(times)}"
                raise fail(message, repeat.count.span, help=suggest_for_value(times))
            if not 0 <= times <= MAX_REPEATS:
                help = f"from 0 to {MAX_REPEATS:,} repeats are possible"
                raise fail(f"{times:,} repeats", repeat.count.span, help=help)
        except NetError as e:
            self._tell(e, frame, repeat.span)
            return Absent.BROKEN
        inner = replace(frame, repeated=True)
        for _ in range(times):
            current = self._element(repeat.element, current, inner)
        return current

    def _if(self, choice: s.If, current: Flowing, frame: Frame) -> Flowing:
        if current is Absent.BROKEN:
            return current
        try:
            for condition, body in choice.arms:
                if truth(condition, frame.scope(current)):
                    return self._body(body, current, frame)
        except NetError as e:
            self._tell(e, frame, choice.span)
            return Absent.BROKEN
        return self._body(choice.otherwise, current, frame) if choice.otherwise else current

    def _for(self, loop: s.For, current: Flowing, frame: Frame) -> Flowing:
        try:
            items = evaluate(loop.items, frame.scope(current))
            if not isinstance(items, tuple):
                help = suggest_for_value(items) or "`range(3)` is the list [0, 1, 2]"
                message = f"`for` goes through a list, not {format_value(items)}"
                raise fail(message, loop.items.span, help=help)
        except NetError as e:
            self._tell(e, frame, loop.span)
            return Absent.BROKEN
        outer = frame.copied()
        inner = replace(frame, repeated=True)
        for i, item in enumerate(items):
            self.budget.spend_steps(1, loop.span)
            try:
                frame.variables.update(_unpacked(loop, i, item))
            except NetError as e:
                self._tell(e, frame, loop.span)
                return Absent.BROKEN
            current = self._body(loop.body, current, inner)
        frame.variables.clear()
        frame.variables.update(outer)
        return current

    # ---- steps

    def _step(
        self, step: s.Step, current: Flowing, frame: Frame, label: str | None, starts: bool
    ) -> Flowing:
        bare = step.args is None and step.branches is None
        if bare and step.name in frame.labels:
            return self._start_from(step, frame, starts)
        try:
            if step.name in frame.shared:
                return self._use_shared(step, current, frame, label)
            if step.name in self.program.blocks:
                return self._call_block(step, current, frame, label)
            if step.name == "input":
                return self._input(step, frame, label, starts)
            return self._call_layer(step, current, frame, label)
        except NetError as e:
            self._tell(e, frame, step.span)
            return Absent.BROKEN

    def _start_from(self, step: s.Step, frame: Frame, starts: bool) -> Flowing:
        if not starts:
            help = f"begin a branch or a statement with it: `{step.name} -> ...`"
            message = f"the label `{step.name}` can only begin a chain"
            self._tell(fail(message, step.span, help=help), frame)
        return frame.labels[step.name]

    def _names(self, frame: Frame, name: str, label: str | None) -> PathScope:
        if label is None:
            return frame.names.child(name)
        return frame.names.child(label, numbered=frame.repeated)

    def _no_branches(self, step: s.Step) -> None:
        if step.branches is not None:
            help = "branches stand after `add`, `mul` or `concat`; a group is `( ... )`"
            raise fail(f"`{step.name}` takes no branches", step.name_span, help=help)

    def _use_shared(
        self, step: s.Step, current: Flowing, frame: Frame, label: str | None
    ) -> Flowing:
        self._no_branches(step)
        if step.args:
            raise fail(f"the shared `{step.name}` takes no arguments", step.span)
        shared = frame.shared[step.name]
        names = self._names(frame, step.name, label)
        names.weights = shared.weights
        call = CallSite(step.name, step.span)
        inner = replace(
            shared.frame, names=names, incoming=current, calls=(*frame.calls, call), labels={}
        )
        end = self._elements(shared.chain.elements, current, inner)
        return self._left(end, names)

    def _left(self, end: Flowing, names: PathScope) -> Flowing:
        if isinstance(end, Flow):
            self.draft.places[names.path] = end
        return end

    def _call_block(
        self, step: s.Step, current: Flowing, frame: Frame, label: str | None
    ) -> Flowing:
        self._no_branches(step)
        block = self.program.blocks[step.name]
        given = arguments(step.args, frame.scope(current))
        variables = bind_params(block, given, step.span, self.budget)
        names = self._names(frame, step.name, label)
        if current is Absent.BROKEN:
            return current
        shown = [Argument(p, v) for p, v in variables.items()]
        call = CallSite(call_text(step.name, shown), step.span)
        inner = Frame(names, dict(variables), current, self.budget, (*frame.calls, call))
        return self._left(self._body(block.body, current, inner), names)

    def _input(self, step: s.Step, frame: Frame, label: str | None, starts: bool) -> Flowing:
        self._no_branches(step)
        if not starts:
            raise fail("an input begins a chain, nothing flows into it", step.span)
        given = arguments(step.args, frame.scope(Absent.NOTHING))
        shape = _INPUT.bind(given, step.span)["shape"]
        names = self._input_names(frame, label)
        return self.draft.make(InputCall(names.path, shape, step.span))

    def _input_names(self, frame: Frame, label: str | None) -> PathScope:
        """An input is called by its label; without one it is `input`, further ones input2, ..."""
        names = self._names(frame, "input", label)
        if label is None and names.path == "input1":
            frame.names.claim("input")
            names = PathScope("input", "input")
        if names.path in _STEP_INPUTS:
            help = f"a training step has its own {', '.join(_STEP_INPUTS)}"
            raise fail(f"an input cannot be called `{names.path}`", help=help)
        return names

    def _call_layer(
        self, step: s.Step, current: Flowing, frame: Frame, label: str | None
    ) -> Flowing:
        layer = self._find_layer(step, frame)
        given = arguments(step.args, frame.scope(current))
        bound = layer.signature.bind(given, step.span)
        if layer.arity == "many":
            flows = self._branches(step, current, frame)
        else:
            self._no_branches(step)
            flows = [current]
        names = self._names(frame, step.name, label)
        real = [f for f in flows if isinstance(f, Flow)]
        if len(real) < len(flows):
            if Absent.NOTHING in flows:
                help = "begin the net with `input(height x width x channels)`"
                raise fail(f"nothing flows into `{step.name}`", step.name_span, help=help)
            return Absent.BROKEN
        within = frame.calls[-1] if frame.calls else None
        return self.draft.make(
            LayerCall(layer, step, given, bound, names.path, names.weights, within, tuple(real))
        )

    def _find_layer(self, step: s.Step, frame: Frame) -> Layer:
        layer = LAYERS.get(step.name)
        if layer is None:
            help = self._unknown(step.name, frame)
            raise fail(f"unknown layer or block `{step.name}`", step.name_span, help=help)
        if layer.arity == "many" and not step.branches:
            help = f"write them as `{step.name} {{ a | b }}`"
            raise fail(f"`{step.name}` needs branches", step.name_span, help=help)
        return layer

    def _is_layer(self, name: str) -> bool:
        return name in LAYERS or name in self.program.blocks

    def _unknown(self, name: str, frame: Frame) -> str:
        """What to do about a name that is neither a layer nor a block."""
        if name in frame.variables:
            return f"`{name}` is a number here; what flows on is named by a label, `{name}: ...`"
        known = [*LAYERS, *self.program.blocks, *frame.labels, *frame.shared, "input"]
        if told := suggest_alias(name, known):
            return told
        define = f"define `block {name}(...) {{ ... }}`, or `use` the file that has it"
        near = suggest_spelling(name, known)
        return f"{near} Else {define}" if near else define

    def _branches(self, step: s.Step, current: Flowing, frame: Frame) -> list[Flowing]:
        return [self._chain(branch, current, frame) for branch in step.branches or ()]


def _within(frame: Frame) -> str:
    """The innermost blocks of a frame, as a message names them."""
    return " in ".join(c.text.split("(")[0] for c in frame.calls[-1:-4:-1]) or "a chain"


def _unpacked(loop: s.For, turn: int, item: Value) -> dict[str, Value]:
    """The variables of one turn of a loop."""
    names = loop.variables
    if len(names) == 1:
        return {names[0]: item}
    if not isinstance(item, tuple) or len(item) != len(names):
        written = loop.items.items if isinstance(loop.items, s.Listing) else ()
        where = written[turn].span if written else loop.items.span
        given = f"has {len(item)}" if isinstance(item, tuple) else "is no list"
        raise fail(
            f"`for {', '.join(names)}` needs {len(names)} values a turn, "
            f"{format_value(item)} {given}",
            where,
            help=f"each entry of the list is a list itself: [{', '.join(names)}]",
        )
    return dict(zip(names, item, strict=True))


__all__ = ["Settings", "Shrink", "elaborate", "small"]
