"""Lint rules: each finds something in a net or a recipe that is probably not intended."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from netdsl.errors import Span
from netdsl.globs import matches_any_glob, matches_glob, suggest_globs
from netdsl.language import syntax as s
from netdsl.language.functions import FUNCTIONS
from netdsl.language.network import LayerInfo
from netdsl.language.network_builder import describe_input, looks_channels_first
from netdsl.language.program import Program
from netdsl.language.uses import find_written_net
from netdsl.layers import LAYERS
from netdsl.layers.init import CHANNEL_INITIALISER_HELP, Fans
from netdsl.ops import OPS
from netdsl.signature import BoundCall
from netdsl.training.metrics.table import METRIC_NAMES
from netdsl.training.recipe.best import choose_direction
from netdsl.training.recipe.intervals import count_validations
from netdsl.training.recipe.lint import Finding, Review, Subject
from netdsl.training.recipe.score_layers import (
    PASSING_OPS,
    POOLING_OPS,
    find_score_layer,
    skip_ops,
    weight_name,
)
from netdsl.types import Graph, dims, find_reachable
from netdsl.values import Size, Value, format_value

# ---- lints of a net ---------------------------------------------------------------------------


def find_hidden_layer(review: Review) -> Iterator[Finding]:
    for name, block in review.program.blocks.items():
        if name in LAYERS:
            message = f"your block `{name}` hides the layer with that name"
            yield Finding(message, block.span, f"choose another name, such as `my_{name}`")


def find_hidden_function(review: Review) -> Iterator[Finding]:
    program = review.program
    defined = (*program.lets.values(), *program.blocks.values(), *program.nets.values())
    for let in s.walk(*defined):
        if isinstance(let, s.Let) and let.params is not None and let.name in FUNCTIONS:
            message = f"your function `{let.name}` hides the built-in function with that name"
            yield Finding(message, let.span, f"choose another name, such as `my_{let.name}`")


def find_channels_first(subject: Subject) -> Iterator[Finding]:
    for node in subject.network.graph.inputs:
        shape = node.type.shape[1:]
        if looks_channels_first(shape):
            swapped = dims((*shape[1:], shape[0]))
            doubt = f"{describe_input(shape)}; did you mean {swapped}?"
            yield Finding(doubt, node.span, "shapes are height x width x channels")


_MAX_KERNEL = 11
"""The largest kernel of a published net that keeps the channel count and is not depthwise."""
_MAX_EVEN_KERNEL = 4
_MAX_STRIDE = 2


def find_pytorch_order(subject: Subject) -> Iterator[Finding]:
    """Finds PyTorch's argument order. A kernel written as `31x31`, or that of a depthwise
    convolution, is taken as intended."""
    for layer in subject.network.layers:
        given = layer.arguments
        count = sum(1 for _ in takewhile(_is_integer, layer.positional_values))
        if layer.layer_type not in ("conv", "convtranspose", "local") or count < 2:
            continue
        kernel, stride = max(given["kernel"]), max(given["stride"])
        if count == 2:
            doubtful = kernel > _MAX_KERNEL and given.get("groups", 1) == 1
        else:
            even = kernel > _MAX_EVEN_KERNEL and kernel % 2 == 0
            doubtful = even or kernel > _MAX_KERNEL or stride > _MAX_STRIDE
        if doubtful and given["channels"] == layer.input_types[0].shape[-1]:
            meant = f"{kernel}, {stride}" if count > 2 else f"{kernel}, 3x3"
            yield Finding(
                f"`{layer.call}` has {given['channels']} channels, as many as its input, and a "
                f"kernel of {kernel} with stride {stride}",
                layer.span,
                f"input channels are always inferred: did you mean `{layer.layer_type}({meant})`?",
            )


def _is_integer(value: Value) -> bool:
    return isinstance(value, int)


def find_depthwise_channels(subject: Subject) -> Iterator[Finding]:
    """Finds channels given to `depthwise`, which takes a kernel first: a kernel as large as channel
    counts are, and a stride as large as kernels are. A kernel written as `31x31` is taken as
    intended."""
    for layer in subject.network.layers:
        if layer.layer_type != "depthwise" or not subject.is_whole:
            continue
        kernel, stride = layer.arguments["kernel"], layer.arguments["stride"]
        first, second = (*layer.positional_values, None, None)[:2]
        if _is_integer(first) and _is_channel_count(layer, kernel[0], stride, second):
            meant = "3x3" if second is None else format_value(second)
            yield Finding(
                f"`depthwise` has no `channels`: in `{layer.call}`, {kernel[0]} is a kernel of "
                f"{dims(kernel)}" + (f" and {meant} the stride" if second is not None else ""),
                layer.span,
                f"its channels come from the input: write `depthwise({meant}, ...)`",
            )
        elif any(s > k > 1 for s, k in zip(stride, kernel, strict=True)):
            yield Finding(
                f"`{layer.call}` skips pixels: its stride is {dims(stride)}, its kernel "
                f"{dims(kernel)}",
                layer.span,
                "`depthwise` takes the kernel, then the stride; the number of channels comes "
                "from the input",
            )


def _is_channel_count(
    layer: LayerInfo, kernel: int, stride: tuple[int, int], second: Value
) -> bool:
    """Whether a kernel given as one number, before `second`, is rather a number of channels."""
    is_size = isinstance(second, Size | tuple)
    if kernel == layer.input_types[0].shape[-1]:
        return kernel > _MAX_KERNEL or is_size or max(stride) > _MAX_STRIDE
    if kernel in stride:  # windows side by side
        return False
    is_even = kernel > _MAX_EVEN_KERNEL and kernel % 2 == 0
    is_large = kernel > _MAX_KERNEL
    return (is_size and (is_even or is_large)) or (is_large and max(stride) > _MAX_STRIDE)


_MAX_FACTOR = 32
"""How much published nets enlarge an image at once (FCN-32s)."""
_MAX_WRITTEN_FACTOR = 8
"""The same of a factor that is written as a size; almost all are written as one number."""


def find_large_upsample(subject: Subject) -> Iterator[Finding]:
    """Finds the size of a result given as the factor. For an image of one pixel, both are the
    same."""
    for layer in subject.network.layers:
        factor = layer.arguments.get("factor")
        if layer.layer_type != "upsample" or factor is None or not subject.is_whole:
            continue
        size = layer.input_types[0].shape[1:3]
        if max(size) == 1:
            continue
        is_size = any(isinstance(a.value, Size | tuple) for a in layer.written)
        is_larger = all(f > side > 1 for f, side in zip(factor, size, strict=True))
        is_wide = is_size and (is_larger or min(factor) > _MAX_WRITTEN_FACTOR)
        if is_wide or max(factor) > _MAX_FACTOR:
            yield Finding(
                f"`{layer.call}` makes {dims(size)} into {dims(layer.output_type.shape[1:3])}: "
                "`factor` is how many times larger the result is",
                layer.span,
                f"for a result of {dims(factor)}, write `upsample(to={dims(factor)})`",
            )


def find_enlarging_pool(subject: Subject) -> Iterator[Finding]:
    for layer in subject.network.layers:
        to = layer.arguments.get("to")
        if layer.layer_type not in ("maxpool", "avgpool") or to is None or not subject.is_whole:
            continue
        size = layer.input_types[0].shape[1:3]
        if any(wanted > side for wanted, side in zip(to, size, strict=True)):
            yield Finding(
                f"`{layer.call}` enlarges an image of {dims(size)}: its windows repeat pixels",
                layer.span,
                "pooling cannot enlarge an image; use `upsample`",
            )


def find_channel_fans(subject: Subject) -> Iterator[Finding]:
    """Finds initialisers that scale with fans where there is a value for each channel."""
    for layer in subject.network.layers:
        for name, value in layer.arguments.items():
            if name != "weight" and isinstance(value, BoundCall) and value.record.needs == "fans":
                yield Finding(
                    f"`{name}={value}` of `{layer.layer_type}`: a vector with one value per "
                    f"channel has no fans, so the number of channels is used instead",
                    layer.span,
                    CHANNEL_INITIALISER_HELP,
                )


def find_numeric_bias(subject: Subject) -> Iterator[Finding]:
    """Finds 0 and 1 as a switch, which are initial values. A name for one is meant so."""
    for layer in subject.network.layers:
        for argument in layer.written:
            value, text = argument.value, argument.span.text if argument.span else ""
            if argument.name == "bias" and value in (0, 1) and text.endswith(("0", "1")):
                yield Finding(
                    f"`bias={value}` of `{layer.layer_type}` is a bias that starts at {value}",
                    layer.span,
                    f"write `bias={format_value(bool(value))}`, or `bias=constant({value})` if "
                    "you mean the initial value",
                )


_MAX_BRANCH_SCALE = 0.001
"""Initial factors up to this are for the end of a residual branch; 1/255 scales pixels."""


def find_main_path(subject: Subject) -> Iterator[Finding]:
    """Finds `drop_path`, and `scale` with a small factor, whose value is all that the net's output
    depends on. On a residual branch there is a way around them."""
    found = [x for x in subject.network.layers if _is_for_branches(x)]
    if not found:
        return
    graph = subject.network.graph
    alone = _find_bottlenecks(graph, graph.outputs["main"])
    for layer in found:
        if layer.result in alone:
            effect = (
                "for some samples, the net's output does not depend on its input"
                if layer.layer_type == "drop_path"
                else "at first, the net's output hardly depends on its input"
            )
            yield Finding(
                f"`{layer.call}` is not on a residual branch: {effect}",
                layer.span,
                f"put it at the end of a branch: `add {{ identity | ... -> {layer.call} }}`",
            )


def _is_for_branches(layer: LayerInfo) -> bool:
    if layer.layer_type == "drop_path":
        return bool(layer.arguments["rate"] > 0)
    if layer.layer_type != "scale":
        return False
    init = layer.arguments["init"]
    _, size = init.record.distribution(Fans(1, 1), **init.arguments)
    return abs(size) <= _MAX_BRANCH_SCALE


def _find_bottlenecks(graph: Graph, output: str) -> set[str]:
    """The nodes that every way from an image or vector to an output passes through: those that no
    edge skips, in an order of the nodes that are on such ways."""
    images = [n.name for n in graph.inputs if n.type.rank > 0]
    ways = find_reachable(graph.dag, images) & graph.backward_slice(output)
    order = {name: i for i, name in enumerate(n for n in graph.nodes if n in ways)}
    last_reader = {a: order[name] for name in order for a in graph[name].args if a in order}
    found = set()
    furthest = max((order[n] for n in images if n in order), default=0)
    for name, i in order.items():
        if furthest <= i:
            found.add(name)
        furthest = max(furthest, last_reader.get(name, i))
    return found


def find_unread(subject: Subject) -> Iterator[Finding]:
    """Finds layers whose output nothing reads. A test that queries a layer counts as reading it."""
    network = subject.network
    asked = {
        network.nodes_by_path[x] for x in _texts(subject.program) if x in network.nodes_by_path
    }
    needed = network.graph.backward_slice(*network.graph.outputs.values(), *asked)
    read = {a for n in network.graph.nodes.values() for a in n.args}
    for layer in network.layers:
        if layer.result not in needed and layer.result not in read:
            message = f"nothing reads the output of `{layer.path}`"
            help = "begin a chain with its label, make it an `output`, or remove it"
            yield Finding(message, layer.span, help)


def _texts(program: Program) -> Iterator[str]:
    """All strings in a file's tests, including layer paths."""
    expressions = s.walk(*program.tests)
    return (e.value for e in expressions if isinstance(e, s.StringLiteral))


