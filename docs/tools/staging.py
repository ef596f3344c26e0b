"""The folder from which the site is built: the pages of the repository under their addresses.

A page links to files as they lie in the repository. Here, a README becomes the index of its folder,
`docs/` the root, a text file that a page links to a page with its text, and every link follows."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from docs.tools.markdown import PageLink, link_pictures, mask_code, replace_targets, slug
from docs.tools.navigation import NAVIGATION
from docs.tools.net_drawings import draw_first_net

ROOT = Path(__file__).resolve().parents[2]
COPIED = {".svg", ".png", ".jpg", ".gif", ".html"}
"""Suffixes of the files that a browser shows by itself."""
LANGUAGES = {".net": "net", ".py": "python", ".json": "json", ".toml": "toml", ".lark": "text"}
"""How the text of a file is highlighted; others are plain."""
_WIDE_TABLE = re.compile(r"^(\|[^|\n]*){8,}$", re.MULTILINE)
_ITEM = re.compile(r" {0,3}(?:[-*]|\d+\.) ")
_NO_CONTENTS = "---\nhide:\n  - toc\n---\n\n"
"""Gives wide tables and code the place of the page's table of contents."""


def address(path: str) -> str:
    """Where the site has a file of the repository, as a path in the staged folder."""
    file = ROOT / path
    if file.is_dir():
        return address(f"{path}/README.md") if path else "index.md"
    folder, name = posixpath.split(path)
    if name == "README.md":
        name = "index.md"
    elif file.suffix not in {".md", *COPIED}:
        name += ".md"
    return posixpath.join(folder, name).removeprefix("docs/")


def write_if_new(path: Path, text: str) -> None:
    """A file that stays the same keeps its time, so that a server does not build it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class SitePages:
    """Lays out the pages in a folder, and whatever they link to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._staged: set[str] = set()

    def add_all(self) -> None:
        """The pages of the navigation and the models."""
        for section in NAVIGATION:
            for page in section.pages:
                self.add(page)
        for net in sorted((ROOT / "models").rglob("*.net")):
            self.add(net.relative_to(ROOT).as_posix())

    def add(self, path: str) -> None:
        """One file or folder of the repository, once, and what it links to."""
        if path in self._staged:
            return
        self._staged.add(path)
        source = ROOT / path
        if source.is_dir():
            readme = f"{path}/README.md"
            if (ROOT / readme).exists():
                self.add(readme)
            else:
                self._write(readme, self._folder_page(path))
        elif source.suffix == ".md":
            self._write(path, adapt_page(source.read_text()))
        elif source.suffix in COPIED:
            target = self._make_folder(path)
            if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
                shutil.copyfile(source, target)
        else:
            target = self._make_folder(path)
            write_if_new(target, _NO_CONTENTS + self._text_page(path))

    def _make_folder(self, path: str) -> Path:
        target = self.folder / address(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _write(self, path: str, text: str) -> None:
        text = replace_targets(link_pictures(text), lambda link: self._follow(path, link))
        if _WIDE_TABLE.search(text):
            text = _NO_CONTENTS + text
        write_if_new(self._make_folder(path), text)

    def _follow(self, page: str, link: PageLink) -> str:
        """The target of a link on the site, after that is staged too."""
        path, hash_, anchor = link.target.partition("#")
        if link.is_external or not path:
            return link.target
        found = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)).removeprefix("./")
        found = "" if found == "." else found
        if found.startswith("..") or not (ROOT / found).exists():
            raise SystemExit(f"{page}: `{link.target}` is not in the repository")
        self.add(found)
        here = posixpath.dirname(address(page)) or "."
        return posixpath.relpath(address(found), here) + hash_ + anchor

    def _folder_page(self, path: str) -> str:
        names = sorted(p.name for p in (ROOT / path).iterdir() if p.is_file())
        return f"# {path}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)

    def _text_page(self, path: str) -> str:
        """A text file as a page; a net with its graph."""
        file = ROOT / path
        text = file.read_text().rstrip("\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
        code = f"{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{fence}"
        if file.suffix != ".net":
            return f"# {file.name}\n\n{code}\n"
        up = os.path.relpath(ROOT / "models", file.parent)
        origin = f"`{path}`, one of the [models]({up}/index.md)."
        drawing = draw_first_net(file)
        if drawing is None:
            return f"# {file.name}\n\n{origin}\n\n{code}\n"
        picture = self._make_folder(path).with_suffix(".svg")
        write_if_new(picture, drawing.svg)
        image = f"![Layers of the net {drawing.net} and their links]({picture.name})"
        graph = f"## Graph of `{drawing.net}`\n\n{link_pictures(image)}"
        see = f"See its [graph](#{slug(f'Graph of {drawing.net}')})."
        return f"# {file.name}\n\n{origin} {see}\n\n{code}\n\n{graph}\n"


def adapt_page(text: str) -> str:
    """A page as Python's Markdown wants it, where that differs from repository hosts."""
    text = re.sub(
        r"^<(details|div)(?=[ >])(?![^>]*\bmarkdown=)",
        r'<\1 markdown="1"',
        text,
        flags=re.MULTILINE,
    )
    return "".join(_adapt_lines(text))


def _adapt_lines(text: str) -> Iterator[str]:
    """Hosts want `\\|` in code of a table; Python's Markdown shows the backslash. It also needs
    an empty line between a paragraph and a list."""
    first, before = "", ""  # the lines of the paragraph: its first, the one before
    for line, masked in zip(text.splitlines(True), mask_code(text).splitlines(True), strict=True):
        if line.startswith("|"):
            line = re.sub(r"`[^`]+`", lambda m: m[0].replace(r"\|", "|"), line)
        starts_list = _ITEM.match(masked) and before.strip() and not _ITEM.match(first)
        yield "\n" + line if starts_list else line
        first = line if starts_list or not before.strip() else first
        before = line
