"""Translates calls of PyTorch's layers that give the size of their input, inferred here."""

from __future__ import annotations

from netdsl.foreign_words import find_counterpart, normalize_word
from netdsl.language import syntax as s
from netdsl.layers import LAYERS


def suggest_call(step: s.Step) -> str | None:
    """The call of a layer here for one of PyTorch with the size of its input, which is inferred
    here; None for others, and where an argument has no counterpart."""
    known = {normalize_word(n): n for n in LAYERS}
    name = find_counterpart(step.name, known) or known.get(normalize_word(step.name))
    args = _drop_input_size(step.name, step.args or ())
    if name is None or args is None:
        return None
    params = {normalize_word(p.name): p.name for p in LAYERS[name].signature.params}
    names = [
        a.name and (params.get(normalize_word(a.name)) or find_counterpart(a.name, params))
        for a in args
    ]
    if any(a.name and not n for a, n in zip(args, names, strict=True)):
        return None
    values = [_LITERALS.get(a.value.span.text, a.value.span.text) for a in args]
    given = ", ".join(f"{n}={v}" if n else v for n, v in zip(names, values, strict=True))
    call = f"{name}({given})" if given else name
    return f"write `{call}`; the size of the input is inferred"


_LITERALS = {"True": "yes", "False": "no", '"same"': "same"}


def _drop_input_size(layer: str, arguments: tuple[s.Arg, ...]) -> tuple[s.Arg, ...] | None:
    """The arguments of a layer of PyTorch without the size of its input; None if it is not among
    them. `Conv2D` is Keras's, which has none."""
    index, least = _INPUT_SIZES.get(layer, (0, 0))
    if not least or len(arguments) < least:
        return None
    return (*arguments[:index], *arguments[index + 1 :])


_INPUT_SIZES = {
    "Linear": (0, 2),
    "Conv2d": (0, 3),
    "ConvTranspose2d": (0, 3),
    "BatchNorm2d": (0, 1),
    "BatchNorm1d": (0, 1),
    "InstanceNorm2d": (0, 1),
    "GroupNorm": (1, 2),
}
"""Layers of PyTorch with the position of the size of the input, and how many arguments they have
at least."""
