"""Links and headings of a Markdown page: what the site rewrites and the tests check."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FENCED = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^ *\2`*~* *$", re.MULTILINE | re.DOTALL)
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LABEL = r"(?:[^\[\]]|\[[^\[\]]*\](?:\([^()]*\))?)*"
_INLINE = re.compile(rf"(!?)\[(?=({_LABEL})\]\()\2\]\((<?)([^()\s<>]+)", re.DOTALL)
_PICTURE = re.compile(rf"(?<!\[)!\[(?:{_LABEL})\]\(([^()\s<>]+)\)", re.DOTALL)
_DEFINITION = re.compile(r"^ {0,3}(\[(?!\^)[^\]\n]+\]: +)(\S+)", re.MULTILINE)
_ATTRIBUTE = re.compile(r"<(\w+)\b[^<>]*?\b(?:src|href)=\"([^\"]+)\"[^<>]*>", re.DOTALL)
_ALT = re.compile(r"\balt=\"([^\"]+)\"")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_ID = re.compile(r"<\w+\b[^<>]*?\b(?:id|name)=\"([^\"]+)\"")


@dataclass(frozen=True)
class PageLink:
    """One link or image of a page: `target` is `text[start:end]`, `alt` the text of an image."""

    target: str
    start: int
    end: int
    is_image: bool
    alt: str

    @property
    def is_external(self) -> bool:
        return re.match(r"[a-z][a-z0-9+.-]*:", self.target) is not None


def mask_code(text: str) -> str:
    """The text with code and comments blanked, so that positions stay those of the text."""
    blank: Callable[[re.Match[str]], str] = lambda m: re.sub(r"[^\n]", " ", m[0])
    for pattern in (_FENCED, _COMMENT):
        text = pattern.sub(blank, text)
    # A code span ends with its paragraph.
    paragraphs = re.split(r"(\n[ \t]*\n)", text)
    return "".join(_CODE_SPAN.sub(lambda m: re.sub(r"[^\n]", "x", m[0]), p) for p in paragraphs)


def find_links(text: str) -> list[PageLink]:
    """Every link and image, in Markdown or HTML, in the order of the page."""
    return sorted(_walk_links(text, mask_code(text)), key=lambda link: link.start)


def _walk_links(text: str, masked: str) -> Iterator[PageLink]:
    for m in _INLINE.finditer(masked):
        label = text[m.start(2) : m.end(2)]
        yield PageLink(m[4], m.start(4), m.end(4), bool(m[1]), label if m[1] else "")
        for inner in _INLINE.finditer(masked, m.start(2), m.end(2) + len(m[0])):
            if m.start(2) <= inner.start() < m.end(2):  # an image that is a link
                yield PageLink(inner[4], inner.start(4), inner.end(4), bool(inner[1]), inner[2])
    for m in _DEFINITION.finditer(masked):
        yield PageLink(m[2], m.start(2), m.end(2), False, "")
    for m in _ATTRIBUTE.finditer(masked):
        alt = _ALT.search(m[0])
        yield PageLink(m[2], m.start(2), m.end(2), m[1] == "img", alt[1] if alt else "")


def replace_targets(text: str, replace: Callable[[PageLink], str]) -> str:
    """The page with another target for each link."""
    parts, end = [], 0
    for link in find_links(text):
        parts += [text[end : link.start], replace(link)]
        end = link.end
    return "".join([*parts, text[end:]])


def link_pictures(text: str) -> str:
    """The page with each picture as a link to its file, which a reader can enlarge."""
    parts, end = [], 0
    for m in _PICTURE.finditer(mask_code(text)):
        parts += [text[end : m.start()], f"[{text[m.start() : m.end()]}]({m[1]})"]
        end = m.end()
    return "".join([*parts, text[end:]])


def find_headings(text: str) -> list[str]:
    """The headings of a page, without their markup."""
    masked = mask_code(text)
    return [_plain(text[m.start(2) : m.end(2)]) for m in _HEADING.finditer(masked)]


def _plain(heading: str) -> str:
    heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[`*]|<[^>]+>", "", heading)


def slug(heading: str) -> str:
    """The anchor of a heading: that of repository hosts, to which the site is configured."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def find_anchors(text: str) -> set[str]:
    """What a link may name after `#`. Hosts and the site number repeated headings differently:
    only the first counts."""
    return {slug(heading) for heading in find_headings(text)} | set(_ID.findall(mask_code(text)))
