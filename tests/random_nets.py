"""Random nets as the text of a .net file, with a recipe.

Layers come from the language's own table, with any arguments that their parameter types accept;
recipes from the tables of training. What does not fit together is rejected by the language and
drawn again, so a layer that is added to the table is drawn without changes here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from netdsl.errors import NetError
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.layers import LAYERS, Layer
from netdsl.layers.convolution import Bias, Padding, Weight
from netdsl.layers.init import INITIALISER_KIND, INITIALISERS, ChannelInitialiser
from netdsl.layers.rearrangement import _SliceRange
from netdsl.ops.example_values import draw_number
from netdsl.ops.op import Draw
from netdsl.parameter_types import (
    Boolean,
    Choice,
    Extent,
    Float,
    Integer,
    ListOf,
    NoneLiteral,
    OneOf,
    ParameterType,
    Shape,
)
from netdsl.signature import REQUIRED, Signature
from netdsl.training.recipe.class_weights import ClassWeightsKind
from netdsl.training.recipe.losses import LOSSES
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.schedules import SCHEDULES
from netdsl.types import TensorType
from netdsl.values import format_value

BATCHES = (2, 3, 5)
CLASSES = 4
_MAX_SIZE = 6000
"""The maximum size of a layer's output for a whole batch."""
_MAX_TRIES = 40
_COUNTS = (1, 2, 3, 4, 5, 6, 8, 16, 17, 20)


def draw_net(draw: Draw) -> str:
    """A file with one net, its data and its recipe."""
    return _NetWriter(draw).file()


class _NetWriter:
    """Writes statements one by one, each using the results of the previous ones."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.batch = draw.choice(BATCHES)
        side = draw.choice((1, 4, 6, 7, 9))
        shape = (side, draw.choice((side, 5, 8)), draw.choice((1, 2, 3, 3, 8)))
        self.lines = [f"input({'x'.join(map(str, shape))})"]
        self.types: list[TensorType] = []
        """The output type of every statement after the input; the statements are labelled x0, x1
        and so on."""

    def file(self) -> str:
        for _ in range(self.draw.integer(2, 7)):
            self._grown(self.draw.choice(_STATEMENTS))
        self._grown(lambda w: w.head(), named=False)
        return self.closed()

    def closed(self) -> str:
        return self._net() + draw_recipe(self.draw, self.batch, self._options())

    def _options(self) -> list[str]:
        """Recipe entries that name parts of the net."""
        settings = Settings(batch=self.batch, training=True)
        network = elaborate(build_program(parse(self._net())), None, settings)
        found = [f'recompute = "{x}"' for x in network.nodes_by_path if re.fullmatch(r"x\d", x)]
        weights = [n.name for n in network.parameters if n.name.startswith("x")]
        found += [f'freeze = "{name}"' for name in weights[:2]]
        return found + [f'lr_scale = [("{name}", 0.3)]' for name in weights[-1:]]

    def _net(self, *more: str) -> str:
        inside = "".join(f"  {line}\n" for line in (*self.lines, *more))
        return f"net drawn {{\n{inside}}}\n"

    def _grown(self, write: Callable[[_NetWriter], str], named: bool = True) -> None:
        """Appends a statement that the language accepts, if one is found within _MAX_TRIES."""
        for _ in range(_MAX_TRIES):
            line = write(self)
            line = f"x{len(self.types)}: {line}" if named else line
            kind = self._given(line)
            if kind is not None and kind.size <= _MAX_SIZE:
                self.lines.append(line)
                self.types.append(kind)
                return

    def _given(self, *more: str) -> TensorType | None:
        """The type of the net's output with these statements added; None if they are rejected."""
        settings = Settings(batch=self.batch, training=True)
        try:
            network = elaborate(build_program(parse(self._net(*more))), None, settings)
        except NetError:
            return None
        return network.graph[network.graph.outputs["main"]].type

    # statements

    def single(self) -> str:
        return self.call(self.draw.choice(RARE_LAYERS))

    def weighted(self) -> str:
        """A typical sequence of layers: a product, a norm, an activation, some pooling."""
        words = [self.draw.choice(group) for group in _COMMON_LAYERS]
        return " -> ".join(self.call(LAYERS[word]) for word in words if word)

    def joined(self, layer: Layer | None = None) -> str:
        word = layer or self.draw.choice(MULTI_INPUT_LAYERS)
        branches = " | ".join(self.branch() for _ in range(self.draw.integer(2, 3)))
        return f"{word.name} {{ {branches} }}"

    def branch(self) -> str:
        """The incoming value, or an earlier one of the same shape, and mostly a layer on it."""
        alike = [f"x{i}" for i, kind in enumerate(self.types) if kind == self.types[-1]]
        begin = self.draw.choice(["identity", "identity", *alike])
        then = self.draw.choice(
            ("", "", "globalavgpool", "relu", self.call(self.draw.choice(SINGLE_INPUT_LAYERS)))
        )
        return f"{begin} -> {then}" if then else begin

    def twice(self) -> str:
        return f"({self.weighted()}) * 2"

    def shared(self) -> str:
        """Two uses of one chain, which preserves the shape of its input."""
        name, channels = f"s{len(self.lines)}", self._channels()
        chain = f"conv({channels}, 3x3, pad=same) -> {self.call(LAYERS['batchnorm'])}"
        self.lines.append(f"shared {name} = {chain}")
        if self._given(name) is None:
            self.lines.pop()
            return self.single()
        return f"{name} -> {self.call(self.draw.choice(SINGLE_INPUT_LAYERS))} -> {name}"

    def _channels(self) -> int:
        kind = self._given()
        return kind.shape[-1] if kind else 1

    def _draw_shape(self) -> str:
        """Another shape for as many values as the net has."""
        kind = self._given()
        *sides, last = kind.shape[1:] if kind else (1,)
        factor = self.draw.choice([f for f in range(1, 9) if last % f == 0])
        return f"{last // factor}x{math.prod(sides)}x{factor}"

    def head(self) -> str:
        before = self.draw.choice(("", "globalavgpool -> ", "globalmaxpool -> ", "flatten -> "))
        more = draw_arguments(self.draw, LAYERS["fc"].signature, ("units",))
        return f"{before}fc({CLASSES}, {more})" if more else f"{before}fc({CLASSES})"

    # calls

    def call(self, layer: Layer) -> str:
        inside = draw_arguments(self.draw, layer.signature)
        if layer.name == "reshape":  # others rarely fit
            inside = self._draw_shape()
        return f"{layer.name}({inside})" if inside else layer.name


