"""Counts the lines and characters of definitions of nets, without comments and blank lines.

    python -m docs.tools.count_lines FILE ...
    python -m docs.tools.count_lines models/resnet.net --only resnet50
    python -m docs.tools.count_lines models/lenet.net --only train,data
    python -m docs.tools.count_lines resnet.py --only ResNet50

Characters are those of the lines without indentation and without a comment at the end. `--only`
counts only what these names need: in a .net file, nets, recipes and their blocks, also from files
that it uses (a section without a name is named by its kind); in Python, functions and classes of
the file. Docstrings are comments.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from pathlib import Path

HEADER = re.compile(r"(net|block|let|data|train|test|use)\b *(\w*)")


def python_lines(text: str) -> list[str]:
    """The lines of Python code, without comments and docstrings."""
    lines = text.splitlines()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return [x.strip() for i, x in enumerate(lines, 1) if i not in skipped and x.strip()]


def plain_lines(text: str) -> list[str]:
    """The lines of a file whose comments begin with #: .net, prototxt, cfg, yaml."""
    lines = (re.sub(r"(^|\s)#.*", "", x).strip() for x in text.splitlines())
    return [x for x in lines if x]


def net_sections(path: Path) -> list[tuple[str, str, str]]:
    """Kind, name and text of each part of a .net file, preceded by those of the files it uses."""
    found: list[tuple[str, str, str]] = []
    for line in path.read_text().splitlines(keepends=True):
        header = HEADER.match(line)
        if header:
            found.append((header[1], header[2] or header[1], line))
        elif found and not line.startswith("#"):
            kind, name, text = found[-1]
            found[-1] = (kind, name, text + line)
    uses = [re.findall(r'"(.+?)"', text)[0] for kind, _, text in found if kind == "use"]
    return [s for file in uses for s in net_sections(path.parent / file)] + found


def needed_net(path: Path, names: list[str]) -> str:
    """The text of nets or recipes of a .net file with everything that they need."""
    sections = [s for s in net_sections(path) if s[0] not in ("test", "use")]
    wanted, words = list(names), set(names)
    while wanted:
        word = wanted.pop()
        for _, _, text in (s for s in sections if s[1] == word):
            new = set(re.findall(r"\w+", text)) & {s[1] for s in sections} - words
            words |= new
            wanted += sorted(new)
    kept = [text for _, title, text in sections if title in words]
    uses = [text for kind, _, text in net_sections(path) if kind == "use"]
    return "".join(uses + kept)


def needed_python(text: str, names: list[str]) -> str:
    """Functions and classes of the file, with those that they use, directly or not."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    functions = {f.name: f for f in ast.parse(text).body if isinstance(f, kinds)}
    wanted, kept = list(names), set(names)
    while wanted:
        for node in ast.walk(functions[wanted.pop()]):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in kept:
                kept.add(node.id)
                wanted.append(node.id)
    lines = text.splitlines(keepends=True)
    spans = [(f.lineno - 1, f.end_lineno) for n, f in functions.items() if n in kept]
    return "".join("".join(lines[a:b]) for a, b in spans)


def count(path: Path, only: str = "") -> tuple[int, int]:
    """Lines and characters of a file, or of the definitions that some names need."""
    text, names = path.read_text(), only.split(",")
    if path.suffix == ".py":
        lines = python_lines(needed_python(text, names) if only else text)
    else:
        lines = plain_lines(needed_net(path, names) if only else text)
    return len(lines), sum(len(x) for x in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", default="", metavar="NAME,...")
    arguments = parser.parse_args()
    for path in arguments.files:
        lines, characters = count(path, arguments.only)
        print(f"{lines:6,} lines {characters:8,} characters  {path} {arguments.only}".rstrip())


if __name__ == "__main__":
    main()
