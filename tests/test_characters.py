"""Characters that are not the language's own are named, and what resembles one is replaced."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdsl.errors import NetError
from netdsl.language.parse import parse
from netdsl.language.program import decode_text
from netdsl.language.single_quotes import double_quotes

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


@given(st.text(st.sampled_from("ab'\"#\\\n ")))
def test_doubling_single_quotes_moves_nothing(text: str) -> None:
    doubled = double_quotes(text)
    assert len(doubled) == len(text)
    assert [c == "\n" for c in doubled] == [c == "\n" for c in text]
    if "'" not in text:
        assert doubled == text


@settings(max_examples=10)  # Lark takes long to say what could have followed
@given(st.from_regex(r"[a-z.*/]{1,8}", fullmatch=True), st.sampled_from(["} x", "a: 3", "lr = 5%"]))
def test_single_quotes_hide_no_other_error(word: str, wrong: str) -> None:
    """The errors of a text with single quotes are theirs and those of the text with double ones."""
    text = f"data {{ source = folder('{word}') }}\ntrain {{ init = '{word}', {wrong} }}\n"
    with pytest.raises(NetError) as single:
        parse(text)
    with pytest.raises(NetError) as double:
        parse(text.replace("'", '"'))
    other = [d for d in single.value.diagnostics if "quoted" not in d.message]
    assert len(single.value.diagnostics) == len(other) + 2
    assert [(d.message, d.help) for d in other] == [
        (d.message, d.help) for d in double.value.diagnostics
    ]
