"""The table of lints: what a file may say but probably does not mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from netdsl.errors import Diagnostic, Source, Span, suggest_name
from netdsl.language import syntax as s
from netdsl.language.budget import Budget
from netdsl.language.elaborate import elaborate
from netdsl.language.program import Program
from netdsl.limits import MAX_ERRORS
from netdsl.training.recipe.lint import Finding, Lint, Review, Subject
from netdsl.training.recipe.lint_rules import (
    find_channel_fans,
    find_channels_first,
    find_depthwise_channels,
    find_dying_scores,
    find_early_step,
    find_enlarging_pool,
    find_hidden_function,
    find_hidden_layer,
    find_large_accuracy,
    find_large_cutout,
    find_large_mean,
    find_large_upsample,
    find_late_step,
    find_long_warmup,
    find_main_path,
    find_numeric_bias,
    find_pytorch_order,
    find_reversed_best,
    find_squashed_scores,
    find_unmatched_glob,
    find_unread,
)
from netdsl.training.recipe.lint_value_rules import (
    find_dropped_scores,
    find_extreme_rate,
    find_idle_pool,
    find_large_momentum,
    find_long_interval,
    find_long_patience,
    find_part_as_data,
    find_product_for_size,
    find_repeated_activation,
    find_rising_step,
    find_single_branch,
    find_small_ema,
    find_small_validation,
    find_source_as_name,
    find_sudden_rate,
)
from netdsl.training.recipe.recipe import resolve_recipe, stage_names
from netdsl.training.recipe.word_rules import find_unknown_word


def warnings(review: Review) -> list[Diagnostic]:
    """Returns the findings of all lints, without duplicates and without allowed ones; at most
    MAX_ERRORS."""
    found: dict[Diagnostic, None] = {}
    for lint in LINTS.values():
        for w in lint.find(review):
            if not _is_allowed(lint.name, w.span):
                found[Diagnostic(w.message, w.span, w.help, lint=lint.name)] = None
            if len(found) == MAX_ERRORS:
                return list(found)
    return list(found)


def recipe_warnings(program: Program, name: str | None) -> list[Diagnostic]:
    """Returns the lint warnings for a recipe, the recipes it comes after, and their nets."""
    budget = Budget()
    recipes = [resolve_recipe(program, stage, budget) for stage in stage_names(program, name)]
    nets = (elaborate(program, r.net, r.settings(training=True), budget) for r in recipes)
    subjects = (Subject(program, net, r) for net, r in zip(nets, recipes, strict=True))
    return warnings(Review(program, tuple(subjects)))


def _per_subject(
    find: Callable[[Subject], Iterable[Finding]],
) -> Callable[[Review], Iterable[Finding]]:
    """Turns a rule for one subject into one for all subjects of a review."""
    return lambda review: chain.from_iterable(map(find, review.subjects))


# ---- `allow:` comments ------------------------------------------------------------------------

_ALLOW = re.compile(r"\ballow:\s*(?P<names>\w[\w\-, ]*)")
_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|(#[^\n]*)')


@dataclass(frozen=True)
class _Allowance:
    """A name after `allow:` in a comment. It applies to the comment's line and the next."""

    name: str
    span: Span

    @property
    def line(self) -> int:
        return self.span.position[0]

    @property
    def meant(self) -> int:
        """The line it is meant for: its own if there is code before it, else the next."""
        return self.line if _code(self.span.source.line(self.line)) else self.line + 1


def _code(line: str) -> str:
    """The code of a line without brackets and comments."""
    return line.partition("#")[0].strip(" \t{}();|")


def _is_allowed(name: str, span: Span | None) -> tuple[int, ...]:
    """The lines of the comments that allow a lint at a span: its own line and the one above, if
    any."""
    if span is None:
        return ()
    number, _ = span.position
    return tuple(n for n in (number, number - 1) if n > 0 and name in _names(span.source.line(n)))


def _names(line: str) -> list[str]:
    return [name for _, names in _find_lists(line) for name in re.split(r"[, ]+", names)]


def _find_lists(text: str) -> Iterator[tuple[str, str]]:
    """What stands between a `#` and `allow:` on a line, and the names that follow. The text may
    consist of nothing but these signs: each is looked at once."""
    mark = text.find("#")
    for m in _ALLOW.finditer(text):
        if 0 <= mark < m.start():
            yield text[mark + 1 : m.start()], m["names"]
            mark = text.find("#", m.end())


