"""Errors, their locations and how they are reported: Span, Diagnostic, NetError."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import accumulate

from netdsl.foreign_words import (
    find_advice,
    find_counterpart,
    find_near_counterpart,
    is_without_counterpart,
    normalize_word,
)
from netdsl.limits import MAX_KNOWN_NAMES, MAX_MESSAGE_CHARACTERS, MAX_NAME_CHARACTERS, MAX_NOTES
from netdsl.text_escaping import escape_line, escape_text, quote_name


@dataclass(frozen=True, eq=False)
class Source:
    """A source text and its displayed name. `folder` is the folder of its file; None for a text
    that is no file."""

    name: str
    text: str
    folder: str | None = None

    @cached_property
    def _lines(self) -> list[str]:
        return self.text.split("\n")

    @cached_property
    def _line_starts(self) -> list[int]:
        """The offset at which each line begins."""
        return [0, *accumulate(len(line) + 1 for line in self._lines[:-1])]

    def position(self, offset: int) -> tuple[int, int]:
        """Returns the line and column of a character offset, both counted from 1."""
        number = bisect_right(self._line_starts, offset)
        return number, offset - self._line_starts[number - 1] + 1

    def line(self, number: int) -> str:
        return self._lines[number - 1] if number <= len(self._lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of a source: characters from `start` up to, but not including, `end`."""

    source: Source
    start: int
    end: int

    @property
    def position(self) -> tuple[int, int]:
        return self.source.position(self.start)

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def excerpt(self, max_length: int = 40) -> str:
        """The beginning of the text on one line."""
        text = " ".join(self.text[: max_length + 1].split())
        return text if self.end - self.start <= max_length else f"{text[:max_length]} ..."

    def __str__(self) -> str:
        line, column = self.position
        return f"{self.source.name}:{line}:{column}"

    def format_relative_to(self, other: Span | None) -> str:
        """Formats line and column, with the file name if it differs from that of `other`."""
        if other is None or other.source is not self.source:
            return str(self)
        line, column = self.position
        return f"{line}:{column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem: a message, its location, a suggested fix, and explanatory notes."""

    message: str
    span: Span | None = None
    help: str | None = None
    notes: tuple[str, ...] = ()
    lint: str | None = None
    """The name of the lint that issued the warning; None for an error."""

    def __post_init__(self) -> None:
        """Keeps messages short, however long a name or list they quote."""
        object.__setattr__(self, "message", shorten(self.message))
        object.__setattr__(self, "help", shorten(self.help) if self.help else self.help)
        object.__setattr__(self, "notes", tuple(map(shorten, self.notes[:MAX_NOTES])))

    def render(self) -> str:
        """Formats the diagnostic for people, with the source line and the location underlined."""
        kind = f"warning[{self.lint}]" if self.lint else "error"
        parts = [f"{kind}: {escape_text(self.message)}"]
        if self.span is not None:
            parts += [f"  {escape_line(str(self.span))}", *_make_excerpt(self.span)]
        parts += [f"  {escape_text(note)}" for note in self.notes]
        if self.help is not None:
            parts.append(f"help: {escape_text(self.help)}")
        return "\n".join(parts)


def shorten(text: str, max_length: int = MAX_MESSAGE_CHARACTERS) -> str:
    """Cuts the middle out of a text that is too long to read."""
    if len(text) <= max_length:
        return text
    return f"{text[: max_length * 3 // 4]} ... {text[-max_length // 5 :]}"


_MAX_EXCERPT_WIDTH = 120


