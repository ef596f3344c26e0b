"""Builds the documentation as a site: `python -m docs.tools.site build -o site`, or `serve`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from docs.tools.navigation import NAVIGATION
from docs.tools.staging import ROOT, SitePages, address, write_if_new

STYLE = Path(__file__).with_name("site.css")
WORKER = Path(__file__).with_name("worker.js")
FOREIGN_WORKER = "https://unpkg.com/iframe-worker/shim"
_FORM = Path(__file__).with_name("zensical.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the documentation as a site.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="writes the site to a folder")
    build.add_argument("-o", dest="out", type=Path, default=Path("site"), help="the folder")
    serve = commands.add_parser("serve", help="shows the site in a browser and follows changes")
    serve.add_argument("--address", default="localhost:8000", help="host and port")
    options = parser.parse_args()
    if find_spec("zensical") is None:
        raise SystemExit("zensical is missing: pip install -e '.[docs]'")
    if options.command == "build":
        build_site(options.out)
    else:
        serve_site(options.address)


def build_site(out: Path) -> str:
    """Writes the site to `out`, which it replaces. Returns what the builder printed; a warning is
    an error."""
    if out.exists() and not (out / "404.html").exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is a folder of something else: choose another with -o")
    with TemporaryDirectory() as folder:
        work = Path(folder)
        stage_site(work, searches_folder=True)
        command = [*_zensical("build"), "--strict", "--clean"]
        done = subprocess.run(command, cwd=work, env=_environment(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        _use_own_worker(work / "site")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(work / "site", out)
    return done.stdout + done.stderr


def _use_own_worker(site: Path) -> None:
    """Replaces the one script that the builder's offline search takes from another host."""
    for page in site.rglob("*.html"):
        root = os.path.relpath(site, page.parent)
        page.write_text(page.read_text().replace(FOREIGN_WORKER, f"{root}/{WORKER.name}"))


def serve_site(host: str) -> None:
    """Serves the site until interrupted, and stages again what changes."""
    with TemporaryDirectory() as folder:
        work = Path(folder)
        stage_site(work, searches_folder=False)
        server = subprocess.Popen([*_zensical("serve"), "-a", host], cwd=work, env=_environment())
        try:
            while server.poll() is None:
                time.sleep(1)
                stage_site(work, searches_folder=False)
        except KeyboardInterrupt:
            server.terminate()
            server.wait()


def stage_site(work: Path, searches_folder: bool) -> None:
    """Lays out the pages and the configuration. Without a server, the search needs the builder's
    plugin `offline`, whose script `build_site` replaces."""
    pages = work / "pages"
    pages.mkdir(parents=True, exist_ok=True)
    SitePages(pages).add_all()
    for asset in (STYLE, WORKER):
        write_if_new(pages / asset.name, asset.read_text())
    nav = f"[project]\nnav = {_navigation()}\n"
    form = _FORM.read_text().replace("[project]\n", nav, 1)
    offline = f"\n[project.plugins.offline]\nenabled = {json.dumps(searches_folder)}\n"
    write_if_new(work / "zensical.toml", form + offline)


def _navigation() -> str:
    """The table as TOML: a page for each section of one, else a list with the pages' own titles,
    where the page with the title of the section is the overview."""
    entries = []
    for section in NAVIGATION:
        pages = [address(page) for page in section.pages]
        overview = f"{section.title.lower()}.md"
        listed = [{"Overview": page} if page == overview else page for page in pages]
        entries.append(_inline_table(section.title, pages[0] if len(pages) == 1 else listed))
    return "[\n" + ",\n".join(entries) + "\n]"


def _inline_table(key: str, value: str | list[str | dict[str, str]]) -> str:
    if isinstance(value, str):
        return f"{{ {json.dumps(key)} = {json.dumps(value)} }}"
    inner = [
        json.dumps(page) if isinstance(page, str) else _inline_table(*next(iter(page.items())))
        for page in value
    ]
    return f"{{ {json.dumps(key)} = [{', '.join(inner)}] }}"


def _zensical(command: str) -> list[str]:
    return [sys.executable, "-m", "zensical", command]


def _environment() -> dict[str, str]:
    """The builder imports the lexer from the repository."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    main()
