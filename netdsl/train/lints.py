"""The table of lints: what a file may say but probably does not mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from netdsl.errors import Diagnostic, Source, Span, nearest
from netdsl.globs import candidates, matches
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.draft import channels_first
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.layers import LAYERS
from netdsl.limits import MOST_ERRORS
from netdsl.train.fit import image_shape
from netdsl.train.recipe import Recipe, resolve_recipe, stage_names
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
class Review:
    """All that lints look at at once; `is_whole` where that is a file as it stands, with all of
    its nets and recipes."""

    program: Program
    subjects: tuple[Subject, ...]
    is_whole: bool = False


@dataclass(frozen=True)
class Finding:
    """A warning of a lint: its message, its place, and what to do."""

    message: str
    span: Span | None
    help: str


@dataclass(frozen=True)
class Lint:
    """A lint by its name. `doc` is a line of the reference; of the two files that stand for
    examples `wrong` is warned of, and `right` is not."""

    name: str
    doc: str
    find: Callable[[Review], Iterable[Finding]]
    wrong: str
    right: str


def warnings(review: Review) -> list[Diagnostic]:
    """What all lints say, each thing once, but where it is allowed; the first of too many."""
    found: dict[Diagnostic, None] = {}
    for lint in LINTS.values():
        for w in lint.find(review):
            if not _is_allowed(lint.name, w.span):
                found[Diagnostic(w.message, w.span, w.help, lint=lint.name)] = None
            if len(found) == MOST_ERRORS:
                return list(found)
    return list(found)


def recipe_warnings(program: Program, name: str | None) -> list[Diagnostic]:
    """What lints say of a recipe, of those that it comes after, and of their nets."""
    budget = Budget()
    recipes = [resolve_recipe(program, stage, budget) for stage in stage_names(program, name)]
    nets = (elaborate(program, r.net, r.settings(training=True), budget) for r in recipes)
    subjects = (Subject(program, net, r) for net, r in zip(nets, recipes, strict=True))
    return warnings(Review(program, tuple(subjects)))


def _per_subject(
    find: Callable[[Subject], Iterable[Finding]],
) -> Callable[[Review], Iterable[Finding]]:
    """What a lint says of every net and recipe."""
    return lambda review: chain.from_iterable(map(find, review.subjects))


# ---- what is allowed --------------------------------------------------------------------------

_ALLOW = re.compile(r"#(?P<before>[^\n]*?)\ballow:\s*(?P<names>\w[\w\-, ]*)")
_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|(#[^\n]*)')


@dataclass(frozen=True)
class _Allowance:
    """A name after `allow:` in a comment; it holds on the line of the comment and the next."""

    name: str
    span: Span

    @property
    def line(self) -> int:
        return self.span.position[0]

    @property
    def meant(self) -> int:
        """The line that it is meant for: that of the code before it, else the next."""
        return self.line if _code(self.span.source.line(self.line)) else self.line + 1


def _code(line: str) -> str:
    """What a line has beside brackets and comments."""
    return line.partition("#")[0].strip(" \t{}();|")


def _is_allowed(name: str, span: Span | None) -> tuple[int, ...]:
    """The lines of the comments that allow a lint at a place: its own, the one above, or none."""
    if span is None:
        return ()
    number, _ = span.position
    return tuple(n for n in (number, number - 1) if n > 0 and name in _names(span.source.line(n)))


def _names(line: str) -> list[str]:
    return [name for m in _ALLOW.finditer(line) for name in re.split(r"[, ]+", m["names"])]


def _allowances(source: Source) -> Iterator[_Allowance]:
    """The names that comments are meant to allow: of a sentence that has `allow:` in it none, of
    one that goes on after a name the name."""
    for comment in _COMMENT.finditer(source.text):
        for m in _ALLOW.finditer(comment[1] or ""):
            if m["before"].rstrip()[-1:].isalnum():
                continue
            listed = m["names"].split(",")
            for i, (name, *_) in enumerate(words for x in listed if (words := x.split())):
                if i == 0 or "-" in name or name in LINTS:
                    yield _Allowance(name, Span(source, *comment.span(1)))


def _unknown_lint(review: Review) -> Iterator[Finding]:
    blocks = review.program.blocks.values()
    for source in {x.span.source: None for x in (*review.program.items, *blocks)}:
        for a in _allowances(source):
            if a.name not in LINTS:
                message = f"there is no lint `{a.name}` to allow"
                yield Finding(message, a.span, nearest(a.name, LINTS, "lints are") or "remove it")


def _unused_allow(review: Review) -> Iterator[Finding]:
    """Only of a whole file: what another recipe, net or file needs is not known."""
    items = review.program.items
    if not review.is_whole or not items:
        return
    source = items[0].span.source
    written = [a for a in _allowances(source) if a.name in LINTS and a.name not in _COMMENT_LINTS]
    if not written:
        return
    used = {
        (name, line)
        for name, lint in LINTS.items()
        if name not in _COMMENT_LINTS
        for w in lint.find(review)
        if w.span and w.span.source is source
        for line in _is_allowed(name, w.span)
    }
    unseen = _unseen_lines(review, source)
    for a in written:
        if (a.name, a.line) not in used and a.meant not in unseen:
            message = f"`allow: {a.name}` has nothing to allow here"
            help = "it holds on its own line and on the next: move it there, or remove it"
            yield Finding(message, a.span, help)


def _unseen_lines(review: Review, source: Source) -> set[int]:
    """Lines of blocks and nets that have code, but no layer of what is looked at."""
    spans = (layer.span for x in review.subjects for layer in x.network.layers)
    seen = {span.position[0] for span in spans if span.source is source}
    inside: set[int] = set()
    for item in review.program.items:
        if isinstance(item, s.Block | s.Net):
            first, last = (source.position(at)[0] for at in (item.span.start, item.span.end))
            inside.update(range(first, last + 1))
    return {n for n in inside - seen if _code(source.line(n))}


# ---- lints of a net ---------------------------------------------------------------------------


def _hidden_layer(review: Review) -> Iterator[Finding]:
    for name, block in review.program.blocks.items():
        if name in LAYERS:
            message = f"your block `{name}` hides the layer of that name"
            yield Finding(message, block.span, f"choose another name, such as `my_{name}`")


def _channels_first(subject: Subject) -> Iterator[Finding]:
    for node in subject.network.graph.inputs:
        doubt = channels_first(node.type.shape[1:])
        if doubt:
            yield Finding(doubt, node.span, "shapes are height x width x channels")


_MAX_KERNEL = 11
"""The largest kernel of a published net that keeps its channels and is no depthwise one."""
_MAX_EVEN_KERNEL = 4
_MAX_STRIDE = 2


def _pytorch_order(subject: Subject) -> Iterator[Finding]:
    """What was written as `31x31`, or is a depthwise convolution, is meant to be a kernel."""
    for layer in subject.network.layers:
        given = layer.arguments
        if layer.op not in ("conv", "convtranspose", "local") or layer.placed < 2:
            continue
        kernel, stride = max(given["kernel"]), max(given["stride"])
        if layer.placed == 2:
            doubtful = kernel > _MAX_KERNEL and given.get("groups", 1) == 1
        else:
            even = kernel > _MAX_EVEN_KERNEL and kernel % 2 == 0
            doubtful = even or kernel > _MAX_KERNEL or stride > _MAX_STRIDE
        if doubtful and given["channels"] == layer.inputs[0].shape[-1]:
            meant = f"{kernel}, {stride}" if layer.placed > 2 else f"{kernel}, 3x3"
            yield Finding(
                f"`{layer.call}` has {given['channels']} channels, as many as flow in, and a "
                f"kernel of {kernel} with stride {stride}",
                layer.span,
                f"channels that flow in are never given: is it `{layer.op}({meant})`?",
            )


def _unread(subject: Subject) -> Iterator[Finding]:
    """What a test asks about is read by it."""
    network = subject.network
    asked = {network.places[x] for x in _texts(subject.program) if x in network.places}
    needed = network.graph.cone(*network.graph.outputs.values(), *asked)
    read = {a for n in network.graph.nodes.values() for a in n.args}
    for layer in network.layers:
        if layer.result not in needed and layer.result not in read:
            message = f"nothing reads what `{layer.path}` gives"
            help = "begin a chain with its label, make it an `output`, or remove it"
            yield Finding(message, layer.span, help)


def _texts(program: Program) -> Iterator[str]:
    """The texts in a file's tests, places among them."""
    expressions = _within(e for test in program.tests for e in test.expectations)
    return (e.value for e in expressions if isinstance(e, s.Text))


