"""Reads single quotes as double ones, so that they hide no other error, and explains them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from netdsl.errors import Diagnostic, Source, Span

_TEXT = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|#[^\n]*|(?P<quoted>'(?P<inside>[^'\n]*)')")
_PLAIN_VALUE = re.compile(r"\d+(x\d+)+|\d[\d_]*(\.\d+)?([eE][+-]?\d+)?")
_WORD = re.compile(r"(?!\d)\w+")
_KEYS_OF_TEXTS = ("except", "file", "path", "place")
"""Parameters whose words are quoted."""


def double_quotes(text: str) -> str:
    """The text with double quotes for single ones, at the same places."""
    return _TEXT.sub(_double, text)


def explain_single_quotes(source: Source, start: int, end: int) -> Iterator[Diagnostic]:
    """Yields an error for each text in single quotes between `start` and `end`."""
    for m in _TEXT.finditer(source.text, start, end):
        if m["quoted"]:
            span = Span(source, *m.span())
            help = _suggest_value(source.text[max(0, m.start() - 100) : m.start()], m["inside"])
            yield Diagnostic('strings are quoted with `"`', span, help)


def _double(m: re.Match[str]) -> str:
    if not m["quoted"]:
        return m[0]
    return '"' + re.sub(r'["\\]', "_", m["inside"]) + '"'


def _suggest_value(before: str, inside: str) -> str:
    """What to write for a text in single quotes: a number or a word needs no quotes, unless the
    word is one of the places and paths that do."""
    if _PLAIN_VALUE.fullmatch(inside):
        return f"write `{inside}`, without quotes"
    key = re.search(r"(\w+)\s*=\s*$", before)
    if _WORD.fullmatch(inside) and key and key[1] not in _KEYS_OF_TEXTS:
        return f"write `{inside}`, without quotes"
    escaped = re.sub(r'(["\\])', r"\\\1", inside)
    return f'write `"{escaped}"`'
