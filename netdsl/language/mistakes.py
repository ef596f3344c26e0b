"""The mistakes in syntax that people make most, each with its own remedy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from netdsl.errors import Diagnostic, Span, suggest_name


@dataclass(frozen=True)
class Place:
    """Where a text stops to make sense: at `word`, behind the words `before` it, where one of the
    terminals `expected` could have stood."""

    word: str
    before: Sequence[str]
    span: Span
    expected: set[str]

    @property
    def last(self) -> str:
        return self.before[-1] if self.before else ""

    @property
    def behind(self) -> str:
        """The text from the word on."""
        return self.span.source.text[self.span.start :]

    @property
    def glued(self) -> bool:
        """Whether no space parts the word from what stands before it."""
        return not self.span.source.text[self.span.start - 1 : self.span.start].isspace()

    @property
    def ends_layer(self) -> bool:
        """Whether a layer, a block or a group could have ended before the word."""
        return "_ARROW" in self.expected and "COMPARE" not in self.expected

    def misplaced(self, help: str | None) -> Diagnostic:
        return Diagnostic(f"`{self.word}` does not belong here", self.span, help)


def usual(at: Place) -> Diagnostic | None:
    """The remedy where the mistake is one of the usual ones."""
    return _foreign(at) or _of_arithmetic(at) or _of_names(at) or _of_chains(at) or _of_signs(at)


_NAME = re.compile(r"(?!\d)\w+")
_KEYWORDS = {"let", "shared", "output", "if", "else", "for", "in", "and", "or", "not"}
_SECTIONS = ("use", "block", "net", "data", "train", "test")
_PYTHON = {"def", "class", "return", "import", "from", "lambda", "while"}
_OF_OTHERS = {
    "//": "comments begin with `#`",
    "/*": "comments begin with `#`",
    "=>": "write `->`",
    "||": "write `or`",
    "!": "write `not`",
    "elif": "write `else if`",
}


def _foreign(at: Place) -> Diagnostic | None:
    """Words of other languages."""
    written = at.behind[:2] if at.behind[:2] in _OF_OTHERS else at.word
    branch = written == "||" and "_OR" not in at.expected
    if written in _OF_OTHERS and not branch:
        help = _OF_OTHERS[written]
        where = replace(at.span, end=at.span.start + len(written))
        return Diagnostic(f"`{written}` does not belong here", where, help)
    if at.word in _PYTHON or at.last in _PYTHON:
        brings = {"import", "from"} & {at.word, at.last}
        uses = ', blocks of another file come with `use "FILE.net"`' if brings else ""
        return at.misplaced(f"a .net file holds no Python{uses}")
    return None


def _of_names(at: Place) -> Diagnostic | None:
    """What a file and a net are made of."""
    if "_BLOCK" in at.expected and _NAME.fullmatch(at.word):
        return at.misplaced(suggest_name(at.word, _SECTIONS, "a file holds"))
    if at.last == "use":
        return at.misplaced('the file is quoted: `use "blocks.net"`')
    if at.word == "-" and at.glued and _NAME.fullmatch(at.last) and at.behind[1:2].isalnum():
        return at.misplaced(f"names are made of letters, digits and `_`: `{at.last}_...`")
    if at.last == "output" and at.word == "(":
        return at.misplaced("a side output is `output NAME: ...`; what a net ends with is its own")
    if at.last in _SECTIONS and at.ends_layer and _NAME.fullmatch(at.word):
        return at.misplaced(f"a `{at.last}` stands outside of nets and blocks")
    return None


def _count(before: Sequence[str]) -> str | None:
    """The count of a repeat that the words end with: `n` of `* n`, `depths[0]`, `min(a, b)`."""
    depth = 0
    for i in range(len(before) - 1, 0, -1):
        depth += (before[i] in ")]") - (before[i] in "([")
        if depth == 0 and before[i - 1] == "*":
            return "".join(before[i:])
        if depth == 0 and not (before[i] in "([" and _NAME.fullmatch(before[i - 1])):
            return None
    return None


def _of_arithmetic(at: Place) -> Diagnostic | None:
    """Numbers, and repeats with a computed count."""
    count = _count(at.before) if at.ends_layer else None
    if count and at.word in ("+", "-", "*", "/", "%", "//"):
        operand = re.match(r"\W+(\w*)", at.behind)
        other = operand[1] if operand and operand[1] else "1"
        return at.misplaced(f"write `* ({count} {at.word} {other})`")
    begins = "NAME" in at.expected and "NUMBER" not in at.expected
    if begins and re.match(r"\d+\s*\*", at.behind):
        return at.misplaced(f"repeats stand behind: `relu * {at.word}`")
    if at.last == "," and at.glued and re.fullmatch(r"\d{3}", at.word):
        return at.misplaced("thousands are set apart with `_`, as in `1_024`")
    if at.word == "x" and at.last and not at.ends_layer:
        return at.misplaced("a size is one word, `3x3`; a computed one is `[k, k]`")
    if at.word == "." and re.match(r"\.\d", at.behind):
        return Diagnostic("a number begins with a digit", at.span, "write `0.5`")
    return None


def _of_chains(at: Place) -> Diagnostic | None:
    """What stands between layers, or around them."""
    if at.word == "{" and at.last in ("->", "{", "|", ":"):
        return at.misplaced("a group is written `( ... )`: `(conv(64, 3x3) -> relu) * 2`")
    if "_ARROW" in at.expected and at.word[0].isdigit():
        return at.misplaced(f"arguments stand in brackets: `{at.last}({at.word})`")
    if at.word == "[" and "LPAR" in at.expected and at.ends_layer:
        return at.misplaced(f"arguments stand in round brackets: `{at.last}(...)`")
    starts_layer = _NAME.fullmatch(at.word) is not None and at.word not in _KEYWORDS
    if "_ARROW" in at.expected and (starts_layer or at.word == "("):
        help = "layers are chained with `->`; a statement ends at the end of its line or at `;`"
        return Diagnostic(f"`->` is missing before `{at.word}`", at.span, help)
    if at.word == "," and at.ends_layer:
        branch = "VBAR" in at.expected
        return at.misplaced("branches are parted by `|`" if branch else "chain layers with `->`")
    if at.word == "+" and at.ends_layer:
        return Diagnostic("`+` does not join layers", at.span, "write `add { a | b }`")
    if at.word == "." and at.ends_layer:
        return at.misplaced("layers have plain names: `conv`, `relu`")
    if at.word in ("-", ">") and at.ends_layer:
        return Diagnostic(f"`{at.word}` does not chain layers", at.span, "write `->`")
    if at.last in ("|", "{") and at.word in ("|", "}"):
        return Diagnostic("a branch is empty", at.span, "`identity` passes its input through")
    if at.word == "|":
        help = "`|` parts the branches of `add { a | b }` or `concat { a | b }`; `->` chains layers"
        return at.misplaced(help)
    return None


def _of_signs(at: Place) -> Diagnostic | None:
    """`=`, `==`, `:` and brackets where another of them is meant."""
    if at.word == "=" and "COMPARE" in at.expected:
        return Diagnostic("`=` does not compare", at.span, "write `==`")
    if at.word == "=" and at.last and "LPAR" in at.expected:
        help = f"a label is written `{at.last}: ...`, a number `let {at.last} = ...`"
        return at.misplaced(help)
    if at.word == ":" and "LBRACE" in at.expected:
        return at.misplaced("what `if` and `for` do stands in `{ }`")
    if at.word == ":" and "EQUAL" in at.expected:
        return at.misplaced(f"write `{at.last} = value`")
    if at.last == "for" and at.word == "(":
        return at.misplaced("write `for c in [64, 128] { ... }`")
    return None
