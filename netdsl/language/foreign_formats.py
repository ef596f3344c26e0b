"""Recognises what comes from other formats and languages: Darknet, Caffe, YAML, Python."""

from __future__ import annotations

import re
from decimal import Decimal

from netdsl.errors import Diagnostic
from netdsl.language.syntax_error_context import NAME, SyntaxErrorContext

_COMPARISONS = {"==", "!=", "<", "<=", ">", ">=", "~"}
_COMMENT = re.compile(r"(//|--|%|;|/\*)")
_NET = "`net NAME { input(32x32x3); conv(16, 3x3) -> relu; fc(10) }`"


CAFFE_LAYER = re.compile(r"^\s*layers?\s*\{", re.MULTILINE)
_OTHER_FORMATS = {
    r"layer \{": "a Caffe model",
    r"\[\w+\]\s*$": "a Darknet .cfg",
    r"[{\[]": "a JSON file",
    r"\w+:(\s|$)|-\s+\w": "a YAML file",
    r"(import|from|class|def|@)\b": "a Python program",
}


def explain_other_format(text: str) -> str | None:
    """What a file is by the first line that is no comment, and that nothing reads it; without
    quoting it, because it may be private. None if it is of no known format."""
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and line[0] not in "#%;/"), "")
    if CAFFE_LAYER.search(text):
        first = "layer {"
    found = next((name for p, name in _OTHER_FORMATS.items() if re.match(p, first)), None)
    if found is None:
        return None
    return (
        f"it looks like {found}, which netdsl cannot read: write the net as {_NET} in a .net file, "
        "or export a model to ONNX for `netdsl import`"
    )


