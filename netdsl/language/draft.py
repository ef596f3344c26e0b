"""A network in the making: its nodes, layers and errors, and the limits that it must keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

from netdsl.errors import Diagnostic, NetError, Span, fail
from netdsl.ir.builder import Builder
from netdsl.ir.verifier import verify_graph
from netdsl.language import syntax as s
from netdsl.language.budget import Budget, Errors, TooMuch
from netdsl.language.flow import CallSite, Flow, Frame, Maker, call_text
from netdsl.language.network import LayerInfo, Network
from netdsl.layers import Layer, Site
from netdsl.limits import MAX_TENSOR_SIZE, STEPS_PER_LAYER
from netdsl.types import Node, TensorType, dims
from netdsl.values import Argument


@dataclass(frozen=True)
class Shrink:
    """How a net is made small: its channels are divided `by` a number, and `images` says whether
    its images become as small as it can use them."""

    by: int
    images: bool = True


def small(by: int | None, images: bool = True) -> Shrink | None:
    """The small version that a number asks for; none where there is no number."""
    return None if by is None else Shrink(by, images)


@dataclass(frozen=True)
class Settings:
    """How a net is elaborated. `prepare` turns what the data gives (of type `pixels`) into what
    the net sees; it becomes part of the graph. `frozen` holds globs of states that training leaves
    as they are. `shrink` asks for a small version."""

    batch: int = 1
    training: bool = False
    dtype: str = "float32"
    pixels: str | None = None
    prepare: Callable[[Builder, Node], Node] | None = None
    frozen: tuple[str, ...] = ()
    shrink: Shrink | None = None


@dataclass(frozen=True)
class InputCall:
    """An input in its place: the shape of one image or vector."""

    path: str
    shape: tuple[int, ...]
    span: Span


@dataclass(frozen=True)
class LayerCall:
    """A layer in its place: its arguments as written and as bound, and what flows into it."""

    layer: Layer
    step: s.Step
    given: tuple[Argument, ...]
    bound: Mapping[str, Any]
    path: str
    weights: str
    within: CallSite | None
    flows: tuple[Flow, ...]

    @property
    def span(self) -> Span:
        return self.step.span

    @property
    def text(self) -> str:
        return call_text(self.step.name, self.layer.signature.drop_defaults(self.given))


class Draft:
    """All that elaboration gathers. Nodes are emitted through `b`; errors are kept, each once."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self.settings = settings
        self.budget = budget
        self.b = Builder(dtype=settings.dtype)
        self.errors = Errors()
        self.made: list[tuple[InputCall | LayerCall, Flow]] = []
        self.layers: list[LayerInfo] = []
        self.places: dict[str, Flow] = {}
        self.outputs: dict[str, Flow] = {}
        self.weights: dict[str, float] = {}
        self.updates: dict[str, Node] = {}

    def network(self, name: str, main: Flow | None) -> Network:
        """What was gathered, verified. Raises NetError with the errors, where there are any."""
        self.errors.check()
        assert main is not None, "a net without an error has an end"
        outputs = {k: f.node for k, f in {"main": main, **self.outputs}.items()}
        return Network(
            name,
            verify_graph(self.b.build(outputs, self.updates, name)),
            tuple(self.layers),
            {path: f.node.name for path, f in self.places.items()},
            {"main": 1.0, **self.weights},
            self.settings.training,
        )

    def tell(self, error: NetError, frame: Frame, span: Span | None = None) -> None:
        """Keeps an error, once, with the calls of the blocks that it happened in. Raises TooMuch
        where it ends the work."""
        if isinstance(error, TooMuch):
            raise error
        self.budget.spend_steps(STEPS_PER_LAYER, span)
        found = error.with_default_span(span).diagnostics
        self.errors.add(*(replace(d, notes=(*d.notes, *_way(d, frame.calls))) for d in found))

    def make(self, call: InputCall | LayerCall) -> Flow:
        """What comes of a call. Raises NetError, a layer's with the chains that lead to it."""
        flow = self._input(call) if isinstance(call, InputCall) else self._layer(call)
        self.made.append((call, flow))
        self.places[call.path] = flow
        return flow

    def _input(self, call: InputCall) -> Flow:
        """What the net sees of an input: the input itself, or what the data section makes of it."""
        settings = self.settings
        kind = TensorType((settings.batch, *call.shape), settings.pixels or settings.dtype)
        _check_size(kind, call.span)
        with self.b.at(call.span, call.path):
            node = self.b.input(call.path, kind)
            if settings.prepare is not None:
                node = settings.prepare(self.b, node)
        return Flow(node, Maker(f"input({dims(call.shape)})", call.span, None), len(self.made))

    def _layer(self, call: LayerCall) -> Flow:
        settings, layer, span, flows = self.settings, call.layer, call.step.span, call.flows
        site = Site(self.b, call.path, call.weights, settings.training, settings.frozen)
        before = len(self.b.nodes)
        nodes = [f.node for f in flows]
        try:
            with self.b.at(span, call.path):
                y = layer.build(site, nodes if layer.arity == "many" else nodes[0], **call.bound)
        except NetError as e:
            told = _explained(e, call.step, flows)
            inputs = (channels_first(c.shape) for c, _ in self.made if isinstance(c, InputCall))
            doubts = (_by_place(call), *inputs)
            notes = tuple(doubt for doubt in doubts if doubt)
            raise NetError(*(replace(d, notes=d.notes + notes) for d in told.diagnostics)) from None
        emitted = list(islice(reversed(self.b.nodes), len(self.b.nodes) - before))
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
                tuple(f.node.type for f in flows),
                call.bound,
                len(list(takewhile(_is_placed, call.given))),
            )
        )
        alike = layer.arity == "one" and y.type.shape == flows[0].node.type.shape
        maker = flows[0].maker if alike else Maker(call.text, span, call.within)
        return Flow(y, maker, len(self.made))


