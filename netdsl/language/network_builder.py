"""Builds a network during elaboration: collects nodes, layers and errors, and enforces limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from netdsl.errors import Diagnostic, NetError, Span, fail
from netdsl.ir.builder import Builder
from netdsl.ir.verifier import verify_graph
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors, LimitError
from netdsl.language.frame import CallSite, ChainValue, Frame, ShapeOrigin, format_call
from netdsl.language.network import LayerInfo, Network
from netdsl.layers import Layer, Site
from netdsl.limits import MAX_TENSOR_SIZE, STEPS_PER_LAYER
from netdsl.types import Node, TensorType, dims
from netdsl.values import Argument


@dataclass(frozen=True)
class ShrinkSettings:
    """How to shrink a network: channel counts are divided by `divisor`; `shrink_images` also
    reduces the images to the smallest size the network accepts."""

    divisor: int
    shrink_images: bool = True


def shrink_settings(divisor: int | None, shrink_images: bool = True) -> ShrinkSettings | None:
    """Returns the settings for a divisor; None without one."""
    return None if divisor is None else ShrinkSettings(divisor, shrink_images)


@dataclass(frozen=True)
class Settings:
    """How to elaborate a net. `prepare` converts the data (of type `input_dtype`) to the network's
    input; its nodes become part of the graph. `frozen_globs` contains globs of states that training
    does not change. `shrink` requests a small version, `image_size` (height, width) images of
    another size than in the text. `ranks` train together, each on a batch of its own."""

    batch: int = 1
    training: bool = False
    dtype: str = "float32"
    input_dtype: str | None = None
    prepare: Callable[[Builder, Node], Node] | None = None
    frozen_globs: tuple[str, ...] = ()
    shrink: ShrinkSettings | None = None
    image_size: tuple[int, int] | None = None
    ranks: int = 1


_STEP_INPUTS = ("lr", "step", "update", "seed", "rank", "ema_rate", "signals")
RESERVED_INPUTS = ("labels", "targets", "weights", *_STEP_INPUTS)
"""Names that the inputs of a net cannot have: a training step has inputs of these names."""


@dataclass(frozen=True)
class InputCall:
    """An input at its path, with the shape of one image or vector."""

    path: str
    shape: tuple[int, ...]
    span: Span


@dataclass(frozen=True)
class LayerCall:
    """A layer call at its path: its arguments as written and as bound, and its inputs; if it joins
    branches, those that are not left out, and the origin of what flows into them."""

    layer: Layer
    step: s.Step
    arguments: tuple[Argument, ...]
    bound_arguments: Mapping[str, Any]
    path: str
    weight_path: str
    caller: CallSite | None
    inputs: tuple[ChainValue, ...]
    branches: tuple[s.Branch, ...] = ()
    incoming: ShapeOrigin | None = None

    @property
    def span(self) -> Span:
        return self.step.span

    @property
    def text(self) -> str:
        return format_call(self.step.name, self.layer.signature.drop_defaults(self.arguments))


class NetworkBuilder:
    """Collects the results of elaboration. Nodes are emitted through `b`; errors are kept without
    duplicates."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self.settings = settings
        self.budget = budget
        self.b = Builder(dtype=settings.dtype)
        self.errors = Errors()
        self.call_results: list[tuple[InputCall | LayerCall, ChainValue]] = []
        self.layers: list[LayerInfo] = []
        self.values_by_path: dict[str, ChainValue] = {}
        self.outputs: dict[str, ChainValue] = {}
        self.loss_weights: dict[str, float] = {}
        self.updates: dict[str, Node] = {}

    def build_network(self, name: str, main: ChainValue | None) -> Network:
        """Returns the verified network. Raises NetError with the collected errors, if any."""
        self.errors.raise_if_any()
        assert main is not None, "a net without an error has an end"
        values = {"main": main, **self.outputs}
        outputs = {k: f.node for k, f in values.items()}
        return Network(
            name,
            verify_graph(self.b.build(outputs, self.updates, name)),
            tuple(self.layers),
            {path: f.node.name for path, f in self.values_by_path.items()},
            {"main": 1.0, **self.loss_weights},
            self.settings.training,
            {k: self._path_of(f) for k, f in values.items()},
            self.settings.ranks,
        )

    def _path_of(self, value: ChainValue) -> str:
        """The path of the call that gives a value."""
        return self.call_results[value.call_index][0].path

    def report_error(self, error: NetError, frame: Frame, span: Span | None = None) -> None:
        """Records an error, without duplicates, with the block calls that led to it. Raises
        LimitError if the error is one or there are too many errors."""
        if isinstance(error, LimitError):
            raise error
        self.budget.spend_steps(STEPS_PER_LAYER, span)
        diagnostics = error.with_default_span(span).diagnostics
        self.errors.add(
            *(
                replace(d, notes=(*d.notes, *_call_stack_notes(d, frame.call_stack)))
                for d in diagnostics
            )
        )

    def add_call(self, call: InputCall | LayerCall) -> ChainValue:
        """Emits a call and returns its value. Raises NetError; a layer's error comes with notes on
        the origin of its inputs."""
        value = self._add_input(call) if isinstance(call, InputCall) else self._add_layer(call)
        self.call_results.append((call, value))
        self.values_by_path[call.path] = value
        return value

    def _add_input(self, call: InputCall) -> ChainValue:
        """Emits an input, and the preparation that the data section asks for."""
        settings, shape = self.settings, call.shape
        if settings.image_size is not None and len(shape) == 3:
            shape = (*settings.image_size, shape[2])
        kind = TensorType((settings.batch, *shape), settings.input_dtype or settings.dtype)
        _check_size(kind, call.span)
        with self.b.at(call.span, call.path):
            node = self.b.input(call.path, kind)
            if settings.prepare is not None:
                node = settings.prepare(self.b, node)
        return ChainValue(
            node, ShapeOrigin(f"input({dims(shape)})", call.span, None), len(self.call_results)
        )

    def _add_layer(self, call: LayerCall) -> ChainValue:
        settings, layer, span, inputs = self.settings, call.layer, call.step.span, call.inputs
        site = Site(
            self.b,
            call.path,
            call.weight_path,
            settings.training,
            settings.frozen_globs,
            settings.ranks,
        )
        node_count = len(self.b.nodes)
        nodes = [f.node for f in inputs]
        try:
            with self.b.at(span, call.path):
                y = layer.build(
                    site, nodes if layer.arity == "many" else nodes[0], **call.bound_arguments
                )
        except NetError as e:
            explained = _add_origin_notes(e, call)
            raise NetError(*(self._add_layout(d, call) for d in explained.diagnostics)) from None
        emitted = list(islice(reversed(self.b.nodes), len(self.b.nodes) - node_count))
        self.budget.spend_steps(STEPS_PER_LAYER + len(emitted), span)
        for node in emitted:
            _check_size(self.b.nodes[node].type, span)
        self.updates |= site.updates
        self.layers.append(
            LayerInfo(
                call.path,
                call.text,
                call.step.name,
                y.name,
                tuple(emitted[::-1]),
                y.type,
                span,
                tuple(f.node.type for f in inputs),
                call.bound_arguments,
                call.arguments,
                tuple(map(self._path_of, inputs)),
                call.weight_path,
            )
        )
        keeps_shape = layer.arity == "one" and y.type.shape == inputs[0].node.type.shape
        origin = inputs[0].origin if keeps_shape else ShapeOrigin(call.text, span, call.caller)
        return ChainValue(y, origin, len(self.call_results))

    def _add_layout(self, diagnostic: Diagnostic, call: LayerCall) -> Diagnostic:
        """Adds how arguments and input were read, if they look like another framework's order. The
        help is then how to write that order."""
        notes = [_positional_arguments_hint(call)]
        fixes = [_input_channels_fix(call)]
        for other, _ in self.call_results:
            if isinstance(other, InputCall) and looks_channels_first(other.shape):
                notes.append(describe_input(other.shape))
                fixes.append(f"did you mean `input({dims((*other.shape[1:], other.shape[0]))})`?")
        fix = next((f for f in fixes if f), diagnostic.help)
        shown = tuple(note for note in notes if note)
        return replace(diagnostic, notes=diagnostic.notes + shown, help=fix)