def _allowances(source: Source) -> Iterator[_Allowance]:
    """The names that `allow:` comments intend to allow. An `allow:` inside a sentence counts for
    nothing; if a sentence follows a name, only the name counts."""
    for comment in _COMMENT.finditer(source.text):
        for before, names in _find_lists(comment[1] or ""):
            if before.rstrip()[-1:].isalnum():
                continue
            listed = names.split(",")
            for i, (name, *_) in enumerate(words for x in listed if (words := x.split())):
                if i == 0 or "-" in name or name in LINTS:
                    yield _Allowance(name, Span(source, *comment.span(1)))


def _unknown_lint(review: Review) -> Iterator[Finding]:
    blocks = review.program.blocks.values()
    for source in {x.span.source: None for x in (*review.program.items, *blocks)}:
        for a in _allowances(source):
            if a.name not in LINTS:
                message = f"there is no lint called `{a.name}`"
                yield Finding(
                    message, a.span, suggest_name(a.name, LINTS, "lints are") or "remove it"
                )


def _unused_allow(review: Review) -> Iterator[Finding]:
    """Checks whole files only: it is unknown what another recipe, net or file needs."""
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
            help = "it applies to its own line and the next: move it there, or remove it"
            yield Finding(message, a.span, help)


def _unseen_lines(review: Review, source: Source) -> set[int]:
    """Lines of blocks and nets that contain code but no layer of the reviewed networks."""
    spans = (layer.span for x in review.subjects for layer in x.network.layers)
    seen = {span.position[0] for span in spans if span.source is source}
    inside: set[int] = set()
    for item in review.program.items:
        if isinstance(item, s.Block | s.Net):
            first, last = (source.position(at)[0] for at in (item.span.start, item.span.end))
            inside.update(range(first, last + 1))
    return {n for n in inside - seen if _code(source.line(n))}


# ---- the table --------------------------------------------------------------------------------

