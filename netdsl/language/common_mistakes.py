"""Recognises common syntax mistakes and suggests a fix for each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from netdsl.errors import Diagnostic
from netdsl.language.foreign_formats import check_foreign_format
from netdsl.language.items import check_items
from netdsl.language.syntax_error_context import ITEM_KEYWORDS, NAME, SyntaxErrorContext


def find_common_mistake(context: SyntaxErrorContext) -> Diagnostic | None:
    """Returns a diagnostic with a fix if the error is a common mistake."""
    return (
        check_foreign_format(context)
        or _check_foreign_syntax(context)
        or _check_label_names(context)
        or check_items(context)
        or _check_conditions(context)
        or _check_slices(context)
        or _check_expressions(context)
        or _check_arithmetic(context)
        or _check_names(context)
        or _check_chains(context)
        or _check_punctuation(context)
        or _check_headers(context)
        or _check_missing_comma(context)
    )


_KEYWORDS = {"let", "shared", "output", "if", "else", "for", "in", "and", "or", "not"}
_CHOICE = "write `a if condition else b`"
_LAYER_CHOICE = "`if condition { conv(8, 3x3) } else { identity }` chooses among layers"
_COMPARISONS = {"==", "!=", "<", "<=", ">", ">=", "~"}
_FUNCTION_KEYWORDS = {"def", "lambda"}
_PYTHON_KEYWORDS = {"class", "return", "import", "from", "while"}
_TABLE_ENTRY = re.compile(r"""\{\s*["']?([^"'{}\n:]{1,40})["']?\s*:\s*([-.\d]+)""")
_MAX_QUOTED_CHAIN = 40
_FOREIGN_SYMBOLS = {
    "//": "comments begin with `#`",
    "/*": "comments begin with `#`",
    "=>": "write `->`",
    "||": "write `or`",
    "!": "write `not`",
    "elif": "write `else if`",
}


def _check_foreign_syntax(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for syntax of other languages."""
    symbol = (
        context.remaining_text[:2]
        if context.remaining_text[:2] in _FOREIGN_SYMBOLS
        else context.token
    )
    is_empty_branch = symbol == "||" and context.previous_token in ("{", "|")
    if symbol in _FOREIGN_SYMBOLS and not is_empty_branch:
        help = _FOREIGN_SYMBOLS[symbol]
        span = replace(context.span, end=context.span.start + len(symbol))
        return Diagnostic(f"`{symbol}` does not belong here", span, help)
    entry = _TABLE_ENTRY.match(context.remaining_text)
    if entry and context.token == "{":
        key = entry[1] if entry[1].startswith('"') else f'"{entry[1]}"'
        return context.unexpected_token(f"a table is a list of pairs: `[({key}, {entry[2]})]`")
    if _FUNCTION_KEYWORDS & {context.token, context.previous_token}:
        help = (
            "write a function of numbers as `let f(a, b=2) = a + b`, a function of layers as "
            "a `block`"
        )
        return context.unexpected_token(help)
    if context.token in _PYTHON_KEYWORDS or context.previous_token in _PYTHON_KEYWORDS:
        import_keywords = {"import", "from"} & {context.token, context.previous_token}
        use_hint = '; load blocks from a file with `use "FILE.net"`' if import_keywords else ""
        return context.unexpected_token(f"a .net file cannot contain Python{use_hint}")
    return None


def _check_names(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks the items of files and nets, and their names."""
    if context.previous_token == "use":
        return context.unexpected_token('quote the file name: `use "blocks.net"`')
    if (
        context.token == "-"
        and context.is_adjacent
        and NAME.fullmatch(context.previous_token)
        and context.remaining_text[1:2].isalnum()
    ):
        return context.unexpected_token(
            f"names are made of letters, digits and `_`: `{context.previous_token}_...`"
        )
    if context.previous_token == "output" and context.token in ("(", "}", ";", "->"):
        return context.unexpected_token(
            "a side output is `output NAME: ...`; the end of a net is its main output"
        )
    if (
        context.previous_token in ITEM_KEYWORDS
        and context.can_end_layer
        and NAME.fullmatch(context.token)
    ):
        return context.unexpected_token(
            f"a `{context.previous_token}` belongs outside nets and blocks"
        )
    return None


def _check_label_names(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for labels that are called like a word of the language."""
    name = None
    if context.token == ":" and context.previous_token in _KEYWORDS - {"else"}:
        name = context.previous_token
    elif context.token in ("and", "or") and "NAME" not in context.expected:
        is_label = re.match(r"\w+\s*:", context.remaining_text)
        name = context.token if is_label else None
    if name is None:
        return None
    return context.unexpected_token(f"`{name}` cannot be the name of a label; write `{name}_: ...`")


def _check_conditions(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks comparisons, conditional expressions, and conditions of layers and branches."""
    is_after_value = "_OR" in context.expected and "COMPARE" not in context.expected
    if context.token in _COMPARISONS and is_after_value:
        help = "comparisons do not chain: write `a < b and b < c`"
        return context.unexpected_token(help)
    can_end = {"RBRACE", "VBAR"} & context.expected and "NAME" not in context.expected
    if context.token in ("if", "else") and can_end:
        is_value = "_IF" in context.expected and "VBAR" not in context.expected
        return context.unexpected_token(_CHOICE if is_value else _LAYER_CHOICE)
    if context.token == "then" and "_OR" in context.expected:
        return context.unexpected_token(_LAYER_CHOICE if "LBRACE" in context.expected else _CHOICE)
    if context.token == "{" and "VBAR" in context.expected and context.is_in_condition:
        help = "`a if condition` keeps or leaves out a branch; `a -> if condition { b }` chooses"
        return context.unexpected_token(help)
    if context.token == "->" and "VBAR" in context.expected and context.is_in_condition:
        return context.unexpected_token("a condition ends its branch: `a -> b if condition`")
    if "_ELSE" in context.expected and "_ARROW" not in context.expected:
        help = f"{_CHOICE}: an expression always has a value"
        return Diagnostic("`else` is missing", context.end_of_previous, help)
    if context.previous_token == "if" and "_OR" in context.expected:
        help = f"{_CHOICE}; `if condition {{ ... }}` chooses among layers"
        return context.unexpected_token(help)
    return None


def _check_slices(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks what stands in the brackets of an index or a list."""
    if "RSQB" not in context.expected:
        return None
    if context.token == ":" and "COMMA" in context.expected:
        return context.unexpected_token("a list is `[a, b]`; `range(1, 4)` is [1, 2, 3]")
    if context.token == ":" and "COLON" not in context.expected:
        help = "a slice has no step: `x[a:b]` takes every entry from `a` up to `b`"
        return context.unexpected_token(help)
    if context.token == "," and "COLON" in context.expected:
        return context.unexpected_token(
            "`x[a]` is one entry, `x[a:b]` the entries from `a` up to `b`"
        )
    return None


def _check_expressions(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks functions, loops in lists, `in` and `as`."""
    joined = re.search(r"\b(add|mul|sub|concat)\(\s*in$", context.text_before_token)
    if context.previous_token == "in" and joined and context.token in (",", ")"):
        others = re.match(r",\s*(\w+)", context.remaining_text)
        branch = others[1] if others else "conv(8, 1x1)"
        return context.unexpected_token(
            f"branches are written in braces: `{joined[1]} {{ in | {branch} }}`"
        )
    if context.previous_token == "in" and context.expected == {"DOT"}:
        help = (
            "`in` is the input of the block; its sizes are `in.channels`, `in.height` and "
            "`in.width`"
        )
        return context.unexpected_token(help)
    if context.token == "for" and {"RSQB", "COMMA"} & context.expected:
        help = (
            "a list cannot contain a loop; write out its entries, or put a `for` around the layers"
        )
        return context.unexpected_token(help)
    if context.token == "{" and context.previous_token == ")" and context.expected == {"EQUAL"}:
        help = "a function is one expression, `let f(a) = a + 1`; layers go in a `block`"
        return context.unexpected_token(help)
    if context.token == "," and context.expected <= {"EQUAL", "LPAR"}:
        return context.unexpected_token("`let` defines one name; `x[0]` takes an entry of a list")
    if context.token == "as" and {"COMMA", "_IN"} <= context.expected:
        return context.unexpected_token("the index comes after the list: `for c in list as i`")
    if context.previous_token == "as" and context.expected == {"NAME"}:
        return context.unexpected_token("name the index: `block * n as i`, `for c in list as i`")
    if "_ARROW" in context.expected and "as" in (context.token, context.previous_token):
        help = "`as` names the index of a repeat, `block * n as i`; a label is `x: block`"
        return context.unexpected_token(help)
    return None


def _find_repeat_count(tokens: Sequence[str]) -> str | None:
    """The repeat count that the tokens end with: `n` of `* n`, `depths[0]`, `min(a, b)`."""
    depth = 0
    for i in range(len(tokens) - 1, 0, -1):
        depth += (tokens[i] in ")]") - (tokens[i] in "([")
        if depth == 0 and tokens[i - 1] == "*":
            return "".join(tokens[i:])
        if depth == 0 and not (tokens[i] in "([" and NAME.fullmatch(tokens[i - 1])):
            return None
    return None


def _check_arithmetic(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks numbers, and repeats with a computed count."""
    if context.token == context.previous_token == "*" and context.is_adjacent:
        help = "there are no powers: write a product, `c * c`, or list the values, `[16, 32, 64]`"
        return Diagnostic("`**` has no meaning in a .net file", context.span, help)
    count = _find_repeat_count(context.preceding_tokens) if context.can_end_layer else None
    if count and context.token in ("+", "-", "*", "/", "%", "//"):
        operand = re.match(r"\W+(\w*)", context.remaining_text)
        other = operand[1] if operand and operand[1] else "1"
        return context.unexpected_token(f"write `* ({count} {context.token} {other})`")
    can_begin_element = "NAME" in context.expected and "NUMBER" not in context.expected
    if can_begin_element and re.match(r"\d+\s*\*", context.remaining_text):
        return context.unexpected_token(f"the repeat count comes last: `relu * {context.token}`")
    is_label = re.match(r"\w+\s*:", context.remaining_text)
    if context.previous_token in ("->", "{", "|") and context.token.isdigit() and not is_label:
        help = f"for a constant in the shape of the input, write `constant({context.token})`"
        return context.unexpected_token(help)
    if (
        context.previous_token == ","
        and context.is_adjacent
        and re.fullmatch(r"\d{3}", context.token)
    ):
        return context.unexpected_token("thousands are separated with `_`, as in `1_024`")
    if context.token == "x" and context.previous_token and not context.can_end_layer:
        return context.unexpected_token("a size is one word, `3x3`; a computed one is `[k, k]`")
    if context.token == "." and re.match(r"\.\d", context.remaining_text):
        return Diagnostic("a number begins with a digit", context.span, "write `0.5`")
    return None


def _check_chains(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks the punctuation between and around layers."""
    if context.token == "{" and context.previous_token in ("->", "{", "|", ":"):
        return context.unexpected_token(
            "a group is written `( ... )`: `(conv(64, 3x3) -> relu) * 2`"
        )
    is_list = context.token == "[" and "LPAR" in context.expected and context.can_end_layer
    if is_list or ("_ARROW" in context.expected and context.token[0].isdigit()):
        arguments = re.split(r"->|[;|{}]", context.rest_of_line, maxsplit=1)[0].strip()
        arguments = re.sub(r"^\[(.*)\]$", r"\1", arguments)
        arguments = re.sub(r"(?<=[\w)]) +(?=\w)", ", ", arguments)
        return context.unexpected_token(
            f"arguments go in parentheses: `{context.previous_token}({arguments})`"
        )
    if context.token[0] == '"' and "NAME" in context.expected and not context.is_value_expected:
        label = re.match(r'"(\w+)([{%]\w*}?)?"\s*:', context.remaining_text)
        if label:
            numbered = "labels in a loop are numbered automatically: " if label[2] else ""
            return context.unexpected_token(
                f"{numbered}write `{label[1]}: conv(16, 3x3)`, without quotes"
            )
        return context.unexpected_token("names of layers have no quotes")
    if context.previous_token in ("branch", "path", "parallel") and "_ARROW" in context.expected:
        return context.unexpected_token(
            "branches are written in the braces of their join: `concat { conv(8, 1x1) | relu }`"
        )
    starts_layer = NAME.fullmatch(context.token) is not None and context.token not in _KEYWORDS
    if "_ARROW" in context.expected and context.token == "(" and context.previous_token == ")":
        return context.unexpected_token(_second_call_help(context))
    if "_ARROW" in context.expected and (starts_layer or context.token == "("):
        help = "layers are chained with `->`; a statement ends at the end of its line or at `;`"
        return Diagnostic(f"`->` is missing before `{context.token}`", context.span, help)
    if context.token == "," and context.can_end_layer:
        is_in_branch = "VBAR" in context.expected
        return context.unexpected_token(
            "separate branches with `|`" if is_in_branch else "chain layers with `->`"
        )
    if context.token == "+" and context.can_end_layer:
        return Diagnostic("`+` does not join layers", context.span, "write `add { a | b }`")
    attribute = re.match(r"\.(\w+)\s*=", context.remaining_text)
    if attribute and context.can_end_layer:
        return context.unexpected_token(f"a label is written `{attribute[1]}: conv(16, 3x3)`")
    if context.token == "." and context.item_keyword == "test" and context.previous_token == ")":
        return context.unexpected_token(
            'a shape is compared as a whole: `shape("conv1") == 32x32x16`'
        )
    if context.token == "." and context.can_end_layer:
        return context.unexpected_token("layers have plain names: `conv`, `relu`")
    if context.token in ("-", ">", "<", "=>") and context.can_end_layer:
        return Diagnostic(f"`{context.token}` does not chain layers", context.span, "write `->`")
    if context.token == context.previous_token == "|" and context.is_in_condition:
        return context.unexpected_token("write `or`")
    if context.previous_token in ("|", "{") and context.token in ("|", "}"):
        return Diagnostic("a branch is empty", context.span, "`identity` passes its input through")
    if context.token == "|":
        help = "`|` separates branches of `add { a | b }` or `concat { a | b }`; `->` chains layers"
        return context.unexpected_token(help)
    return None


def _second_call_help(context: SyntaxErrorContext) -> str:
    """What to write for a layer that is called with its input, `Add()([a, b])`."""
    inputs = re.match(r"\(\s*\[([\w\s,]+)\]\s*\)", context.remaining_text)
    if inputs:
        branches = " | ".join(x.strip() for x in inputs[1].split(",") if x.strip())
        return f"branches are written in braces: `add {{ {branches} }}`, `concat {{ {branches} }}`"
    source = re.match(r"\(\s*(\w+)\s*\)", context.remaining_text)
    name = source[1] if source else "a"
    return f"a layer is applied with `->`: `{name} -> relu`"


def _check_missing_comma(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for two arguments, entries or values with nothing in between."""
    begins_value = re.match(r"[\w\"\[]", context.token) and context.token not in _KEYWORDS
    if not begins_value or "COMMA" not in context.expected:
        return None
    named = re.match(r"(\w+)(\s*)=(?!=)", context.remaining_text)
    is_in_section = "RBRACE" in context.expected
    if named and is_in_section and not named[2] and NAME.fullmatch(context.previous_token):
        arguments = re.split(r"[;}]", context.rest_of_line, maxsplit=1)[0].strip()
        help = f"arguments go in parentheses: `{context.previous_token}({arguments})`"
        return context.unexpected_token(help)
    if is_in_section:
        help = "separate entries with `,` or write each on its own line"
    else:
        help = "separate arguments and list entries with `,`"
    return Diagnostic(f"a `,` is missing before `{context.token}`", context.end_of_previous, help)


def _check_punctuation(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks for `=`, `==`, `:` or a bracket where another of them was meant."""
    if context.token == "=" and "COMPARE" in context.expected:
        return Diagnostic("`=` does not compare", context.span, "write `==`")
    if context.token == "=" and context.previous_token and "LPAR" in context.expected:
        name = context.previous_token
        if name == "input":
            return context.unexpected_token("write `input(28x28x1)`")
        if re.match(r"=\s*[a-z]\w*\(|=\s*\w+\s*->", context.remaining_text):
            chain = re.split(r"[;#}\n]", context.remaining_text[1:], maxsplit=1)[0].strip()
            shown = chain if len(chain) <= _MAX_QUOTED_CHAIN else "..."
            return context.unexpected_token(f"a label is written `{name}: {shown}`")
        help = f"a label is written `{name}: ...`, a number `let {name} = ...`"
        return context.unexpected_token(help)
    if context.token == ":" and context.preceding_tokens[-2:-1] in (["->"], ["("]):
        name = context.previous_token
        help = f"a label begins a statement and names the end of its chain: `{name}: a -> b`"
        return context.unexpected_token(help)
    if context.token == ":" and "LBRACE" in context.expected:
        return context.unexpected_token("the body of `if` and `for` goes in `{ }`")
    if context.token == "," and context.expected >= {"LBRACE", "_AS"} and context.is_in_for:
        entries = re.search(r"\bin\s+([^{}\n]*)\{", context.line)
        listed = entries[1].strip() if entries else "64, 128"
        return context.unexpected_token(f"a list has brackets: `for c in [{listed}] {{ ... }}`")
    if context.token[0].isdigit() and re.match(r"\w+\s*:", context.remaining_text):
        label = re.match(r"\w+", context.remaining_text)
        if label and "NAME" in context.expected and not context.is_value_expected:
            help = f"a label does not begin with a digit: write `x{label[0]}: ...`"
            return context.unexpected_token(help)
    if context.previous_token in ("assert", "expect") and context.item_keyword == "test":
        expectation = re.split(r"[,;}]", context.rest_of_line, maxsplit=1)[0].strip()
        help = f"a test has no `{context.previous_token}`: write `{expectation}`"
        return context.unexpected_token(help)
    return None


def _check_headers(context: SyntaxErrorContext) -> Diagnostic | None:
    """Checks what stands between `for`, `if` or `let` and what follows."""
    if context.expected == {"COMMA", "_IN"} and context.token != ",":
        return context.unexpected_token("write `for c in [64, 128] { ... }`")
    is_body = {"LBRACE", "_OR"} <= context.expected and context.previous_token == ")"
    if is_body and NAME.fullmatch(context.token) and context.token not in _KEYWORDS:
        return context.unexpected_token("the body of `if` and `for` goes in `{ }`")
    listed = re.search(r"\blet\s+\w+\s*=\s*([^;{}#]*)", context.line)
    is_bare = not {"COMMA", "RPAR", "RSQB", "_IN"} & context.expected
    if context.token == "," and is_bare and listed:
        return context.unexpected_token(f"a list is written `[{listed[1].strip()}]`")
    is_let = list(context.preceding_tokens[-2:-1]) == ["let"]
    if is_let and context.expected <= {"EQUAL", "LPAR"} | {"NAME"} and context.token != ",":
        value = context.token if context.token[0].isalnum() else "value"
        return context.unexpected_token(f"write `let {context.previous_token} = {value}`")
    if is_let and context.token == "==":
        return context.unexpected_token("write `=`")
    if context.token == ":" and context.item_keyword == "test" and "COMMA" in context.expected:
        return context.unexpected_token(f"write `{context.previous_token} == value`")
    if context.previous_token == "for" and context.token == "(":
        return context.unexpected_token("write `for c in [64, 128] { ... }`")
    return None
