"""Recognises mistakes between the items of a file and in their first lines."""

from __future__ import annotations

import re

from netdsl.errors import Diagnostic, suggest_alias, suggest_name
from netdsl.language.foreign_formats import CAFFE_LAYER
from netdsl.language.syntax_error_context import ITEM_KEYWORDS, NAME, SyntaxErrorContext

_ITEMS_OF_OTHERS = {
    **dict.fromkeys(
        ("model", "network", "sequential", "layer", "layers", "backbone", "architecture", "graph"),
        "a network is written `net NAME { input(28x28x1); conv(8, 3x3) -> relu; fc(10) }`",
    ),
    **dict.fromkeys(
        ("compile", "fit", "solver", "trainer", "training", "optimizer", "optim", "loss"),
        "training is described in `train { optimizer = sgd(lr=0.1), epochs = 10 }`",
    ),
    **dict.fromkeys(
        ("dataset", "datasets", "dataloader", "datamodule", "train_loader", "input_data"),
        "the data is described in `data { source = digits, batch = 32 }`",
    ),
    **dict.fromkeys(
        ("include", "load", "require", "using"),
        'load blocks and nets from a file with `use "FILE.net"`',
    ),
    **dict.fromkeys(
        ("var", "const", "param", "constant"), "a constant is written `let NAME = VALUE`"
    ),
    **dict.fromkeys(("function", "fn"), "layers with parameters are a `block NAME(c) { }`"),
    **dict.fromkeys(("eval", "evaluate", "assert"), "figures are checked in `test { ... }`"),
}
"""Words that begin a part of a model elsewhere, in lower case, and what stands here instead."""

_FORMS = {
    "use": 'use "FILE.net"',
    "let": "let NAME = VALUE",
    "block": "block NAME(c) { conv(c, 3x3) -> relu }",
    "net": "net NAME { input(28x28x1); fc(10) }",
    "data": "data { source = digits, batch = 32 }",
    "train": "train { epochs = 10 }",
    "test": "test { params < 1e6 }",
}
"""An example of each item."""


def check_items(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks the words between items, and what stands before the brace of an item."""
    if "_BLOCK" in context.expected and NAME.fullmatch(context.token):
        return context.unexpected_token(_suggest_item(context))
    keyword = context.item_keyword
    if keyword == "use" and context.token == ",":
        return context.unexpected_token("write a `use` for each file, on a line of its own")
    if keyword in ("", "use", "let") or context.is_in_braces:
        return None
    return _check_header(context, keyword)


def _suggest_item(context: SyntaxErrorContext) -> str | None:
    """What to write for a word that begins no item."""
    word, rest = context.token, context.rest_of_line
    if word == "model" and re.match(r"\w+\.(train|fit|compile)\b", rest):
        return _ITEMS_OF_OTHERS["fit"]
    if help := _ITEMS_OF_OTHERS.get(word.lower()):
        return help
    if re.match(r"[\w.]+\s*=[^=]", rest):
        value = rest.partition("=")[2].strip()
        is_whole = re.fullmatch(r"[^({]{1,30}", value) is not None
        value = value if is_whole else "VALUE"
        constant = f"a constant is written `let {word} = {value}`"
        advice = suggest_alias(word, ())
        return f"{advice}; {constant}" if advice else constant
    if re.match(r"\w+\s*:", rest):
        is_caffe = CAFFE_LAYER.search(context.remaining_text) is not None
        reason = "a .net file is not a Caffe prototxt" if is_caffe else "a .net file is not YAML"
        return f"{reason}: a network is written `{_FORMS['net']}`"
    return suggest_name(word, ITEM_KEYWORDS, "a file contains")


def _check_header(context: SyntaxErrorContext, keyword: str) -> Diagnostic | None:
    """Checks what stands between the keyword of an item and its brace."""
    token, form = context.token, f"write `{_FORMS[keyword]}`"
    line, column = context.span.position
    header = context.span.source.line(line)[: column - 1].strip()
    if header.startswith(f"{keyword} ") and token in (":", "->"):
        form = f"write `{header} {{ ... }}`"
    if token == ":":
        is_yaml = context.previous_token == keyword and keyword not in ("block", "test")
        reason = "a .net file is not YAML: " if is_yaml else "the body goes in `{ }`: "
        return context.unexpected_token(f"{reason}{form}")
    if context.previous_token == keyword and keyword in ("net", "block") and token in "{(":
        return context.unexpected_token(f"a `{keyword}` needs a name: {form}")
    if context.previous_token == keyword and token[0] == '"':
        return context.unexpected_token("a name is written without quotes")
    if token == "(" and keyword == "train" and header != keyword:
        net = re.match(r"\(\s*(\w+)\s*\)", context.remaining_text)
        entry = f"net = {net[1]}, epochs = 10" if net else "epochs = 10"
        return context.unexpected_token(
            f"a recipe has no parameters; its body goes in `{{ }}`: write `{header} {{ {entry} }}`"
        )
    if context.expected & {"LBRACE", "NAME"} and not context.is_value_expected:
        if token in ("=", "(", "[") and keyword in ("data", "train", "test"):
            return context.unexpected_token(f"the body goes in `{{ }}`: {form}")
        if token[0].isdigit() and "NAME" in context.expected:
            return context.unexpected_token(f"a name does not begin with a digit: {form}")
        if token == "->" or (token == "=" and keyword == "block"):
            return context.unexpected_token(f"the body goes in `{{ }}`: {form}")
    return None