def draw_single_layer_net(draw: Draw, layer: Layer) -> str | None:
    """A file whose net is little more than one layer; None if all tries are rejected."""
    writer = _NetWriter(draw)
    if layer.arity == "many":
        writer._grown(lambda w: w.weighted())
    writer._grown(lambda w: w.joined(layer) if layer.arity == "many" else w.call(layer))
    writer._grown(lambda w: w.head(), named=False)
    return writer.closed() if layer.name in writer._net() else None


def draw_recipe(draw: Draw, batch: int, options: Sequence[str] = ()) -> str:
    """A data and a train section; the recipe has at most one of the entries in `options`."""
    entries = [
        f"optimizer = {_draw_call(draw, OPTIMIZERS)}",
        f"loss = {_draw_loss(draw)}",
        f"schedule = {_draw_call(draw, SCHEDULES)}",
        f"epochs = {draw.integer(1, 5)}",
        draw.choice(("clip = 0.3", "ema = 0.9", "accumulate = 2", "", "", "")),
        draw.choice(["", *options]),
    ]
    inside = "".join(f"  {entry}\n" for entry in entries if entry)
    return f"data {{ source = digits, batch = {batch} }}\ntrain {{\n{inside}}}\n"


def _draw_call(draw: Draw, table: Mapping[str, Any]) -> str:
    name = draw.choice(sorted(table))
    inside = draw_arguments(draw, table[name].signature, ("no_decay",))
    return f"{name}({inside})" if inside else name


def _draw_loss(draw: Draw) -> str:
    if draw.integer(1, 3) > 1:
        return _draw_call(draw, LOSSES)
    return f"[({_draw_call(draw, LOSSES)}, 0.7), ({_draw_call(draw, LOSSES)}, 1.5)]"


def draw_arguments(draw: Draw, signature: Signature, known: Iterable[str] = ()) -> str:
    """Draws the required arguments, and about two thirds of the others."""
    found = []
    for param in signature.params:
        needed = param.default is REQUIRED
        if param.name not in known and (needed or draw.integer(1, 3) > 1):
            plainer = _NARROWER_KINDS.get(param.name) or _NARROWER_KINDS.get(
                f"{signature.name}.{param.name}"
            )
            found.append(f"{param.name}={draw_value(draw, plainer or param.type)}")
    return ", ".join(found)


