"""Where parsing failed: what the checks for common mistakes look at."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from netdsl.errors import Diagnostic, Span

NAME = re.compile(r"(?!\d)\w+")
ITEM_KEYWORDS = ("use", "let", "block", "net", "data", "train", "test")


@dataclass(frozen=True)
class SyntaxErrorContext:
    """Where parsing failed: at `token`, after `preceding_tokens`, where one of the terminals in
    `expected` could have followed. What is missing is missing at `end_of_previous`."""

    token: str
    preceding_tokens: Sequence[str]
    span: Span
    end_of_previous: Span
    expected: set[str]

    @property
    def previous_token(self) -> str:
        return self.preceding_tokens[-1] if self.preceding_tokens else ""

    @property
    def remaining_text(self) -> str:
        """The text from the token on."""
        return self.span.source.text[self.span.start :]

    @property
    def text_before_token(self) -> str:
        """The end of the text before the token, without the spaces between."""
        return self.span.source.text[max(0, self.span.start - 100) : self.span.start].rstrip()

    @property
    def is_adjacent(self) -> bool:
        """Whether no space separates the token from the text before it."""
        return not self.span.source.text[self.span.start - 1 : self.span.start].isspace()

    @property
    def can_end_layer(self) -> bool:
        """Whether a layer, block or group could have ended before the token."""
        return "_ARROW" in self.expected and "COMPARE" not in self.expected

    @property
    def is_in_condition(self) -> bool:
        """Whether an `if` stands between the token and the brace before it."""
        before = itertools.takewhile(lambda t: t not in "{}", reversed(self.preceding_tokens))
        return "if" in before

    @property
    def is_in_for(self) -> bool:
        """Whether a `for` stands between the token and the brace before it."""
        before = itertools.takewhile(lambda t: t not in "{}", reversed(self.preceding_tokens))
        return "for" in before

    @property
    def item_keyword(self) -> str:
        """The keyword that begins the item around the token; empty between items."""
        depth, keyword = 0, ""
        for token in self.preceding_tokens:
            depth += (token in "([{") - (token in ")]}")
            if depth == 0 and token in ITEM_KEYWORDS and keyword not in ITEM_KEYWORDS:
                keyword = token
            elif depth == 0 and token in ("}", ")"):
                keyword = keyword if token == ")" else ""
        return keyword

    @property
    def is_in_braces(self) -> bool:
        """Whether a brace before the token is still open."""
        tokens = list(self.preceding_tokens)
        return tokens.count("{") > tokens.count("}")

    @property
    def is_value_expected(self) -> bool:
        """Whether an expression could begin at the token."""
        return {"NUMBER", "NAME"} <= self.expected

    @property
    def line(self) -> str:
        """The line of the token, without the spaces around it."""
        return self.span.source.line(self.span.position[0]).strip()

    @property
    def is_first_on_line(self) -> bool:
        """Whether only spaces stand before the token on its line."""
        line, column = self.span.position
        return not self.span.source.line(line)[: column - 1].strip()

    @property
    def rest_of_line(self) -> str:
        """The text from the token on, without a comment."""
        return re.split(r"[\n#]", self.remaining_text, maxsplit=1)[0].strip()

    def unexpected_token(self, help: str | None) -> Diagnostic:
        return Diagnostic(f"`{self.token}` does not belong here", self.span, help)
