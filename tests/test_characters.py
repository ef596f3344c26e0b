"""Characters that are not the language's own are named, and what resembles one is replaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import decode_text

TEXT = "net a {{\n  input(8x8x1){}-> relu\n}}\n"


@given(st.characters(exclude_categories=["Cs", "L", "M", "N"]))
def test_a_foreign_character_is_named_by_its_code_point(character: str) -> None:
    if character.isascii():
        return
    with pytest.raises(NetError) as found:
        parse(TEXT.format(character), "a.net")
    (diagnostic,) = found.value.diagnostics
    assert f"U+{ord(character):04X}" in diagnostic.message
    assert diagnostic.span is not None
    assert diagnostic.span.start == TEXT.index("{}") - 1


@pytest.mark.parametrize(
    ("character", "instead"),
    [
        ("–", "`->`"),
        ("\N{MINUS SIGN}", "`-`"),
        ("⇒", "`->`"),
        ("“", '`"`'),
        ("（", "`(`"),
        ("\N{NO-BREAK SPACE}", "ordinary space"),
        ("\N{ZERO WIDTH SPACE}", "delete"),
    ],
)
def test_what_resembles_a_character_of_the_language_is_replaced(
    character: str, instead: str
) -> None:
    after = ">" if character == "–" else ""
    with pytest.raises(NetError) as found:
        parse(f"net a {{\n  input(8x8x1) {character}{after} relu\n}}\n", "a.net")
    assert instead in (found.value.diagnostics[0].help or "")


def test_lines_may_end_with_carriage_returns_alone() -> None:
    text = "net a {\n  input(8x8x1)\n  relu\n}\n"
    assert decode_text(text.replace("\n", "\r").encode(), "a.net") == text
    assert decode_text(text.replace("\n", "\r\n").encode(), "a.net") == text.replace("\n", "\r\n")


def test_the_error_for_another_encoding_says_which_or_where() -> None:
    text = "net a {\n  # caf\N{LATIN SMALL LETTER E WITH ACUTE}\n}\n"
    with pytest.raises(NetError, match=r"UTF-16"):
        decode_text(text.encode("utf-16"), "a.net")
    with pytest.raises(NetError, match=r"line 2 has the byte 0xE9"):
        decode_text(text.encode("latin-1"), "a.net")