def _call_stack_notes(d: Diagnostic, calls: Sequence[CallSite]) -> list[str]:
    """Notes on the calls that led to an error, innermost first, without those already in it."""
    shown_calls = calls if len(calls) <= 3 else (calls[0], *calls[-2:])
    call_notes = [call.describe(d.span) for call in reversed(shown_calls)]
    return [
        f"in {call_note}"
        for call_note in call_notes
        if not any(call_note in note for note in d.notes)
    ]


def looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the shape of an input looks like channels x height x width."""
    if len(shape) != 3:
        return False
    c, h, w = shape
    return min(h, w) > 3 and (c == 3 or (c == 1 and h == w))


def describe_input(shape: tuple[int, ...]) -> str:
    """How the shape of an image is read."""
    h, w, c = shape
    return f"input({dims(shape)}) is an image {h} high and {w} wide with {c} channels"


def _positional_arguments_hint(call: LayerCall) -> str | None:
    """A hint on how three or more positional arguments were read: other frameworks take the input
    channels first."""
    params = call.layer.signature.params
    positional = [a for a in call.arguments if a.name is None]
    if len(positional) < 3 or params[0].name != "channels":
        return None
    named_arguments = [replace(a, name=p.name) for a, p in zip(positional, params, strict=False)]
    text = format_call(call.step.name, named_arguments)
    return f"read as {text}; input channels are always inferred"


def _input_channels_fix(call: LayerCall) -> str | None:
    """What to write for a convolution whose first argument is the channels of its input."""
    params = call.layer.signature.params
    positional = [a for a in call.arguments if a.name is None]
    if len(positional) < 3 or params[0].name != "channels" or len(call.inputs) != 1:
        return None
    if positional[0].value != call.inputs[0].node.type.shape[-1]:
        return None
    return f"did you mean `{format_call(call.step.name, call.arguments[1:])}`?"


def _add_origin_notes(error: NetError, call: LayerCall) -> NetError:
    """Adds the origin of each input to a layer's error. A branch that keeps the shape of what flows
    into it is its own origin."""
    step, inputs = call.step, call.inputs
    if call.branches:
        origins = [
            f"branch {i + 1}: {_describe_chain(branch.chain, step)}"
            if f.origin is call.incoming
            else f"branch {i + 1}: {f.origin.describe(step.span)}"
            for i, (branch, f) in enumerate(zip(call.branches, inputs, strict=True))
        ]
    else:
        origins = [f"its input: {inputs[0].origin.describe(step.span)}"]
    width = max(map(len, origins))
    notes = tuple(f"{o:<{width}}  {f.format_size()}" for o, f in zip(origins, inputs, strict=True))
    located = error.with_default_span(step.name_span if call.branches else step.span)
    return NetError(*(replace(d, notes=(*d.notes, *notes)) for d in located.diagnostics))


def _describe_chain(chain: s.Chain, step: s.Step) -> str:
    return f"{chain.span.excerpt()} at {chain.span.format_relative_to(step.span)}"


def _check_size(kind: TensorType, span: Span) -> None:
    if kind.size > MAX_TENSOR_SIZE:
        raise fail(f"a tensor of {kind.size:,} values is too large for any machine", span)
