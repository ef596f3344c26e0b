"""Explains characters that look like those of the language, or like nothing at all."""

from __future__ import annotations

import unicodedata

from netdsl.errors import Diagnostic, Source, Span

_WRITTEN = {
    "×": "a size is `3x3`, a product `4*c`",
    "≥": "write `>=`",
    "≤": "write `<=`",
    "≠": "write `!=`",
    "≈": "write `~`: equal within one per cent",
    "≃": "write `~`: equal within one per cent",
    "±": "write `~`: equal within one per cent",
    "&": "write `and`",
    "?": "write `a if condition else b`",
    "…": "three dots have no meaning here; write out what they stand for",
}


def explain_character(source: Source, position: int) -> Diagnostic | None:
    """Explains the character at `position`, where no token begins; None if it is one of the
    language's own characters."""
    character = source.text[position]
    if character in '(){}[]|,;:=+-*/%<>~!."#_ \t\n\f' or (
        character.isalnum() and character.isascii()
    ):
        return None
    if is_invisible(character):
        return _explain_invisible(source, position)
    shown = "&&" if source.text.startswith("&&", position) else character
    span = Span(source, position, position + len(shown))
    about = shown if shown.isascii() else describe_character(character)
    quoted = f"`{shown}`" if shown.isascii() else f"`{shown}` ({about})"
    return Diagnostic(
        f"{quoted} has no meaning in a .net file", span, _suggest_ascii(source.text, position)
    )


def is_invisible(character: str) -> bool:
    """Whether a character is a space, a control or a format character."""
    return unicodedata.category(character)[0] in "ZC"


def describe_character(character: str) -> str:
    """The code point and the name of a character, such as `U+2013 EN DASH`."""
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X} {name}".rstrip()


def describe_foreign_letters(name: str) -> str | None:
    """Says which letters of a name are not ASCII: some look exactly like those that are."""
    foreign = dict.fromkeys(c for c in name if not c.isascii())
    if not foreign or not any(c.isascii() and c.isalpha() for c in name):
        return None
    listed = ", ".join(f"`{c}` is {describe_character(c)}" for c in list(foreign)[:3])
    return f"in `{name}`, {listed}"


def _explain_invisible(source: Source, position: int) -> Diagnostic:
    character = source.text[position]
    is_space = unicodedata.category(character) == "Zs"
    kind = "a non-standard space" if is_space else "an invisible character"
    help = "replace it with an ordinary space" if is_space else "delete it, and type the word again"
    if character == "\r":
        kind, help = "a carriage return without a line feed", "end lines with a line feed (LF)"
    span = Span(source, position, position + 1)
    return Diagnostic(f"{kind} ({describe_character(character)})", span, help)


def _suggest_ascii(text: str, position: int) -> str | None:
    """What to write instead of a character that resembles another."""
    character = text[position]
    if character in _WRITTEN:
        return _WRITTEN[character]
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    if "ARROW" in name:
        return "write `->`"
    if category == "Pd" or name == "MINUS SIGN":
        following = text[position + 1 : position + 2]
        if following == ">" or following.isdigit():
            return "write `->`" if following == ">" else "write `-`"
        return "write `-`, or `->` for a chain"
    if "QUOTATION MARK" in name:
        return 'write `"`'
    plain = unicodedata.normalize("NFKC", character)
    return f"write `{plain}`" if plain.isascii() and len(plain) == 1 else None
