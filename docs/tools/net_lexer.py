"""Colours of `.net` code on the site: a Pygments lexer, and the Markdown extension that adds it."""

from __future__ import annotations

import re
from typing import Any

from markdown.extensions import Extension
from pygments.lexer import RegexLexer, words
from pygments.lexers import LEXERS
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from netdsl.language.parse import load_grammar
from netdsl.layers import LAYERS

KEYWORDS = tuple(sorted(set(re.findall(r"/(\w+)\\b/", load_grammar()))))
"""The words that the grammar reserves."""


class NetLexer(RegexLexer):
    """Tokens of a .net file, without its syntax: a name before `(` is a function."""

    name = "netdsl"
    aliases = ("net",)
    filenames = ("*.net",)
    tokens = {  # noqa: RUF012 (Pygments' own form)
        "root": [
            (r"\s+", Whitespace),
            (r"#[^\n]*", Comment.Single),
            (r'"(?:[^"\\\n]|\\.)*"', String),
            (r"(?<!\.)\b\w+(?=:(?!:))", Name.Label),
            (words(KEYWORDS, prefix=r"(?<!\.)\b", suffix=r"\b(?!\s*=[^=])"), Keyword),
            (r"\b(?:yes|no)\b", Keyword.Constant),
            (r"\d+(?:x\d+)+\b", Number),
            (r"\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?", Number),
            (r"\w+(?=\()", Name.Function),
            (r"\w+(?=\s*=[^=])", Name.Attribute),
            (words(tuple(LAYERS), prefix=r"(?<!\.)\b", suffix=r"\b"), Name.Function),
            (r"\w+", Name),
            (r"->|[-+*/%=<>!~|]+", Operator),
            (r"[{}()\[\],.;:]", Punctuation),
        ]
    }


class NetCode(Extension):
    """Makes ```` ```net ```` known to Markdown's highlighting."""

    def extendMarkdown(self, md: Any) -> None:
        LEXERS["NetLexer"] = (__name__, NetLexer.name, NetLexer.aliases, NetLexer.filenames, ())


def makeExtension(**settings: Any) -> NetCode:
    return NetCode(**settings)


__all__ = ["NetLexer"]  # what Pygments takes from the module