_DATA = "data { source = digits }\n"
_WARM = 'init = weights("old.safetensors", except="conv1.*")'
_GATE = "block gate(act=relu) { if act == relu { relu } else { silu } }\n"


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
            find_hidden_layer,
            "block relu { tanh }\n" + _net("relu"),
            "block my_relu { tanh }\n" + _net("my_relu"),
        ),
        Lint(
            "hidden-function",
            "a function has the name of a built-in function",
            find_hidden_function,
            "let max(a, b) = a if a > b else b\n" + _net("fc(max(2, 3))"),
            "let larger(a, b) = a if a > b else b\n" + _net("fc(larger(2, 3))"),
        ),
        Lint(
            "unknown-word",
            "a block is passed a word that it never compares with",
            find_unknown_word,
            _GATE + _net("gate(sillu)"),
            _GATE + _net("gate(silu) -> gate(relu) -> gate"),
        ),
        Lint(
            "channels-first",
            "an input looks like channels x height x width",
            _per_subject(find_channels_first),
            "net a { input(3x32x32); fc(10) }\n",
            "net a { input(32x32x3); fc(10) }\n",
        ),
        Lint(
            "pytorch-order",
            "the arguments of a convolution begin with its input channels",
            _per_subject(find_pytorch_order),
            "net a { input(96x96x3); conv(3, 64, 3) }\n",
            "net a { input(96x96x3); conv(64, 3); conv(64, 3, 2) }\n",
        ),
        Lint(
            "depthwise-channels",
            "a number of channels is given as the kernel or stride of a depthwise convolution",
            _per_subject(find_depthwise_channels),
            "net a { input(32x32x3); depthwise(64, 3x3, pad=same) }\n",
            "net a { input(32x32x3); depthwise(3x3, pad=same); depthwise(3, 2) }\n",
        ),
        Lint(
            "large-upsample",
            "the size of the result is given as the factor of `upsample`",
            _per_subject(find_large_upsample),
            "net a { input(32x32x3); upsample(64x64) }\n",
            "net a { input(32x32x3); upsample(to=64x64); upsample(2x2) }\n",
        ),
        Lint(
            "enlarging-pool",
            "pooling to a size larger than the image",
            _per_subject(find_enlarging_pool),
            "net a { input(32x32x3); avgpool(to=64) }\n",
            "net a { input(32x32x3); avgpool(to=32); avgpool(to=7x7) }\n",
        ),
        Lint(
            "channel-fans",
            "an initialiser that needs fans is used for a vector with one value per channel",
            _per_subject(find_channel_fans),
            "net a { input(32x32x3); batchnorm(gamma=he) }\n",
            "net a { input(32x32x3); batchnorm(gamma=normal(0.1)) -> conv(3, 1x1, weight=he) }\n",
        ),
        Lint(
            "numeric-bias",
            "`bias` is 0 or 1, an initial value, where `no` or `yes` was probably meant",
            _per_subject(find_numeric_bias),
            _net("conv(4, 3x3, bias=0) -> fc(10)"),
            _net("conv(4, 3x3, bias=constant(0)) -> conv(4, 3x3, bias=no) -> fc(10)"),
        ),
        Lint(
            "main-path",
            "`drop_path`, or `scale` with a small factor, is not on a residual branch",
            _per_subject(find_main_path),
            _net("conv(4, 3x3) -> drop_path(0.5) -> fc(10)"),
            _net("add { identity | conv(1, 3x3, pad=same) -> drop_path(0.5) } -> fc(10)"),
        ),
        Lint(
            "unread",
            "nothing reads the output of a layer",
            _per_subject(find_unread),
            _net("x: relu; y: fc(3); x -> fc(10)"),
            _net("x: relu; output y: fc(3); x -> fc(10)"),
        ),
        Lint(
            "large-mean",
            "`normalize` has a mean or deviation above 1, but pixels are scaled to 0..1 first",
            _per_subject(find_large_mean),
            _trained("epochs = 2", data=_DATA.replace(" }", ", normalize = by([123.7], [0.3]) }")),
            _trained("epochs = 2", data=_DATA.replace(" }", ", normalize = by([0.485], [0.3]) }")),
        ),
        Lint(
            "late-step",
            "a schedule changes the rate after the end of the run",
            _per_subject(find_late_step),
            _trained("schedule = step(at=[10, 30]), epochs = 30"),
            _trained("schedule = step(at=[10, 20]), epochs = 30"),
        ),
        Lint(
            "early-step",
            "a schedule changes the rate before the first epoch, or only within it",
            _per_subject(find_early_step),
            _trained("schedule = step(at=[0, 10]), epochs = 30"),
            _trained("schedule = step(at=[1, 10]), epochs = 30"),
        ),
        Lint(
            "long-warmup",
            "the rate rises for as long as the run, or longer",
            _per_subject(find_long_warmup),
            _trained("schedule = cosine(warmup=5), epochs = 5"),
            _trained("schedule = cosine(warmup=1), epochs = 5"),
        ),
        Lint(
            "large-cutout",
            "`cutout` covers whole images",
            _per_subject(find_large_cutout),
            _trained("epochs = 2", data=_DATA.replace(" }", ", augment = [hflip, cutout(100)] }")),
            _trained("epochs = 2", data=_DATA.replace(" }", ", augment = [hflip, cutout(4)] }")),
        ),
        Lint(
            "unmatched-glob",
            "a glob of `no_decay` matches no weight",
            _per_subject(find_unmatched_glob),
            _trained('optimizer = sgd(no_decay=["*.batchnorm*.*"])', "batchnorm -> fc(10)"),
            _trained('optimizer = sgd(no_decay=["*batchnorm*.*"])', "batchnorm -> fc(10)"),
        ),
        Lint(
            "squashed-scores",
            "the scores go through an activation before `cross_entropy`",
            _per_subject(find_squashed_scores),
            _trained("epochs = 2", "fc(10) -> relu"),
            _trained("epochs = 2", "fc(16) -> relu -> fc(10)"),
        ),
        Lint(
            "dying-scores",
            "`relu` clips the scores of a new head before they are pooled",
            _per_subject(find_dying_scores),
            _trained(_WARM, "conv(10, 1x1) -> relu -> globalavgpool"),
            _trained(_WARM, "conv(10, 1x1) -> globalavgpool"),
        ),
        Lint(
            "large-accuracy",
            "an expectation compares an accuracy, or another share, with a number above 1",
            _per_subject(find_large_accuracy),
            _trained("expect test_accuracy >= 97"),
            _trained("expect test_accuracy >= 0.97"),
        ),
        Lint(
            "reversed-best",
            "`best` looks for the largest loss, or for the smallest accuracy or other score",
            _per_subject(find_reversed_best),
            _trained("best = max(val_loss)"),
            _trained("best = max(val_f1)"),
        ),
        Lint(
            "single-branch",
            "a join such as `add` has one branch",
            find_single_branch,
            _net("add { conv(1, 3x3, pad=same) } -> fc(10)"),
            _net("add { identity | conv(1, 3x3, pad=same) } -> fc(10)"),
        ),
        Lint(
            "repeated-activation",
            "`*` repeats an activation alone",
            find_repeated_activation,
            _net("conv(1, 3x3, pad=same) -> relu * 3 -> fc(10)"),
            _net("(conv(1, 3x3, pad=same) -> relu) * 3 -> fc(10)"),
        ),
        Lint(
            "large-momentum",
            "`batchnorm` has the `momentum` of Keras, which is 1 minus the one here",
            _per_subject(find_large_momentum),
            _net("batchnorm(momentum=0.99) -> fc(10)"),
            _net("batchnorm(momentum=0.01) -> batchnorm(momentum=1) -> fc(10)"),
        ),
        Lint(
            "idle-pool",
            "a pooling of single pixels",
            _per_subject(find_idle_pool),
            _net("avgpool(1) -> fc(10)"),
            _net("avgpool(to=1) -> maxpool(1, stride=2) -> fc(10)"),
        ),
        Lint(
            "product-for-size",
            "a product such as `3*3` where a size is expected",
            _per_subject(find_product_for_size),
            _net("conv(4, 3*3, pad=same) -> fc(10)"),
            _net("conv(2*2, 3x3, pad=same) -> fc(5*2)"),
        ),
        Lint(
            "part-as-data",
            "a data section is named after a part of a data set, and no recipe uses it",
            find_part_as_data,
            _trained("epochs = 2", data="data { source = digits }\ndata val { batch = 8 }\n"),
            _trained(
                "epochs = 2, data = val", data="data { source = digits }\ndata val { batch = 8 }\n"
            ),
        ),
        Lint(
            "source-as-name",
            "a `data` section has the name of a source, but no `source` key",
            find_source_as_name,
            _trained("epochs = 2", data="data digits { batch = 32 }\n"),
            _trained("epochs = 2", data="data digits { source = digits }\n"),
        ),
        Lint(
            "dropped-scores",
            "a net ends in `dropout`",
            _per_subject(find_dropped_scores),
            _trained("epochs = 2", "fc(10) -> dropout(0.5)"),
            _trained("epochs = 2", "dropout(0.5) -> fc(10)"),
        ),
        Lint(
            "extreme-rate",
            "a learning rate or a weight decay with which nothing is learned",
            _per_subject(find_extreme_rate),
            _trained("optimizer = sgd(lr=10)"),
            _trained("optimizer = sgd(lr=1.5, weight_decay=0.1)"),
        ),
        Lint(
            "rising-step",
            "the steps of a schedule raise the rate",
            _per_subject(find_rising_step),
            _trained("schedule = step(at=5, gamma=10)"),
            _trained("schedule = step(at=5, gamma=0.1)"),
        ),
        Lint(
            "long-patience",
            "`patience` is as long as the run, or longer",
            _per_subject(find_long_patience),
            _trained("patience = 20, epochs = 20"),
            _trained("patience = 5, epochs = 20"),
        ),
        Lint(
            "long-interval",
            "`validate_every` or `save_every` is as long as the run, or longer",
            _per_subject(find_long_interval),
            _trained("validate_every = 20, epochs = 20"),
            _trained("validate_every = 5, epochs = 20"),
        ),
        Lint(
            "sudden-rate",
            "`lr_rule` multiplies the rate by more than 4 without a warm-up",
            _per_subject(find_sudden_rate),
            _trained("lr_rule = linear(8)"),
            _trained("lr_rule = linear(8, warmup=5)"),
        ),
        Lint(
            "small-ema",
            "an average of weights that keeps less than half of the old one",
            _per_subject(find_small_ema),
            _trained("ema = 0.1"),
            _trained("ema = 0.9"),
        ),
        Lint(
            "small-validation",
            "fewer validation images than classes",
            _per_subject(find_small_validation),
            _trained("epochs = 2", data=_DATA.replace(" }", ", validation = 1 }")),
            _trained("epochs = 2", data=_DATA.replace(" }", ", validation = 0.1 }")),
        ),
        Lint(
            "unknown-lint",
            "a comment allows an unknown lint",
            _unknown_lint,
            _net("fc(10)  # allow: unraed\n"),
            _net("fc(10)  # these allow: nothing\n"),
        ),
        Lint(
            "unused-allow",
            "a comment allows a lint that finds nothing there; checked only for whole files",
            _unused_allow,
            _net("x: fc(3)  # allow: unread\n"),
            _net("x: fc(3)  # allow: unread\n input(8x8x1)"),
        ),
    )
}
_COMMENT_LINTS = ("unknown-lint", "unused-allow")
