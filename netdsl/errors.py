"""Errors, their locations and how they are reported: Span, Diagnostic, NetError."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import accumulate

from netdsl.limits import MAX_KNOWN_NAMES, MAX_MESSAGE_CHARACTERS, MAX_NAME_CHARACTERS, MAX_NOTES
from netdsl.text_escaping import escape_line, escape_text


@dataclass(frozen=True, eq=False)
class Source:
    """A source text and its displayed name. `folder` is the folder of its file; None for a text
    that is no file."""

    name: str
    text: str
    folder: str | None = None

    @cached_property
    def _lines(self) -> list[str]:
        return self.text.split("\n")

    @cached_property
    def _line_starts(self) -> list[int]:
        """The offset at which each line begins."""
        return [0, *accumulate(len(line) + 1 for line in self._lines[:-1])]

    def position(self, offset: int) -> tuple[int, int]:
        """Returns the line and column of a character offset, both counted from 1."""
        number = bisect_right(self._line_starts, offset)
        return number, offset - self._line_starts[number - 1] + 1

    def line(self, number: int) -> str:
        return self._lines[number - 1] if number <= len(self._lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a source: characters from `start` up to, but not including, `end`."""

    source: Source
    start: int
    end: int

    @property
    def position(self) -> tuple[int, int]:
        return self.source.position(self.start)

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def excerpt(self, max_length: int = 40) -> str:
        """The beginning of the text on one line."""
        text = " ".join(self.text[: max_length + 1].split())
        return text if self.end - self.start <= max_length else f"{text[:max_length]} ..."

    def __str__(self) -> str:
        line, column = self.position
        return f"{self.source.name}:{line}:{column}"

    def format_relative_to(self, other: Span | None) -> str:
        """Formats line and column, with the file name if it differs from that of `other`."""
        if other is None or other.source is not self.source:
            return str(self)
        line, column = self.position
        return f"{line}:{column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem: a message, its location, a suggested fix, and explanatory notes."""

    message: str
    span: Span | None = None
    help: str | None = None
    notes: tuple[str, ...] = ()
    lint: str | None = None
    """The name of the lint that issued the warning; None for an error."""

    def __post_init__(self) -> None:
        """Keeps messages short, however long a name or list they quote."""
        object.__setattr__(self, "message", shorten(self.message))
        object.__setattr__(self, "help", shorten(self.help) if self.help else self.help)
        object.__setattr__(self, "notes", tuple(map(shorten, self.notes[:MAX_NOTES])))

    def render(self) -> str:
        """Formats the diagnostic for people, with the source line and the location underlined."""
        kind = f"warning[{self.lint}]" if self.lint else "error"
        parts = [f"{kind}: {escape_text(self.message)}"]
        if self.span is not None:
            parts += [f"  {escape_line(str(self.span))}", *_make_excerpt(self.span)]
        parts += [f"  {escape_text(note)}" for note in self.notes]
        if self.help is not None:
            parts.append(f"help: {escape_text(self.help)}")
        return "\n".join(parts)


def shorten(text: str, max_length: int = MAX_MESSAGE_CHARACTERS) -> str:
    """Cuts the middle out of a text that is too long to read."""
    if len(text) <= max_length:
        return text
    return f"{text[: max_length * 3 // 4]} ... {text[-max_length // 5 :]}"


_MAX_EXCERPT_WIDTH = 120