def _is_placed(argument: Argument) -> bool:
    return argument.name is None and isinstance(argument.value, int)


def _way(d: Diagnostic, calls: Sequence[CallSite]) -> list[str]:
    """The calls that led to an error, innermost first, without those that are told already."""
    shown = calls if len(calls) <= 3 else (calls[0], *calls[-2:])
    ways = [call.note(d.span) for call in reversed(shown)]
    return [f"in {way}" for way in ways if not any(way in note for note in d.notes)]


def channels_first(shape: tuple[int, ...]) -> str | None:
    """What is to be said of an input that looks like channels x height x width."""
    if len(shape) != 3:
        return None
    c, h, w = shape
    if min(h, w) <= 3 or not (c == 3 or (c == 1 and h == w)):
        return None
    return (
        f"input({dims(shape)}) is an image {c} high and {h} wide with {w} channels; "
        f"is it {dims((h, w, c))}?"
    )


def _by_place(call: LayerCall) -> str | None:
    """How arguments without names were read, where that many may be meant otherwise: other
    languages give the channels that flow in first."""
    params = call.layer.signature.params
    placed = [a for a in call.given if a.name is None]
    if len(placed) < 3 or params[0].name != "channels":
        return None
    read = [replace(a, name=p.name) for a, p in zip(placed, params, strict=False)]
    return f"read as {call_text(call.step.name, read)}; channels that flow in are never given"


def _explained(error: NetError, step: s.Step, flows: Sequence[Flow]) -> NetError:
    """A layer's refusal with the chains that lead to it."""
    if len(flows) > 1:
        origins = [f"branch {i + 1}: {f.maker.note(step.span)}" for i, f in enumerate(flows)]
        for i, branch in enumerate(step.branches or ()):
            first = branch.elements[0]
            if len(branch.elements) == 1 and getattr(first, "name", "") == "identity":
                origins[i] = f"branch {i + 1}: identity"
    else:
        origins = [f"what flows in: {flows[0].maker.note(step.span)}"]
    wide = max(map(len, origins))
    notes = tuple(f"{o:<{wide}}  {f.size()}" for o, f in zip(origins, flows, strict=True))
    told = error.with_default_span(step.name_span if len(flows) > 1 else step.span)
    return NetError(*(replace(d, notes=(*d.notes, *notes)) for d in told.diagnostics))


def _check_size(kind: TensorType, span: Span) -> None:
    if kind.size > MAX_TENSOR_SIZE:
        raise fail(f"a tensor of {kind.size:,} values is beyond any machine", span)