def _within(expressions: Iterable[s.Expr]) -> Iterator[s.Expr]:
    """Conditions, and all that they compare and call."""
    stack = list(expressions)
    while stack:
        e = stack.pop()
        yield e
        match e:
            case s.CallExpr(args=args):
                stack += [a.value for a in args]
            case s.Flat(first=first, rest=rest):
                stack += [first, *(operand for _, operand in rest)]
            case s.Unary(operand=operand):
                stack.append(operand)


# ---- lints of a recipe ------------------------------------------------------------------------


def _large_mean(subject: Subject) -> Iterator[Finding]:
    chosen = subject.recipe.data.normalize if subject.recipe else None
    if chosen is None or not chosen.arguments:
        return
    for key in ("mean", "std"):
        large = [x for x in chosen.arguments[key] if abs(x) > 1]
        if large:
            message = f"`{key}` has {show(large[0])}, but pixels are scaled to 0..1 first"
            divided = ", ".join(f"{x / 255:.3g}" for x in chosen.arguments[key])
            yield Finding(message, chosen.span, f"divided by 255: `{key}=[{divided}]`")


def _late_step(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    schedule, epochs = subject.recipe.schedule, subject.recipe.epochs
    late = [x for x in schedule.arguments.get("at", ()) if x >= epochs]
    if late:
        message = f"the rate would change after {show(late[0])} epochs, the run has {epochs}"
        yield Finding(message, schedule.span, "set every step below `epochs`, or remove it")
    # one epoch to compare with, more than `patience` that are no better, one with the new rate
    if schedule.name == "plateau" and epochs < schedule.arguments["patience"] + 3:
        waits = schedule.arguments["patience"]
        message = f"`plateau` waits for more than {waits} epochs, the run has {epochs}"
        help = f"set a smaller `patience`, or at least {waits + 3} epochs"
        yield Finding(message, schedule.span, help)


def _early_step(subject: Subject) -> Iterator[Finding]:
    schedule = subject.recipe.schedule if subject.recipe else None
    if schedule is not None and 0 in schedule.arguments.get("at", ()):
        message = "the rate is changed before the first epoch"
        yield Finding(message, schedule.span, "`at` counts the epochs that are over: begin with 1")


def _long_warmup(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    schedule, epochs = subject.recipe.schedule, subject.recipe.epochs
    warmup = schedule.arguments.get("warmup", 0.0)
    if warmup >= epochs:
        message = f"the warm-up takes {show(warmup)} epochs, the run has {epochs}"
        yield Finding(message, schedule.span, "set `warmup` to the first few epochs of the run")


def _large_cutout(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    data = subject.recipe.data
    sizes = (image_shape(subject.network), data.source.record.image or ())
    side = max(min(size[:2], default=0) for size in sizes)
    for chosen in data.augment:
        if chosen.name == "cutout" and chosen.arguments["size"] >= side:
            size = chosen.arguments["size"]
            message = f"a square of {size} pixels covers whole images, whose side is {side}"
            help = f"a quarter to a half of a side: `cutout({max(1, side // 2)})`"
            yield Finding(message, chosen.span, help)


def _unmatched_glob(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None:
        return
    names = [n.name for n in subject.network.parameters]
    chosen = subject.recipe.optimizer
    for glob in chosen.arguments["no_decay"]:
        if not any(matches(name, glob) for name in names):
            help = nearest(glob, candidates(names), "globs that match")
            yield Finding(
                f'no weight is called "{glob}", which `no_decay` names',
                chosen.span,
                help or "`netdsl train --dry-run` prints what each glob matches",
            )


_SQUASHING = ("relu", "sigmoid", "tanh", "clamp", "leaky_relu", "elu", "gelu")


def _squashed_scores(subject: Subject) -> Iterator[Finding]:
    if subject.recipe is None or not any(c.record.logits for c, _ in subject.recipe.loss.terms):
        return
    graph = subject.network.graph
    for name in graph.outputs.values():
        node = graph[name]
        while node.op in ("reshape", "cast", "dropout"):
            node = graph[node.args[0]]
        if node.op in _SQUASHING:
            message = f"the scores pass through `{node.op}`; `cross_entropy` needs them unbounded"
            yield Finding(message, node.span, f"remove `{node.op}`; a net ends in plain scores")


def _large_accuracy(subject: Subject) -> Iterator[Finding]:
    for e in _within(subject.recipe.expectations if subject.recipe else ()):
        if not isinstance(e, s.Flat) or not any(map(_is_accuracy, (e.first, e.rest[0][1]))):
            continue
        for side in (e.first, e.rest[0][1]):
            if isinstance(side, s.Number) and side.value > 1:
                message = f"an accuracy is compared with {side.text}, but is at most 1"
                yield Finding(
                    message, e.span, f"accuracies are fractions: {show(side.value / 100)}"
                )


def _is_accuracy(e: s.Expr) -> bool:
    return isinstance(e, s.Name) and e.name.endswith("_accuracy")


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
            _per_subject(_channels_first),
            "net a { input(3x32x32); fc(10) }\n",
            "net a { input(32x32x3); fc(10) }\n",
        ),
        Lint(
            "pytorch-order",
            "the arguments of a convolution begin with the channels that flow in",
            _per_subject(_pytorch_order),
            "net a { input(96x96x3); conv(3, 64, 3) }\n",
            "net a { input(96x96x3); conv(64, 3); conv(64, 3, 2) }\n",
        ),
        Lint(
            "unread",
            "nothing reads what a layer gives",
            _per_subject(_unread),
            _net("x: relu; y: fc(3); x -> fc(10)"),
            _net("x: relu; output y: fc(3); x -> fc(10)"),
        ),
        Lint(
            "large-mean",
            "`normalize` has a mean or deviation above 1, but pixels are scaled to 0..1 first",
            _per_subject(_large_mean),
            _trained("epochs = 2", data=_DATA.replace(" }", ", normalize = by([123.7], [0.3]) }")),
            _trained("epochs = 2", data=_DATA.replace(" }", ", normalize = by([0.485], [0.3]) }")),
        ),
        Lint(
            "late-step",
            "a schedule changes the rate when the run is over",
            _per_subject(_late_step),
            _trained("schedule = step(at=[10, 30]), epochs = 30"),
            _trained("schedule = step(at=[10, 20]), epochs = 30"),
        ),
        Lint(
            "early-step",
            "a schedule changes the rate before the first epoch",
            _per_subject(_early_step),
            _trained("schedule = step(at=[0, 10]), epochs = 30"),
            _trained("schedule = step(at=[1, 10]), epochs = 30"),
        ),
        Lint(
            "long-warmup",
            "the rate rises for as long as the run, or longer",
            _per_subject(_long_warmup),
            _trained("schedule = cosine(warmup=5), epochs = 5"),
            _trained("schedule = cosine(warmup=1), epochs = 5"),
        ),
        Lint(
            "large-cutout",
            "`cutout` covers whole images",
            _per_subject(_large_cutout),
            _trained("epochs = 2", data=_DATA.replace(" }", ", augment = [hflip, cutout(100)] }")),
            _trained("epochs = 2", data=_DATA.replace(" }", ", augment = [hflip, cutout(4)] }")),
        ),
        Lint(
            "unmatched-glob",
            "a glob of `no_decay` matches no weight",
            _per_subject(_unmatched_glob),
            _trained('optimizer = sgd(no_decay=["*.batchnorm*.*"])', "batchnorm -> fc(10)"),
            _trained('optimizer = sgd(no_decay=["*batchnorm*.*"])', "batchnorm -> fc(10)"),
        ),
        Lint(
            "squashed-scores",
            "the scores go through an activation before `cross_entropy`",
            _per_subject(_squashed_scores),
            _trained("epochs = 2", "fc(10) -> relu"),
            _trained("epochs = 2", "fc(16) -> relu -> fc(10)"),
        ),
        Lint(
            "large-accuracy",
            "an expectation compares an accuracy, which is 1 at most, with a larger number",
            _per_subject(_large_accuracy),
            _trained("expect test_accuracy >= 97"),
            _trained("expect test_accuracy >= 0.97"),
        ),
        Lint(
            "unknown-lint",
            "a comment allows what is no lint",
            _unknown_lint,
            _net("fc(10)  # allow: unraed\n"),
            _net("fc(10)  # these allow: nothing\n"),
        ),
        Lint(
            "unused-allow",
            "a comment allows what no lint finds, in a file that is checked as a whole",
            _unused_allow,
            _net("x: fc(3)  # allow: unread\n"),
            _net("x: fc(3)  # allow: unread\n input(8x8x1)"),
        ),
    )
}
_COMMENT_LINTS = ("unknown-lint", "unused-allow")