def _make_excerpt(span: Span) -> list[str]:
    """Returns the line of a span with the span underlined, as wide as it is displayed."""
    number, column = span.position
    line = span.source.line(number).expandtabs(1)
    begin = column - 1
    first = max(0, begin - _MAX_EXCERPT_WIDTH // 2) if len(line) > _MAX_EXCERPT_WIDTH else 0
    last = first + _MAX_EXCERPT_WIDTH
    end = min(last, begin + span.end - span.start)
    before = ("…" if first else "") + escape_line(line[first + bool(first) : begin])
    marked = escape_line(line[begin:end])
    shown = (before + marked + escape_line(line[end:last])).rstrip()
    width = max(1, min(len(marked), len(shown) - len(before)))
    gutter = " " * len(str(number))
    return [f"    {number} | {shown}", f"    {gutter} | {' ' * len(before)}{'^' * width}"]


class NetError(Exception):
    """Invalid input of any kind; carries every diagnostic that was found, in the order of the
    text. As a string, it shows all of them with their lines and what to do."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)  # a copy, as pickle makes one, is made of these
        self.diagnostics = diagnostics

    def __str__(self) -> str:
        return self.render().removeprefix("error: ")

    @property
    def message(self) -> str:
        """The messages alone, a line each."""
        return "\n".join(d.message for d in self.diagnostics)

    def render(self) -> str:
        return "\n\n".join(d.render() for d in self.diagnostics)

    def with_default_span(self, span: Span | None) -> NetError:
        """Returns the same error, located at `span` where a diagnostic has no location of its
        own."""
        return type(self)(*(d if d.span else replace(d, span=span) for d in self.diagnostics))


def fail(
    message: str,
    span: Span | None = None,
    *,
    help: str | None = None,
    notes: Sequence[str] = (),
) -> NetError:
    """Returns a NetError with one diagnostic, for the caller to raise."""
    return NetError(Diagnostic(message, span, help, tuple(notes)))


_MAX_LISTED_NAMES = 40
_PYTHON_LITERALS = {"true": "yes", "false": "no", "none": "no", "on": "yes", "off": "no"}


def suggest_name(
    name: str,
    known: Iterable[str],
    label: str = "",
    kinds: Collection[str] = (),
    taken: Collection[str] = (),
) -> str | None:
    """Returns a help line that suggests the known name closest to `name`, or lists the known names
    if they are few. `kinds` are what a foreign word may stand for, the narrowest first: of such
    words, only near spellings are suggested. A name in `taken` is not suggested, because it is
    given already."""
    names = sorted({n for n in known if len(n) <= MAX_NAME_CHARACTERS})
    found = suggest_alias(name, names, kinds, taken)
    is_foreign = any(is_without_counterpart(name, kind) for kind in kinds)
    if found is None and not is_foreign:
        near = [n for n in names if n not in taken]
        found = suggest_word(name, near) if kinds else suggest_spelling(name, near)
    if found is None and 0 < len(names) <= _MAX_LISTED_NAMES:
        start = "it has no counterpart here; " if is_foreign else ""
        return f"{start}{label or 'known names'}: {', '.join(map(quote_name, names))}"
    return found


def suggest_alias(
    name: str, known: Iterable[str], kinds: Collection[str] = (), taken: Collection[str] = ()
) -> str | None:
    """Returns a help line for a name with different capitalization, or for another framework's
    name."""
    names = {normalize_word(n): n for n in known}
    literal = _PYTHON_LITERALS.get(name.lower())
    if literal and literal not in names:
        return f"write `{literal}`"
    found = names.get(normalize_word(name)) or find_counterpart(name, names)
    if found is None:
        return find_advice(name, kinds)
    if found in taken:
        return f"`{found}` is given already; remove `{name}`"
    return f"did you mean `{found}`?"


_SAME_WORD, _NEAR_WORD, _SIMILAR_WORD = 0.85, 0.72, 0.6
"""Similarities, as difflib counts them, of a word to its misspelling, to one with two letters
wrong, and to a word like it."""


def suggest_spelling(name: str, known: Iterable[str], cutoff: float = _SIMILAR_WORD) -> str | None:
    """Returns a help line that suggests the known name with the closest spelling, at least as
    similar as `cutoff`, unless there are too many to search."""
    names_by_lowercase = {n.lower(): n for n in known if len(n) <= MAX_NAME_CHARACTERS}
    if len(name) > MAX_NAME_CHARACTERS or len(names_by_lowercase) > MAX_KNOWN_NAMES:
        return None
    word = name.lower()
    found = get_close_matches(word, sorted(names_by_lowercase), n=1, cutoff=_SAME_WORD)
    found = found or [max(_names_within(word, names_by_lowercase), key=len, default="")]
    if not found[0]:
        found = get_close_matches(word, sorted(names_by_lowercase), n=1, cutoff=cutoff)
    return f"did you mean `{names_by_lowercase[found[0]]}`?" if found else None


def suggest_word(name: str, known: Iterable[str]) -> str | None:
    """Returns a help line that suggests the known name with a near spelling, or what a misspelt
    word of another framework is called here."""
    names = list(known)
    if (same := suggest_spelling(name, names, _SAME_WORD)) or len(name) > MAX_NAME_CHARACTERS:
        return same
    if swapped := next((n for n in names if _is_transposition(name.lower(), n.lower())), None):
        return f"did you mean `{swapped}`?"
    foreign = find_near_counterpart(name, {normalize_word(n): n for n in names})
    return f"did you mean `{foreign}`?" if foreign else suggest_spelling(name, names, _NEAR_WORD)


def _is_transposition(word: str, name: str) -> bool:
    """Whether two neighbouring letters of a name are swapped, as in `sdg`."""
    differing = [i for i, (a, b) in enumerate(zip(word, name, strict=False)) if a != b]
    if len(word) != len(name) or len(differing) != 2 or differing[1] - differing[0] != 1:
        return False
    i, j = differing
    return word[i] == name[j] and word[j] == name[i]


def _names_within(word: str, known: Iterable[str]) -> Iterator[str]:
    """The known names that a compound begins or ends with, as `cosine` of `cosine_restarts`."""
    return (n for n in known if len(n) > 3 and (word.startswith(f"{n}_") or word.endswith(f"_{n}")))


def internal_error(message: str) -> AssertionError:
    """A violated invariant inside netdsl itself, never the fault of the file's author."""
    return AssertionError(f"internal error: {message}")
