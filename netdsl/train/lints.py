"""The table of lints: what a file may say, but is unlikely to mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from netdsl.errors import Diagnostic, Span, nearest
from netdsl.globs import candidates, matches
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.draft import channels_first
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.layers import LAYERS
from netdsl.train.fit import taken
from netdsl.train.recipe import Recipe, resolve, stages
from netdsl.values import show


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
class Warned:
    """What a lint says of a place: a sentence, and what to do."""

    message: str
    span: Span | None
    help: str


@dataclass(frozen=True)
class Lint:
    """A lint by its name. `doc` is a line of the reference; of the two files that stand for
    examples `wrong` is warned of, and `right` is not."""

    name: str
    doc: str
    find: Callable[[Subject], Iterable[Warned]]
    wrong: str
    right: str


def warnings(subjects: Iterable[Subject]) -> list[Diagnostic]:
    """What all lints say of some nets and recipes, each thing once, but where it is allowed."""
    found = (
        Diagnostic(w.message, w.span, w.help, lint=lint.name)
        for subject in subjects
        for lint in LINTS.values()
        for w in lint.find(subject)
        if not _is_allowed(lint.name, w.span)
    )
    return list(dict.fromkeys(found))


def of_recipe(program: Program, name: str | None) -> list[Diagnostic]:
    """What lints say of a recipe, of those that it comes after, and of their nets."""
    budget = Budget()
    recipes = [resolve(program, stage, budget) for stage in stages(program, name)]
    nets = (elaborate(program, r.net, r.settings(training=True), budget) for r in recipes)
    return warnings(Subject(program, net, r) for net, r in zip(nets, recipes, strict=True))


_ALLOWED = re.compile(r"#[^\n]*?\ballow:\s*(\w[\w\-, ]*)")


def _is_allowed(name: str, span: Span | None) -> bool:
    """Whether `# allow: NAME` stands on the line of a place, or on the one above."""
    if span is None:
        return False
    number, _ = span.position
    lines = (span.source.line(n) for n in (number, number - 1) if n > 0)
    found = (m for line in lines if (m := _ALLOWED.search(line)))
    return any(name in re.split(r"[, ]+", m[1]) for m in found)


# ---- lints of a net ---------------------------------------------------------------------------


def _hidden_layer(subject: Subject) -> Iterator[Warned]:
    for name, block in subject.program.blocks.items():
        if name in LAYERS:
            message = f"your block `{name}` hides the layer of that name"
            yield Warned(message, block.span, f"choose another name, such as `my_{name}`")


def _channels_first(subject: Subject) -> Iterator[Warned]:
    for node in subject.network.graph.inputs:
        doubt = channels_first(node.type.shape[1:])
        if doubt:
            yield Warned(doubt, node.span, "shapes are height x width x channels")


_LARGEST_KERNEL = 11
"""The largest kernel of a published net, AlexNet's."""
_LONGEST_STRIDE = 2


def _pytorch_order(subject: Subject) -> Iterator[Warned]:
    for layer in subject.network.layers:
        if layer.op in ("conv", "convtranspose", "local") and layer.placed > 1:
            given = layer.arguments
            kernel, stride = max(given["kernel"]), max(given["stride"])
            far = kernel > _LARGEST_KERNEL or (layer.placed > 2 and stride > _LONGEST_STRIDE)
            if given["channels"] == layer.inputs[0].shape[-1] and far:
                meant = f"{kernel}, {stride}" if layer.placed > 2 else f"{kernel}, 3x3"
                yield Warned(
                    f"`{layer.call}` has {given['channels']} channels, as many as flow in, and a "
                    f"kernel of {kernel} with stride {stride}",
                    layer.span,
                    f"channels that flow in are never given: is it `{layer.op}({meant})`?",
                )


def _unread(subject: Subject) -> Iterator[Warned]:
    """What a test asks about is read by it."""
    network = subject.network
    asked = {network.places[x] for x in _texts(subject.program) if x in network.places}
    needed = network.graph.cone(*network.graph.outputs.values(), *asked)
    read = {a for n in network.graph.nodes.values() for a in n.args}
    for layer in network.layers:
        if layer.result not in needed and layer.result not in read:
            message = f"nothing reads what `{layer.path}` gives"
            help = "begin a chain with its label, make it an `output`, or remove it"
            yield Warned(message, layer.span, help)


def _texts(program: Program) -> Iterator[str]:
    """The texts in a file's tests, places among them."""
    stack: list[s.Expr] = [e for test in program.tests for e in test.expectations]
    while stack:
        match stack.pop():
            case s.Text(value=value):
                yield value
            case s.CallExpr(args=args):
                stack += [a.value for a in args]
            case s.Flat(first=first, rest=rest):
                stack += [first, *(e for _, e in rest)]
            case s.Unary(operand=operand):
                stack.append(operand)


# ---- lints of a recipe ------------------------------------------------------------------------


def _large_mean(subject: Subject) -> Iterator[Warned]:
    chosen = subject.recipe.data.normalize if subject.recipe else None
    if chosen is None or not chosen.arguments:
        return
    for key in ("mean", "std"):
        large = [x for x in chosen.arguments[key] if x > 1]
        if large:
            message = f"`{key}` has {show(large[0])}, but pixels are scaled to 0..1 first"
            divided = ", ".join(f"{x / 255:.3g}" for x in chosen.arguments[key])
            yield Warned(message, chosen.span, f"divided by 255: `{key}=[{divided}]`")


def _late_step(subject: Subject) -> Iterator[Warned]:
    if subject.recipe is None:
        return
    schedule, epochs = subject.recipe.schedule, subject.recipe.epochs
    late = [x for x in schedule.arguments.get("at", ()) if x >= epochs]
    if late:
        message = f"the rate would change after {show(late[0])} epochs, the run has {epochs}"
        yield Warned(message, schedule.span, "a step lies before the last epoch, or is left out")