_NARROWER_KINDS: dict[str, ParameterType] = {
    "lr": Float(1e-4, 0.3),
    "weight_decay": Float(0, 2),
    "lrn.alpha": Float(0, 3),
    "lrn.beta": Float(-2, 2),
    "focal.gamma": Float(0, 5),
    "at": ListOf(Float(0, 5)),
    "warmup": Float(0, 2),
}
"""Narrower types to draw some parameters from: weights that grow a thousandfold in a step, and
powers of negative sums, become NaN within a step or two, and then nothing is compared."""
SINGLE_INPUT_LAYERS = [layer for layer in LAYERS.values() if layer.arity == "one"]
MULTI_INPUT_LAYERS = [layer for layer in LAYERS.values() if layer.arity == "many"]
_COMMON_LAYERS = (
    ("conv", "conv", "conv", "convtranspose", "fc", "local"),
    ("batchnorm", "batchnorm", "layernorm", "instancenorm", "groupnorm", ""),
    ("relu", "relu", "gelu", "elu", "leaky_relu", "clamp", "tanh", ""),
    ("", "", "", "maxpool", "avgpool", "globalmaxpool", "dropout"),
)
RARE_LAYERS = [
    layer
    for layer in SINGLE_INPUT_LAYERS
    if not any(layer.name in group for group in _COMMON_LAYERS)
]
_STATEMENTS: tuple[Callable[[_NetWriter], str], ...] = (
    lambda w: w.single(),
    lambda w: w.single(),
    lambda w: w.weighted(),
    lambda w: w.weighted(),
    lambda w: w.weighted(),
    lambda w: w.joined(),
    lambda w: w.twice(),
    lambda w: w.shared(),
)


def draw_value(draw: Draw, kind: ParameterType) -> str:
    """A value of a parameter type, as written in a file."""
    for known, write in _DRAWERS.items():
        if isinstance(kind, known):
            return write(draw, kind)
    raise AssertionError(f"nothing is drawn of {kind}")


def _draw_whole(draw: Draw, kind: Integer) -> str:
    return str(draw.choice([n for n in (0, *_COUNTS) if kind.low <= n <= kind.high]))


def _draw_extent(draw: Draw, kind: Extent) -> str:
    sides = [draw.choice([n for n in (0, 1, 2, 2, 3, 3, 4, 5) if n >= kind.low]) for _ in range(2)]
    return draw.choice(("{0}x{1}", "{0}", "[{0}, {1}]")).format(*sides)


def _draw_padding(draw: Draw, kind: Padding) -> str:
    sides = [draw.integer(0, 2) for _ in range(4)]
    return draw.choice(("same", "{0}", "{0}x{1}", "[{0}, {1}, {2}, {3}]")).format(*sides)


def _draw_many(draw: Draw, kind: ListOf) -> str:
    count = draw.integer(1, 2) if kind.length is None else kind.length
    return f"[{', '.join(draw_value(draw, kind.item_type) for _ in range(count))}]"


def _draw_cut(draw: Draw, kind: _SliceRange) -> str:
    start = draw.integer(0, 2)
    return f"[{start}, {start + draw.integer(1, 3)}]"


def _draw_initialiser(draw: Draw) -> str:
    name = draw.choice(sorted(INITIALISERS))
    inside = ", ".join(draw_value(draw, p.type) for p in INITIALISERS[name].signature.params)
    return f"{name}({inside})" if inside else name


def _draw_weight(draw: Draw, kind: Weight) -> str:
    return draw.choice(("{0}", "weightnorm({0})", "weightnorm")).format(_draw_initialiser(draw))


def _draw_bias(draw: Draw, kind: Bias) -> str:
    return draw.choice(("yes", "no", _draw_initialiser(draw)))


def _draw_one_of(draw: Draw, kind: OneOf) -> str:
    return (
        _draw_initialiser(draw)
        if kind is INITIALISER_KIND
        else draw_value(draw, draw.choice(kind.alternatives))
    )


_DRAWERS: dict[type, Callable[[Draw, Any], str]] = {
    Integer: _draw_whole,
    Float: lambda draw, kind: format_value(draw_number(draw, kind)),
    Boolean: lambda draw, kind: draw.choice(("yes", "no")),
    Choice: lambda draw, kind: draw.choice(kind.names),
    Extent: _draw_extent,
    Padding: _draw_padding,
    ListOf: _draw_many,
    _SliceRange: _draw_cut,
    Weight: _draw_weight,
    Bias: _draw_bias,
    ChannelInitialiser: lambda draw, kind: _draw_initialiser(draw),
    OneOf: _draw_one_of,
    NoneLiteral: lambda draw, kind: "none",
    ClassWeightsKind: lambda draw, kind: draw.choice(("none", "balanced")),
    Shape: lambda draw, kind: "x".join(str(draw.choice((1, 2, 3, 4))) for _ in range(3)),
}


def layer_names(text: str) -> set[str]:
    """The layer types that a net consists of."""
    network = elaborate(build_program(parse(text)), None, Settings(batch=2, training=True))
    return {layer.layer_type for layer in network.layers}
