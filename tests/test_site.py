"""The documentation builds as a site without warnings, and the site is whole."""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import sys
from collections import Counter
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs.tools.navigation import NAVIGATION
from docs.tools.site import build_site
from docs.tools.staging import adapt_page, address
from tests.conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
LISTED = [page for section in NAVIGATION for page in section.pages]


def test_every_page_is_in_the_navigation_once() -> None:
    docs = (path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    others = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md")
    assert Counter(LISTED) == Counter([*docs, *others, "grammar/README.md"])


RAW = re.compile(r"\]\(|`|^\s*([-*#]|\d\.) |\*\*", re.MULTILINE)
"""What Markdown leaves in a text that it did not understand."""


class Html(HTMLParser):
    """What a built page contains: anchors, links, assets, and text that Markdown should have
    rendered."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.raw: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attrs}
        self.ids |= {named[key] for key in ("id", "name") if key in named}
        if tag in ("p", "code", "script", "style", "li", "td", "a"):
            self._open.append(tag)
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        elif "href" in named and named.get("rel") not in ("canonical", "next", "prev"):
            self.assets.append(named["href"])
        self.assets += [named[key] for key in ("src", "srcset", "poster") if key in named]

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        tags = set(self._open)
        if "code" in tags:
            if "td" in tags and r"\|" in data:
                self.raw.append(data)
        elif tags & {"p", "li", "td"} and "a" not in tags and RAW.search(data):
            self.raw.append(data)


def is_foreign(target: str) -> bool:
    return bool(urlsplit(target).scheme or urlsplit(target).netloc)


def faults(pages: dict[str, Html], files: set[str]) -> dict[str, list[str]]:
    """Links and assets of the pages that lead nowhere or to another host, and raw Markdown."""
    found: dict[str, list[str]] = {}
    for name, page in pages.items():
        foreign = [f"asset of another host: {asset}" for asset in page.assets if is_foreign(asset)]
        targets = [*page.links, *page.assets]
        broken = [t for t in targets if not is_foreign(t) and not leads(name, t, pages, files)]
        raw = [f"Markdown: {text.strip()}" for text in page.raw]
        if wrong := [*foreign, *(f"broken: {target}" for target in broken), *raw]:
            found[name] = wrong
    return found


def leads(name: str, target: str, pages: dict[str, Html], files: set[str]) -> bool:
    """Whether a link of a page leads to a file of the site, and its anchor to an element."""
    parts = urlsplit(target)
    path = name
    if parts.path:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
    if path == ".":
        path = "index.html"
    if path not in files:
        return False
    return not parts.fragment or path not in pages or unquote(parts.fragment) in pages[path].ids


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; without the builder, tests of it are skipped."""
    if find_spec("zensical") is None:
        pytest.skip("the site needs zensical: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("built") / "site"
    printed = build_site(folder)
    assert "warning" not in printed.lower()
    return folder


def test_the_site_is_whole(site: Path) -> None:
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    pages = {n: Html((site / n).read_text()) for n in files if n.endswith(".html")}
    del pages["404.html"]  # its links start at the root of a server
    found = faults(pages, files)
    assert not found, json.dumps(found, indent=2)
    assert {address(page).removesuffix(".md") + ".html" for page in LISTED} <= files

    styles = "".join((site / name).read_text() for name in files if name.endswith(".css"))
    assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", styles)
    assert 'class="nf"' in (site / "models" / "resnet.net.html").read_text()


def test_the_search_works_from_a_folder_without_another_host(site: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no Chromium; on Debian: apt install chromium")
    requests: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((site / "models" / "resnet.net.html").as_uri())
        tab.click("button.md-search__button")
        tab.keyboard.type("rewrite_graph", delay=20)
        hit = tab.locator("a", has_text="rewrite_graph").first
        hit.wait_for()
        hit.click()
        tab.wait_for_url("**/add-a-pass.html**")
        browser.close()
    assert all(url.startswith("file:") for url in requests)


def test_a_folder_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(SystemExit, match="something else"):
        build_site(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_what_is_wrong_with_a_site_is_found() -> None:
    pages = {
        "index.html": Html(
            '<h1 id="top">x</h1><a href="#top">ok</a><a href="#none">no</a>'
            '<a href="a/b.html#c">ok</a><a href="a/none.html">no</a>'
            '<a href="https://example.org">ok</a><script src="//example.org/x.js"></script>'
        ),
        "a/b.html": Html(
            '<p id="c"><a href="../index.html">ok</a> text\n- item</p><p>`code` and <b>b</b></p>'
            '<pre><code>- [a](b)</code></pre><td><code>a\\|b</code></td><img src="p.png">'
        ),
    }
    assert faults(pages, {*pages}) == {
        "index.html": [
            "asset of another host: //example.org/x.js",
            "broken: #none",
            "broken: a/none.html",
        ],
        "a/b.html": [
            "broken: p.png",
            "Markdown: text\n- item",
            "Markdown: `code` and",
            "Markdown: a\\|b",
        ],
    }


def test_pages_are_adapted_to_the_builder() -> None:
    text = "a\n- b\n  c\n- d\n\n```\ne\n- f\n```\n\n| `g\\|h` | i\\|j |\n<details>\n"
    adapted = adapt_page(text)
    assert adapted == (
        'a\n\n- b\n  c\n- d\n\n```\ne\n- f\n```\n\n| `g|h` | i\\|j |\n<details markdown="1">\n'
    )
    assert adapt_page(adapted) == adapted


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("README.md", "index.md"),
        ("docs/training.md", "training.md"),
        ("docs/gallery/README.md", "gallery/index.md"),
        ("docs/gallery/lenet.svg", "gallery/lenet.svg"),
        ("models", "models/index.md"),
        ("models/lecture/depth.net", "models/lecture/depth.net.md"),
        ("benchmarks/results", "benchmarks/results/index.md"),
        ("LICENSE", "LICENSE.md"),
        ("", "index.md"),
    ],
)
def test_every_file_has_an_address(path: str, expected: str) -> None:
    assert address(path) == expected