def _long_warmup(subject: Subject) -> Iterator[Warned]:
    if subject.recipe is None:
        return
    schedule, epochs = subject.recipe.schedule, subject.recipe.epochs
    warmup = schedule.arguments.get("warmup", 0.0)
    if warmup >= epochs:
        message = f"the rate rises for {show(warmup)} epochs, the run has {epochs}"
        yield Warned(message, schedule.span, "`warmup` is a few epochs at the beginning")


def _large_cutout(subject: Subject) -> Iterator[Warned]:
    if subject.recipe is None:
        return
    data = subject.recipe.data
    sizes = (taken(subject.network), data.source.record.image or ())
    side = max(min(size[:2], default=0) for size in sizes)
    for chosen in data.augment:
        if chosen.name == "cutout" and chosen.arguments["size"] >= side:
            size = chosen.arguments["size"]
            message = f"a square of {size} pixels covers the images, which have {side}"
            help = f"a quarter to a half of a side: `cutout({max(1, side // 2)})`"
            yield Warned(message, chosen.span, help)


def _unmatched_glob(subject: Subject) -> Iterator[Warned]:
    if subject.recipe is None:
        return
    names = [n.name for n in subject.network.parameters]
    chosen = subject.recipe.optimizer
    for glob in chosen.arguments["no_decay"]:
        if not any(matches(name, glob) for name in names):
            help = nearest(glob, candidates(names), "globs that match")
            yield Warned(
                f'no weight is called "{glob}", which `no_decay` names',
                chosen.span,
                help or "`netdsl train --dry-run` prints what each glob matches",
            )


_SQUASHING = ("relu", "sigmoid", "tanh", "clamp", "leaky_relu", "elu", "gelu")


def _squashed_scores(subject: Subject) -> Iterator[Warned]:
    if subject.recipe is None or not any(c.record.logits for c, _ in subject.recipe.loss.terms):
        return
    graph = subject.network.graph
    for name in graph.outputs.values():
        node = graph[name]
        while node.op in ("reshape", "cast"):
            node = graph[node.args[0]]
        if node.op in _SQUASHING:
            message = f"the scores end in `{node.op}`: `cross_entropy` wants numbers of any size"
            yield Warned(message, node.span, f"remove `{node.op}`; a net ends in plain scores")


# ---- the table --------------------------------------------------------------------------------

_DATA = "data { source = digits }\n"


def _net(body: str) -> str:
    return f"net a {{ input(8x8x1); {body} }}\n"


def _trained(recipe: str, body: str = "fc(10)", data: str = _DATA) -> str:
    return f"{_net(body)}{data}train {{ {recipe} }}\n"


LINTS: dict[str, Lint] = {
    x.name: x
    for x in (
        Lint(
            "hidden-layer",
            "a block that is used has the name of a layer",
            _hidden_layer,
            "block relu { tanh }\n" + _net("relu"),
            "block my_relu { tanh }\n" + _net("my_relu"),
        ),
        Lint(
            "channels-first",
            "an input looks like channels x height x width",
            _channels_first,
            "net a { input(3x32x32); fc(10) }\n",
            "net a { input(32x32x3); fc(10) }\n",
        ),
        Lint(
            "pytorch-order",
            "the arguments of a convolution begin with the channels that flow in",
            _pytorch_order,
            "net a { input(96x96x3); conv(3, 64, 3) }\n",
            "net a { input(96x96x3); conv(64, 3); conv(64, 3, 2) }\n",
        ),
        Lint(
            "unread",
            "nothing reads what a layer gives",
            _unread,
            _net("x: relu; y: fc(3); x -> fc(10)"),
            _net("x: relu; output y: fc(3); x -> fc(10)"),
        ),
        Lint(
            "large-mean",
            "`normalize` has a mean or deviation above 1, but pixels are scaled to 0..1 first",
            _large_mean,
            _trained("epochs = 2", data=_DATA.replace(" }", ", normalize = by([123.7], [0.3]) }")),
            _trained("epochs = 2", data=_DATA.replace(" }", ", normalize = by([0.485], [0.3]) }")),
        ),
        Lint(
            "late-step",
            "a schedule changes the rate when the run is over",
            _late_step,
            _trained("schedule = step(at=[10, 30]), epochs = 30"),
            _trained("schedule = step(at=[10, 20]), epochs = 30"),
        ),
        Lint(
            "long-warmup",
            "the rate rises for as long as the run, or longer",
            _long_warmup,
            _trained("schedule = cosine(warmup=5), epochs = 5"),
            _trained("schedule = cosine(warmup=1), epochs = 5"),
        ),
        Lint(
            "large-cutout",
            "`cutout` covers whole images",
            _large_cutout,
            _trained("epochs = 2", data=_DATA.replace(" }", ", augment = [hflip, cutout(100)] }")),
            _trained("epochs = 2", data=_DATA.replace(" }", ", augment = [hflip, cutout(4)] }")),
        ),
        Lint(
            "unmatched-glob",
            "a glob of `no_decay` matches no weight",
            _unmatched_glob,
            _trained('optimizer = sgd(no_decay=["*.batchnorm*.*"])', "batchnorm -> fc(10)"),
            _trained('optimizer = sgd(no_decay=["*batchnorm*.*"])', "batchnorm -> fc(10)"),
        ),
        Lint(
            "squashed-scores",
            "the scores go through an activation before `cross_entropy`",
            _squashed_scores,
            _trained("epochs = 2", "fc(10) -> relu"),
            _trained("epochs = 2", "fc(16) -> relu -> fc(10)"),
        ),
    )
}
