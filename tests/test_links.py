"""Every relative link, anchor and picture of the Markdown pages is there."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

from docs.tools.markdown import (
    PageLink,
    find_anchors,
    find_headings,
    find_links,
    link_pictures,
    mask_code,
    slug,
)
from tests.conftest import ROOT


def list_pages() -> list[str]:
    """The Markdown files of the repository, from git where there is one."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return sorted(name for name in done.stdout.split("\n") if name and (ROOT / name).exists())
    folders = ("docs", "models", "grammar", "benchmarks")
    found = [*ROOT.glob("*.md"), *(p for f in folders for p in (ROOT / f).rglob("*.md"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


PAGES = list_pages()


@cache
def anchors(path: Path) -> set[str]:
    return find_anchors(path.read_text())


def fault(page: Path, link: PageLink) -> str | None:
    """What is wrong with a link, or None."""
    if link.is_image and not link.alt.strip():
        return "an image without alternative text"
    if link.is_external:
        return None
    path, _, anchor = link.target.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return "no such file"
    if anchor and target.suffix == ".md" and anchor not in anchors(target):
        return "no such heading"
    return None


@pytest.mark.parametrize("name", PAGES)
def test_the_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = find_links(page.read_text())
    faults = {link.target: found for link in links if (found := fault(page, link))}
    assert not faults


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_title(name: str) -> None:
    text = (ROOT / name).read_text()
    titles = [line for line in mask_code(text).split("\n") if line.startswith("# ")]
    assert len(titles) == 1


PAGE = """# A page

[a](b.md), [`c` of](d.md#e "title") and
![a picture
of two lines](f.png), [![badge](g.svg)](h.md).

    [code](i.md)

`[no](link)` and ``[no`](link)``

```sh
# no heading
[no](link)
```

<img src="j.png" alt="text"> <a href="k.html">k</a> <!-- [no](link) -->

[later]: l.md
[^note]: A note.

## `conv` of x, y / z: *really*?
"""


def test_links_are_found() -> None:
    found = find_links(PAGE)
    assert [link.target for link in found] == [
        *("b.md", "d.md#e", "f.png", "g.svg", "h.md", "i.md", "j.png", "k.html", "l.md"),
    ]
    assert [link.alt for link in found if link.is_image] == [
        "a picture\nof two lines",
        "badge",
        "text",
    ]
    assert all(PAGE[link.start : link.end] == link.target for link in found)


def test_pictures_become_links() -> None:
    text = "![a\n`b`](c.svg) and [![d](e.svg)](f.md), `![g](h.svg)`"
    linked = "[![a\n`b`](c.svg)](c.svg) and [![d](e.svg)](f.md), `![g](h.svg)`"
    assert link_pictures(text) == linked
    assert link_pictures(linked) == linked
    assert [link.target for link in find_links(linked)] == ["c.svg", "c.svg", "e.svg", "f.md"]


def test_headings_are_found() -> None:
    assert find_headings(PAGE) == ["A page", "conv of x, y / z: really?"]


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Attribution: saliency and Grad-CAM", "attribution-saliency-and-grad-cam"),
        ("x, y / z: really?", "x-y--z-really"),
        ("max_pool and Größe", "max_pool-and-größe"),
    ],
)
def test_slugs_are_those_of_hosts(heading: str, expected: str) -> None:
    assert slug(heading) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](none.md)", "no such file"),
        ("[a](ir.md#none)", "no such heading"),
        ("[a](#none)", "no such heading"),
        ("[a](../../secret.md)", "no such file"),
        ("![](gallery/lenet.svg)", "an image without alternative text"),
        ("[a](ir.md#names)", None),
        ("[a](https://example.org/none)", None),
    ],
)
def test_faults_are_found(text: str, expected: str | None) -> None:
    page = ROOT / "docs" / "architecture.md"
    assert fault(page, find_links(text)[0]) == expected