def check_foreign_format(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for whole notations of other formats, before any single character is explained."""
    return (
        _check_comments(context)
        or _check_bracket_lines(context)
        or _check_layer_messages(context)
        or _check_python_values(context)
        or _check_layer_arguments(context)
        or _check_percent(context)
        or _check_entries(context)
    )


def _check_comments(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for a comment of another language: at the token, or begun before it on its line."""
    if context.is_value_expected:
        return None
    begun = _COMMENT.match(context.line)
    if begun and not context.is_first_on_line:
        help = f"comments begin with `#`, not with `{begun[1]}`"
        return context.unexpected_token(help)
    found = _COMMENT.match(context.remaining_text)
    is_count = context.preceding_tokens[-2:-1] == ["*"]  # as in `block * n % 2`
    if found and _is_prose(context.rest_of_line[found.end() :]) and not is_count:
        return context.unexpected_token("comments begin with `#`")
    return None


def _is_prose(text: str) -> bool:
    """Whether text begins with a word that nothing of the language follows."""
    return re.match(r"\s*[A-Za-z]\w*(?=\s+\w|\s*$)", text) is not None


def _check_bracket_lines(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for Darknet's sections, the rows of YOLO's files and lists of layers."""
    if context.token in ("{", "<") and "_BLOCK" in context.expected:
        return context.unexpected_token(f"a network is written {_NET}")
    if context.token != "[" or context.is_value_expected:
        return None
    if re.fullmatch(r"\[[A-Za-z_]+\]", context.line):
        if context.is_in_braces:
            return context.unexpected_token("a layer is written `conv(16, 3x3, pad=same) -> relu`")
        help = f"sections of Darknet have no meaning in a .net file: write {_NET}"
        return context.unexpected_token(help)
    if context.previous_token == "->":
        return context.unexpected_token("layers are chained with `->`: `relu -> fc(10)`")
    name = context.previous_token
    if context.can_end_layer and name in ("add", "sub", "mul", "concat"):
        return context.unexpected_token(f"branches go in braces: `{name} {{ a | b }}`")
    if context.is_in_braces and "NAME" in context.expected:
        group = re.match(r"\[([^\[\]\n]*->[^\[\]\n]*)\](\s*\*\s*\w+)?", context.remaining_text)
        if group:
            return context.unexpected_token(
                f"a group is written in parentheses: `({group[1].strip()}){group[2] or ''}`"
            )
        help = "a layer is written `conv(64, 3x3, stride=2)`; `[a, b]` is a list of values"
        return context.unexpected_token(help)
    if "_BLOCK" in context.expected:
        return context.unexpected_token(f"a network is written {_NET}")
    return None


def _check_layer_messages(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for Caffe's messages and for layers that are counted."""
    previous = context.previous_token
    if previous == ":" and context.token[0] == '"' and not context.is_value_expected:
        help = (
            f"a layer is written by its own name, after its label: "
            f"`{context.token.strip(chr(34)) or 'a'}: conv(20, 5x5)`"
        )
        is_name = NAME.fullmatch(context.token.strip('"'))
        return context.unexpected_token(
            help if is_name else "a label is written `a: conv(20, 5x5)`"
        )
    is_item = re.match(r"-\s+\w", context.remaining_text) and context.is_first_on_line
    if is_item and not context.is_value_expected:
        help = "a .net file is not YAML: chain layers with `->`, or write each"
        return context.unexpected_token(f"{help} on its own line")
    is_branch = previous in ("|", "{") and not context.is_value_expected
    if is_branch and re.match(r"-\s*\d", context.remaining_text) and "NAME" in context.expected:
        help = "layers are named, not counted: label them, `a: conv(8, 3x3)`, and write"
        return context.unexpected_token(f"{help} `add {{ a | b }}`")
    return None


def _check_python_values(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for tuples and dictionaries in an expression."""
    tokens = context.preceding_tokens
    path = re.match(r"[.~]{0,2}/[\w./~-]*[A-Za-z][\w./~-]*", context.remaining_text)
    if context.token in ("/", ".", "~") and context.is_value_expected and path:
        return context.unexpected_token(f'a path is quoted: `"{path[0]}"`')
    attribute = re.match(r"(?:\.\w+)*\.(\w+)", context.remaining_text)
    if attribute and "_OR" in context.expected and NAME.fullmatch(context.previous_token):
        help = f"names have no dots here: write `{attribute[1]}`"
        if attribute[1] == "parameters":
            help = "an optimizer takes no parameters: every weight of the net is trained"
        return context.unexpected_token(help)
    if context.token == "{" and context.is_value_expected:
        return context.unexpected_token(_dictionary_help(context))
    if context.token == "," and "RPAR" in context.expected and "COMMA" not in context.expected:
        return context.unexpected_token(_tuple_help(_enclosed(context)))
    if context.token == ")" and tokens[-1:] == [","] and context.is_value_expected:
        opened = _enclosed(context)
        entries = ", ".join(opened) if opened else "a"
        return context.unexpected_token(f"a list is written `[{entries}]`, with brackets")
    return None


_DICTIONARY_ENTRY = re.compile(r"""["']?([\w.*-]+)["']?\s*:\s*(["']?[\w.+-]+["']?)\s*(?:,|$)""")


def _dictionary_help(context: SyntaxErrorContext) -> str:
    """How to write a dictionary: as a call if it has a type, else as a list of pairs."""
    inside = context.remaining_text[1:].partition("}")[0].replace("\n", " ").strip()
    entries = dict(_DICTIONARY_ENTRY.findall(inside))
    if _DICTIONARY_ENTRY.sub("", inside).strip():
        entries = {}
    name = next((entries.pop(x) for x in ("type", "name", "class_name") if x in entries), None)
    if name:
        arguments = ", ".join(f"{key}={value}" for key, value in entries.items())
        call = name.strip("\"'") + (f"({arguments})" if arguments else "")
        return f"there are no dictionaries; write it as a call: `{call}`"
    pairs = ", ".join(f'("{key}", {value})' for key, value in entries.items())
    pairs = pairs or '("conv1.*", 0.1)'
    return f"there are no dictionaries; a list of pairs is `[{pairs}]`"


def _enclosed(context: SyntaxErrorContext) -> list[str]:
    """The entries of the bracket around the token; none if a bracket is among them."""
    text = context.span.source.text
    start = text.rfind("(", 0, context.span.start)
    end = text.find(")", context.span.start)
    entries = [e.strip() for e in text[start + 1 : end].split(",")] if 0 <= start < end else []
    entries = [e for e in entries if e]
    return entries if all(re.fullmatch(r"[^()\[\]{}]{1,20}", e) for e in entries) else []


def _tuple_help(entries: list[str]) -> str:
    """How to write a tuple: as a size if its entries are integers, else as a list."""
    sides = entries[1:] if entries[:1] == ["None"] else entries
    listing = f"a list is `[{', '.join(sides or ['a', 'b', 'c'])}]`"
    if not sides:
        return f"a size is one word: `8x8x1`; {listing}"
    if all(side.isdecimal() for side in sides):
        return f"a size is one word: `{'x'.join(sides)}`; {listing}"
    return listing


def _check_layer_arguments(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for the arguments of a layer after a colon or in braces."""
    if context.is_value_expected or "NAME" not in context.expected:
        return None
    tokens, token = context.preceding_tokens, context.token
    name = tokens[-2] if len(tokens) > 1 else ""
    if not (token[0].isdigit() and NAME.fullmatch(name) and "EQUAL" not in context.expected):
        return None
    arguments = re.split(r"[;}\n]|->", context.rest_of_line, maxsplit=1)[0].strip()
    if ":" in arguments or tokens[-3:-2] == [context.item_keyword]:
        return None
    if tokens[-1] == ":" or (tokens[-1] == "{" and "," in arguments and "|" not in arguments):
        return context.unexpected_token(f"arguments go in parentheses: `{name}({arguments})`")
    return None


def _check_percent(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for a percentage."""
    tokens = context.preceding_tokens
    if context.previous_token != "%" or not context.is_value_expected or len(tokens) < 2:
        return None
    if not re.fullmatch(r"[\d_]{1,12}(\.\d{1,12})?", tokens[-2]):
        return None
    share = (Decimal(tokens[-2].replace("_", "")) / 100).normalize()
    help = f"`%` is the remainder of a division; {tokens[-2]} % is `{share:f}`"
    return Diagnostic("`%` does not mark a percentage", context.end_of_previous, help)


def _check_entries(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks the entries of sections, and arguments that are written like entries."""
    previous, token = context.previous_token, context.token
    if token == ":" and "EQUAL" in context.expected:
        value = re.match(r":\s*([\w.]+)", context.remaining_text)
        shown = value[1] if value else "value"
        if re.match(r":\s*\{", context.remaining_text):
            return context.unexpected_token(
                "keys are not nested; each is an entry of its own, such as `epochs = 2`"
            )
        equals = "=" if "RPAR" in context.expected else " = "
        let = "let " if context.preceding_tokens[-2:-1] == ["let"] else ""
        return context.unexpected_token(f"write `{let}{previous}{equals}{shown}`")
    if context.item_keyword not in ("data", "train") or not context.is_in_braces:
        return None
    if previous == "expect" and token in ("=", ":"):
        condition = re.split(r"[,;}]", context.rest_of_line[1:], maxsplit=1)[0].strip()
        return context.unexpected_token(f"write `expect {condition}`")
    if token[0] == '"' and {"_EXPECT", "NAME"} <= context.expected:
        entry = re.match(r'"(\w+)"\s*[:=]?\s*([^,}\n]*)', context.remaining_text)
        if entry:
            text = entry[2].strip().strip('"')
            text = text if re.fullmatch(r"[\w.+-]+", text) else "..."
            return context.unexpected_token(
                f"names of entries have no quotes: write `{entry[1]} = {text}`"
            )
    is_double = token == "==" and context.is_value_expected  # read as `=` and one more
    if is_double or (token in _COMPARISONS and context.expected == {"EQUAL"}):
        return context.unexpected_token(_comparison_help(context))
    if context.expected == {"EQUAL"} and re.match(r'["\w]', token):
        is_condition = previous in ("assert", "require", "check")
        help = "an expectation begins with `expect`: `expect test_accuracy > 0.9`"
        if previous == "if":
            help = (
                "sections have no `if`: a value can depend on a constant, `adam if big else sgd`, "
                "and each named recipe has its own entries"
            )
        is_advised = is_condition or previous == "if"
        return context.unexpected_token(help if is_advised else f"write `{previous} = {token}`")
    is_entry_expected = {"_EXPECT", "NAME"} <= context.expected
    if is_entry_expected and previous == "," and re.match(r"[\d.\"-]", token):
        return _unbracketed_list(context)
    return None


def _comparison_help(context: SyntaxErrorContext) -> str:
    """What to write for a comparison that begins an entry."""
    name, token = context.previous_token, context.token
    value = re.match(r"\W+([\w.]+)", context.remaining_text)
    shown = value[1] if value else "value"
    if token == "==":
        return f"write `{name} = {shown}`"
    if context.item_keyword == "data":
        return f"`data` takes `{name} = value`; expectations go in `train`, after `expect`"
    return f"an expectation begins with `expect`: `expect {name} {token} {shown}`"


def _unbracketed_list(context: SyntaxErrorContext) -> Diagnostic | None:
    """A list without its brackets, `at = 30, 60`."""
    text = context.span.source.text[max(0, context.span.start - 1000) : context.span.start]
    before = re.search(r"(\w+)\s*=\s*([^=\n]*),\s*$", text)
    after = re.match(r"[^\n;}#=]*", context.remaining_text)
    is_thousands = re.fullmatch(r"\d{3}", context.token) and context.is_adjacent
    if before is None or after is None:
        return None
    entries = f"{before[2].strip()}, {after[0].strip()}"
    if is_thousands:
        return None
    is_decimal = re.fullmatch(r"\d+, \d+", entries) and context.is_adjacent
    decimal = f", a decimal with a point: `{entries.replace(', ', '.')}`" if is_decimal else ""
    return context.unexpected_token(f"a list is written `[{entries}]`{decimal}")