# ---- lints of a recipe ------------------------------------------------------------------------


def find_large_mean(subject: Subject) -> Iterator[Finding]:
    chosen = subject.recipe.data.normalize if subject.recipe else None
    if chosen is None or not chosen.arguments:
        return
    for key in ("mean", "std"):
        large = [x for x in chosen.arguments[key] if abs(x) > 1]
        if large:
            message = f"`{key}` has {format_value(large[0])}, but pixels are scaled to 0..1 first"
            divided = ", ".join(f"{x / 255:.3g}" for x in chosen.arguments[key])
            yield Finding(message, chosen.span, f"divided by 255: `{key}=[{divided}]`")


def find_late_step(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    schedule, epochs = subject.recipe.schedule, subject.recipe.epochs
    late = [x for x in schedule.arguments.get("at", ()) if x >= epochs]
    if late:
        message = (
            f"the rate would change after {format_value(late[0])} epochs, but the run has {epochs}"
        )
        yield Finding(message, schedule.span, "set every step below `epochs`, or remove it")
    # needs one epoch to compare with, `patience` + 1 without improvement, one at the new rate
    judged = count_validations(subject.recipe.validate_every, epochs)
    if schedule.name == "plateau" and judged < schedule.arguments["patience"] + 3:
        waits, which = schedule.arguments["patience"], "validated " * (judged < epochs)
        message = f"`plateau` waits for more than {waits} {which}epochs, but the run has {judged}"
        help = f"set a smaller `patience`, or at least {waits + 3} {which}epochs"
        yield Finding(message, schedule.span, help)


def find_early_step(subject: Subject) -> Iterator[Finding]:
    """Finds steps at 0, and steps that are shares of the run."""
    if subject.recipe is None:
        return
    schedule, epochs = subject.recipe.schedule, subject.recipe.epochs
    at = schedule.arguments.get("at", ())
    if 0 in at:
        message = "the rate changes before the first epoch"
        yield Finding(message, schedule.span, "`at` counts finished epochs: begin with 1")
    elif at and max(at) < 1 < epochs:
        meant = ", ".join(format_value(float(f"{x * epochs:.6g}")) for x in at)
        message = f"all steps are within the first of {epochs} epochs"
        yield Finding(message, schedule.span, f"`at` counts epochs: write `at=[{meant}]`")


def find_long_warmup(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    epochs = subject.recipe.epochs
    for chosen in filter(None, (subject.recipe.schedule, subject.recipe.lr_rule)):
        warmup = chosen.arguments.get("warmup", 0.0)
        if warmup >= epochs:
            message = f"the warm-up takes {format_value(warmup)} epochs, but the run has {epochs}"
            yield Finding(message, chosen.span, "set `warmup` to the first few epochs of the run")


def find_large_cutout(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    data = subject.recipe.data
    sizes = (subject.network.image_shape, data.source.record.image_shape or ())
    side = max(min(size[:2], default=0) for size in sizes)
    for chosen in data.augment:
        if chosen.name == "cutout" and chosen.arguments["size"] >= side:
            size = chosen.arguments["size"]
            message = f"a square of {size} pixels covers whole images, whose side is {side}"
            help = f"use a quarter to half of a side: `cutout({max(1, side // 2)})`"
            yield Finding(message, chosen.span, help)


def find_unmatched_glob(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    names = [n.name for n in subject.network.parameters]
    chosen = subject.recipe.optimizer
    for glob in chosen.arguments["no_decay"]:
        if not any(matches_glob(name, glob) for name in names):
            yield Finding(
                f'no weight matches "{glob}" of `no_decay`',
                chosen.span,
                suggest_globs(glob, names),
            )


def find_squashed_scores(subject: Subject) -> Iterator[Finding]:
    loss = subject.recipe.loss if subject.recipe else None
    if loss is None or loss.probabilities is None:
        return
    needing = next(c.name for c, _ in loss.terms if c.record.probabilities is not None)
    graph = subject.network.graph
    for name in graph.outputs.values():
        node = skip_ops(graph, graph[name], PASSING_OPS)
        if "activation" in OPS[node.op].traits:
            message = f"the scores pass through `{node.op}`, but `{needing}` needs unbounded scores"
            yield Finding(
                message, node.span, f"remove `{node.op}`; a net must end with plain scores"
            )


def find_dying_scores(subject: Subject) -> Iterator[Finding]:
    """Finds a new head behind trained features whose scores `relu` clips before they are pooled, as
    in NIN and SqueezeNet. From scratch that works."""
    init = subject.recipe.init if subject.recipe else None
    if init is None:
        return
    network, graph = subject.network, subject.network.graph
    for name in graph.outputs.values():
        pooling = skip_ops(graph, graph[name], PASSING_OPS)
        node = skip_ops(graph, pooling, (*PASSING_OPS, *POOLING_OPS))
        if node.op != "relu" or node is pooling:  # `squashed-scores` is about the latter
            continue
        layer = find_score_layer(network, graph[node.args[0]])
        if layer and matches_any_glob(weight_name(layer), init.arguments["except"]):
            scores = f"{layer.call} -> globalavgpool"
            span, help = node.span, f"end the new head with plain scores: `{scores}`"
            line = _find_line_of_block(subject, layer)
            if line is not None:
                label = f"{line.label}: " if line.label else "... -> "
                span = line.span
                help = f"write the scores here, without the block's `relu`: `{label}{scores}`"
            yield Finding(
                f"`relu` clips the scores of the new layer `{layer.path}` before they are pooled: "
                "a class whose scores are all negative no longer learns",
                span,
                help,
            )


def _find_line_of_block(subject: Subject, layer: LayerInfo) -> s.Chain | None:
    """The line of the net that a layer of a block belongs to; None for a layer that is written in
    the net itself."""
    net = find_written_net(subject.program.net_table, subject.network.name)
    if net is None or _is_within(layer.span, net.span):
        return None
    label = layer.path.partition(".")[0]
    lines = [x for x in s.walk(net) if isinstance(x, s.Chain)]
    own = [x for x in lines if x.label == label]
    last = max(lines, key=lambda x: x.span.end, default=None)
    return own[0] if own else last


def _is_within(inner: Span, outer: Span) -> bool:
    return inner.source is outer.source and outer.start <= inner.start and inner.end <= outer.end


def find_large_accuracy(subject: Subject) -> Iterator[Finding]:
    for e in s.walk(*(subject.recipe.expectations if subject.recipe else ())):
        if not isinstance(e, s.NaryExpr) or e.rest[0][0] in "+-*//%":
            continue
        if not any(map(_is_share, (e.first, e.rest[0][1]))):
            continue
        for side in (e.first, e.rest[0][1]):
            if isinstance(side, s.NumberLiteral) and side.value > 1:
                message = f"a share, which is at most 1, is compared with {side.text}"
                yield Finding(
                    message, e.span, f"write a fraction: {format_value(side.value / 100)}"
                )


def _is_share(e: s.Expression) -> bool:
    """Whether an expression is a metric that is at most 1, such as an accuracy."""
    known = METRIC_NAMES.get(e.name) if isinstance(e, s.Name | s.CallExpr) else None
    return known is not None and known.metric.is_share


def find_reversed_best(subject: Subject) -> Iterator[Finding]:
    best = subject.recipe.best if subject.recipe else None
    if best is not None and best.is_reversed:
        message = f"`{best}` keeps the weights with the worst `{best.metric.plain}`"
        help = f"write `{choose_direction(best.metric.metric)}({best.metric})`"
        yield Finding(message, best.span, help)
