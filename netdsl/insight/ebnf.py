"""The grammar as EBNF in W3C notation, from which tools draw railroad diagrams."""

from __future__ import annotations

import re
from collections.abc import Callable

from lark import Lark, Token, Tree

from netdsl.language.parse import load_grammar

_HEADER = """/* The grammar of the .net language, from netdsl.lark.

   Written by `python -m netdsl.insight.ebnf > grammar/netdsl.ebnf`; a test compares. The notation
   is that of https://www.w3.org/TR/xml/#sec-notation. Words that EBNF cannot describe are regular
   expressions in comments. Whitespace and comments may appear between tokens. */
"""
_KEYWORD = re.compile(r"/(\w+)\\b/")


def ebnf() -> str:
    """The whole file; `python -m netdsl.insight.ebnf` prints it."""
    tree = Lark.open_from_package(
        "lark", "lark.lark", ("grammars",), parser="lalr", maybe_placeholders=False
    ).parse(load_grammar())
    return _HEADER + "\n" + "\n".join(_EbnfWriter(tree).lines()) + "\n"


class _EbnfWriter:
    """Writes each rule as a line. Terminals with a constant text are inlined into the rules; names
    lose Lark's leading underscore unless they would clash."""

    def __init__(self, tree: Tree[Token]) -> None:
        self.definitions = {
            str(d.children[0]).lstrip("?"): d.children[-1]
            for d in tree.children
            if isinstance(d, Tree) and d.data in ("rule", "token")
        }
        self.inlined_text = {
            name: text for name, body in self.definitions.items() if (text := _constant_text(body))
        }
        self.width = max(len(self._format_name(n)) for n in self.definitions)

    def lines(self) -> list[str]:
        return [
            f"{self._format_name(name):<{self.width}} ::= {self._format_body(body)}"
            for name, body in self.definitions.items()
            if name not in self.inlined_text
        ]

    def _format_name(self, name: str) -> str:
        plain = name.removeprefix("_")
        return name if plain in self.definitions else plain

    def _format_body(self, node: Tree[Token] | Token, context: str = "") -> str:
        writers: dict[str, Callable[[Tree[Token]], str]] = {
            "name": lambda n: self._format_reference(str(n.children[0])),
            "literal": lambda n: _format_literal(str(n.children[0])),
            "maybe": lambda n: f"{self._format_body(n.children[0], 'item')}?",
            "expr": lambda n: f"{self._format_body(n.children[0], 'item')}{n.children[1]}",
            "expansion": lambda n: " ".join(self._format_body(c, "sequence") for c in n.children),
            "expansions": lambda n: " | ".join(self._format_body(c, "choice") for c in n.children),
        }
        assert isinstance(node, Tree)
        text = writers[node.data](node)
        is_compound = node.data in ("expansion", "expansions") and len(node.children) > 1
        needs_parentheses = is_compound and (
            context == "item" or (context and node.data == "expansions")
        )
        return f"({text})" if needs_parentheses else text

    def _format_reference(self, name: str) -> str:
        return self.inlined_text.get(name) or self._format_name(name)


def _constant_text(body: Tree[Token] | Token) -> str | None:
    """The text of a terminal that is always the same, else None."""
    if not isinstance(body, Tree) or body.data != "literal":
        return None
    text = str(body.children[0])
    keyword = _KEYWORD.fullmatch(text)
    if keyword:
        return f'"{keyword[1]}"'
    return text if text.startswith('"') else None


def _format_literal(text: str) -> str:
    return text if text.startswith('"') else f"/* {text} */"


if __name__ == "__main__":
    print(ebnf(), end="")