def _make_excerpt(span: Span) -> list[str]:
    """Returns the line of a span with the span underlined, as wide as it is displayed."""
    number, column = span.position
    line = span.source.line(number).expandtabs(1)
    begin = column - 1
    first = max(0, begin - _MAX_EXCERPT_WIDTH // 2) if len(line) > _MAX_EXCERPT_WIDTH else 0
    last = first + _MAX_EXCERPT_WIDTH
    end = min(last, begin + span.end - span.start)
    before = ("…" if first else "") + escape_line(line[first + bool(first) : begin])
    marked = escape_line(line[begin:end])
    shown = (before + marked + escape_line(line[end:last])).rstrip()
    width = max(1, min(len(marked), len(shown) - len(before)))
    gutter = " " * len(str(number))
    return [f"    {number} | {shown}", f"    {gutter} | {' ' * len(before)}{'^' * width}"]


class NetError(Exception):
    """Invalid input of any kind; carries every diagnostic that was found, in the order of the
    text. As a string, it shows all of them with their lines and what to do."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)  # a copy, as pickle makes one, is made of these
        self.diagnostics = diagnostics

    def __str__(self) -> str:
        return self.render().removeprefix("error: ")

    @property
    def message(self) -> str:
        """The messages alone, a line each."""
        return "\n".join(d.message for d in self.diagnostics)

    def render(self) -> str:
        return "\n\n".join(d.render() for d in self.diagnostics)

    def with_default_span(self, span: Span | None) -> NetError:
        """Returns the same error, located at `span` where a diagnostic has no location of its
        own."""
        return type(self)(*(d if d.span else replace(d, span=span) for d in self.diagnostics))


def fail(
    message: str,
    span: Span | None = None,
    *,
    help: str | None = None,
    notes: Sequence[str] = (),
) -> NetError:
    """Returns a NetError with one diagnostic, for the caller to raise."""
    return NetError(Diagnostic(message, span, help, tuple(notes)))


_ALIASES = {
    alias: name
    for name, aliases in {
        # layers
        "fc": "dense linear affine fully_connected",
        "conv": "conv2d convolution",
        "convtranspose": "deconv conv_transpose conv2dtranspose convtranspose2d",
        "depthwise": "dwconv depthwise_conv depthwiseconv2d",
        "local": "locally_connected locallyconnected2d",
        "maxpool": "pool max_pool maxpool2d maxpooling2d",
        "avgpool": "avg_pool avgpool2d averagepooling2d",
        "globalavgpool": "gap global_avg_pool globalaveragepooling2d",
        "globalmaxpool": "global_max_pool globalmaxpooling2d globalmaxpool2d",
        "batchnorm": "bn batch_norm batchnorm2d batchnormalization",
        "groupnorm": "gn group_norm groupnormalization",
        "layernorm": "ln layer_norm",
        "rmsnorm": "rms_norm rmsnormalization",
        "instancenorm": "instance_norm instancenorm2d",
        "lrn": "localresponsenorm local_response_norm",
        "scale": "layerscale layer_scale",
        "drop_path": "droppath stochastic_depth stochasticdepth",
        "shuffle": "channel_shuffle channelshuffle",
        "pixel_shuffle": "pixelshuffle depth_to_space depthtospace",
        "upsample": "interpolate upsampling2d resize upsamplingnearest2d",
        "pad": "zeropadding2d zeropad2d constantpad2d padding",
        "reshape": "view unflatten",
        "add": "sum residual",
        "mul": "multiply",
        "sub": "subtract",
        "concat": "cat concatenate",
        "leaky_relu": "lrelu leakyrelu",
        "silu": "swish",
        "hardswish": "hard_swish hswish h_swish",
        "hardsigmoid": "hard_sigmoid hsigmoid h_sigmoid",
        "log_softmax": "logsoftmax",
        "clamp": "clip clip_by_value",
        # initialisers
        "he": "kaiming kaiming_normal he_normal",
        "he_uniform": "kaiming_uniform",
        "lecun": "lecun_normal",
        "xavier": "glorot glorot_uniform xavier_uniform",
        "xavier_normal": "glorot_normal",
        "trunc_normal": "truncated_normal",
        "normal": "gaussian random_normal",
        "uniform": "random_uniform",
        "zeros": "zero",
        # losses, schedules and optimizers
        "cross_entropy": "crossentropyloss crossentropy categorical_crossentropy nll nllloss "
        "nll_loss sparse_categorical_crossentropy softmax_cross_entropy softmaxwithloss",
        "bce": "binary_crossentropy binary_cross_entropy bceloss bcewithlogitsloss",
        "focal": "focal_loss focalloss categorical_focal_crossentropy",
        "mse": "mseloss mean_squared_error l2 euclideanloss",
        "cosine": "cosineannealinglr cosineannealing cosine_annealing cosinedecay cosine_decay",
        "step": "steplr multisteplr multistep multi_step piecewise piecewiseconstantdecay",
        "plateau": "reducelronplateau reduce_on_plateau",
        "onecycle": "onecyclelr one_cycle 1cycle",
        "poly": "polynomial polynomiallr polynomialdecay linear linearlr",
        "inverse": "inv inversetimedecay",
        # parameters and keys
        "channels": "filters out_channels",
        "kernel": "kernel_size",
        "stride": "strides",
        "multiplier": "depth_multiplier",
        "factor": "scale_factor upscale_factor",
        "to": "output_size size",
        "low": "min",
        "high": "max",
        "init": "init_values",
        "lr": "learning_rate",
        "batch": "batch_size",
        "source": "dataset",
        # sources
        "folder": "imagefolder image_folder directory images flow_from_directory "
        "image_dataset_from_directory",
        "arrays": "npz numpy npy np tensordataset",
        "csv": "table dataframe pandas",
        "rate": "p drop_prob",
        "validation": "val",
        "clip": "grad_clip",
        "schedule": "scheduler lr_schedule",
        "patience": "early_stop early_stopping",
        "best": "monitor save_best_only",
        "accumulate": "grad_accumulation",
        "augment": "augmentation",
        # arguments of losses
        "smoothing": "label_smoothing",
        "class_weights": "class_weight weight pos_weight alpha",
        # devices
        "cuda": "gpu cuda:0 gpu:0 nvidia",
    }.items()
    for alias in aliases.split()
}
"""The words of other frameworks, in lower case, and what they are called here."""
_ADVICE = {
    **dict.fromkeys(
        ("adaptiveavgpool", "adaptiveavgpool2d", "adaptive_avg_pool", "adaptive_avg_pool2d"),
        "`avgpool(to=7x7)` gives images of 7x7; `globalavgpool` gives one pixel",
    ),
    **dict.fromkeys(
        ("adaptivemaxpool", "adaptivemaxpool2d", "adaptive_max_pool", "adaptive_max_pool2d"),
        "`maxpool(to=7x7)` gives images of 7x7; `globalmaxpool` gives one pixel",
    ),
    **dict.fromkeys(
        ("pixel_unshuffle", "pixelunshuffle", "space_to_depth", "spacetodepth"),
        "`pixel_shuffle` has no inverse here; a convolution whose kernel equals its stride, such "
        "as `conv(64, 2x2, stride=2)`, combines the same pixels",
    ),
    **dict.fromkeys(
        ("separableconv2d", "separable_conv", "separableconv", "sepconv"),
        "it is two layers: `depthwise(3x3, pad=same, bias=no) -> conv(64, 1x1)`",
    ),
    **dict.fromkeys(
        ("reflectionpad2d", "reflection_pad", "reflectionpad"),
        "write `pad(height=1, width=1, mode=reflect)`",
    ),
    **dict.fromkeys(
        ("replicationpad2d", "replication_pad", "replicationpad"),
        "write `pad(height=1, width=1, mode=edge)`",
    ),
    **dict.fromkeys(
        ("layernormalization", "layernorm2d", "channel_layernorm"),
        "`layernorm(axis=channels)` normalises each pixel over its channels, `layernorm` each "
        "sample over all its values",
    ),
    **dict.fromkeys(
        ("cosine_restarts", "cosineannealingwarmrestarts", "cosinedecayrestarts", "sgdr"),
        "there are no restarts; `cosine` falls once, over the whole run",
    ),
    **dict.fromkeys(
        ("exponential", "exponentiallr", "exponentialdecay", "exp"),
        "`step(at=range(1, 90), gamma=0.95)` multiplies the rate by 0.95 after each epoch",
    ),
    "upsamplingbilinear2d": "write `upsample(2, bilinear)`",
    "hardtanh": "write `clamp(-1, 1)`",
    "activation": "activations are separate layers: `conv(...) -> relu`",
    "act": "activations are separate layers: `conv(...) -> relu`",
    "shuffle": "training images are shuffled in every epoch; `seed` determines the order",
    "in_channels": "the input channels are inferred; give only the output `channels`",
    "input_shape": "the shape belongs in `input(28x28x1)`",
    "batch": "`batch` belongs in the `data` section",
    "batch_size": "`batch` belongs in the `data` section",
    "lr": "the learning rate belongs in the optimizer: `optimizer = sgd(lr=0.1)`",
    "learning_rate": "the learning rate belongs in the optimizer: `optimizer = sgd(lr=0.1)`",
    "momentum": "it belongs in the optimizer: `optimizer = sgd(lr=0.1, momentum=0.9)`",
    "weight_decay": "it belongs in the optimizer: `optimizer = sgd(lr=0.1, weight_decay=1e-4)`",
    **dict.fromkeys(
        ("smoothing", "label_smoothing"),
        "it belongs in the loss: `loss = cross_entropy(smoothing=0.1)`",
    ),
    **dict.fromkeys(
        ("class_weights", "class_weight"),
        "it belongs in the loss: `loss = cross_entropy(class_weights=balanced)`",
    ),
}
_MAX_LISTED_NAMES = 40
_PYTHON_LITERALS = {"true": "yes", "false": "no", "none": "no"}


def suggest_name(name: str, known: Iterable[str], label: str = "") -> str | None:
    """Returns a help line that suggests the known name closest to `name`, or lists the known names
    if they are few."""
    names = sorted({n for n in known if len(n) <= MAX_NAME_CHARACTERS})
    found = suggest_alias(name, names) or suggest_spelling(name, names)
    if found is None and 0 < len(names) <= _MAX_LISTED_NAMES:
        return f"{label or 'known names'}: {', '.join(names)}"
    return found


def suggest_alias(name: str, known: Iterable[str]) -> str | None:
    """Returns a help line for a name with different capitalization, or for another framework's
    name."""
    names_by_lowercase = {n.lower(): n for n in known}
    if (
        name.lower() in _PYTHON_LITERALS
        and _PYTHON_LITERALS[name.lower()] not in names_by_lowercase
    ):
        return f"write `{_PYTHON_LITERALS[name.lower()]}`"
    alias = _ALIASES.get(name.lower(), name.lower())
    return (
        f"did you mean `{names_by_lowercase[alias]}`?"
        if alias in names_by_lowercase
        else _ADVICE.get(name.lower())
    )


def suggest_spelling(name: str, known: Iterable[str]) -> str | None:
    """Returns a help line that suggests the known name with the closest spelling, unless there are
    too many to search."""
    names_by_lowercase = {n.lower(): n for n in known if len(n) <= MAX_NAME_CHARACTERS}
    if len(name) > MAX_NAME_CHARACTERS or len(names_by_lowercase) > MAX_KNOWN_NAMES:
        return None
    word = name.lower()
    found = get_close_matches(word, sorted(names_by_lowercase), n=1, cutoff=_SAME_WORD)
    found = found or [max(_names_within(word, names_by_lowercase), key=len, default="")]
    if not found[0]:
        found = get_close_matches(word, sorted(names_by_lowercase), n=1, cutoff=_SIMILAR_WORD)
    return f"did you mean `{names_by_lowercase[found[0]]}`?" if found else None


_SAME_WORD, _SIMILAR_WORD = 0.85, 0.6
"""Similarities, as difflib counts them, of a word to its misspelling and to a word like it."""


def _names_within(word: str, known: Iterable[str]) -> Iterator[str]:
    """The known names that are words of a compound, as `cosine` of `cosine_restarts`."""
    parts = word.split("_")
    return (n for n in known if len(n) > 3 and len(parts) > 1 and n in (parts[0], parts[-1]))


def internal_error(message: str) -> AssertionError:
    """A violated invariant inside netdsl itself, never the fault of the file's author."""
    return AssertionError(f"internal error: {message}")
