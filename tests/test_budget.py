"""Small texts that would take unbounded time or memory: each ends soon, with a limit and advice."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from netdsl.errors import NetError
from netdsl.insight.net_tests import run_test
from netdsl.insight.program_check import check_program
from netdsl.insight.summary import summarise
from netdsl.language.elaborate import Settings, ShrinkSettings, elaborate
from netdsl.language.format import format_text
from netdsl.language.parse import parse
from netdsl.language.program import build_program, is_net_file, load_program, reject_read
from netdsl.limits import (
    MAX_CHAIN_LENGTH,
    MAX_ERRORS,
    MAX_FILE_CHARACTERS,
    MAX_GLOBS,
    MAX_MESSAGE_CHARACTERS,
    MAX_NESTING_DEPTH,
    MAX_TOKENS,
)

SLOWEST = 10.0
"""Seconds of processor time, of which the worst text takes two where nothing else runs."""
LONGEST_REPORT = MAX_ERRORS * 8 * MAX_MESSAGE_CHARACTERS


def net(body: str, end: str = "fc(3)") -> str:
    return f"net a {{\n input(8x8x1)\n {body}\n {end}\n}}\n"


def lets(count: int, value: str, first: str) -> str:
    """Values of which each is made of the one before."""
    rest = (f"let v{i + 1} = {value.replace('V', f'v{i}')}\n" for i in range(count))
    return f"let v0 = {first}\n" + "".join(rest)


def blocks(count: int, body: str) -> str:
    """Blocks of which each uses the next."""
    used = (f"block b{i} {{ {body.replace('B', f'b{i + 1}')} }}\n" for i in range(count))
    return "".join(used) + f"block b{count} {{ relu }}\n"


def recipes(*sections: str, width: int = 0) -> str:
    body = f"conv(1, 1x1) * {width} -> relu"
    return "\n".join([net(body, "fc(10)"), "data { source = digits }", *sections])


def listed(entry: str, count: int) -> str:
    return f"[{', '.join([entry] * count)}]"


GLOB = '"fc1.*"'
SCALE = '("*.weight", 0.1)'
SLOW = f'"{"*[!q]" * 40}"'
DATA = "data { source = digits, augment = [hflip], "
TEXTS = {
    "lists double": net(lets(30, "[V, V]", "[1, 2]") + "fc(v30)"),
    "pairs double": net(lets(30, "(V, V)", "(1, 2)") + "fc(v30)"),
    "calls double": net(lets(30, "f(V, V)", "g(1)") + "fc(v30)"),
    "sums of lists double": net(lets(30, "V + V", "[1, 2]") + "fc(v30)"),
    "defaults double": "block b(p0=1, "
    + ", ".join(f"p{i + 1}=(p{i}, p{i})" for i in range(30))
    + ") { relu }\n"
    + net("b"),
    "texts in lists": net(lets(30, "[V, V]", f'"{"x" * 9000}"') + "fc(v30)"),
    "values nest": net("let z = []\n for x in range(9999) { let z = [z] }"),
    "calls nest": net("let z = 1\n" + "let z = f(z)\n" * 5000),
    "lets in loops": net(f"for x in range(9999) {{ {'; '.join(['let v = [x, x]'] * 500)} }}"),
    "loops of lists": net("for x in range(9999) { let z = range(9999) }"),
    "loops in loops": net("for x in range(9999) { for y in range(9999) { let z = x } }"),
    "loops that copy": net("let v = 1\n" * 2000 + "for x in range(9999) { for y in [1] { } }"),
    "repeats of repeats": net("((relu * 9999) * 9999) * 9999"),
    "repeats of nothing": net("((if 1 == 2 { relu }) * 9999) * 9999"),
    "blocks double": blocks(60, "B -> B") + net("b0"),
    "empty blocks double": blocks(60, "B -> B").replace("{ relu }", "{ }") + net("b0"),
    "blocks of blocks": blocks(500, "B") + net("b0"),
    "labels of blocks": blocks(500, "x: B") + net("b0"),
    "a block in itself": "block b { x: b }\n" + net("b"),
    "a shared chain in itself": net("shared s = s\n s"),
    "arguments again and again": "block b(p) { relu }\n" + net("b(range(9999)) * 9999"),
    "defaults again and again": "block b(p=range(9999)) { relu }\n" + net("b * 9999"),
    "many parameters": "block b("
    + ", ".join(f"p{i}" for i in range(9000))
    + ") { relu }\n"
    + net("b * 999"),
    "nets after nets": net("relu") + "\n".join(f"net a{i} = a{i or ''}" for i in range(3000)),
    "nets of nets": net("relu").replace("net a ", "net a0 ")
    + "\n".join(f"net a{i + 1} = a{i}" for i in range(3000)),
    "nets in a cycle": "\n".join(f"net a{i} = a{(i + 1) % 3000}" for i in range(3000)),
    "many large nets": net("(conv(4, 1x1) -> batchnorm) * 400")
    + "\n".join(f"net a{i} = a" for i in range(3000)),
    "recipes after recipes": recipes(
        "train r0 { epochs = 1 }", *(f"train r{i + 1} {{ after = r{i} }}" for i in range(600))
    ),
    "many recipes": recipes(*(f"train r{i} {{ epochs = 1 }}" for i in range(4000))),
    "many tests": net("relu") + "test a { params == 195 }\n" * 4000,
    "many questions": net("relu * 3000")
    + "test a { "
    + 'receptive_field("relu9") == 1, ' * 3000
    + "params == 195 }",
    "two thousand sums": recipes(
        *(f"train r{i} {{ seed = sum(range(9999)) }}" for i in range(2000))
    ),
    "many globs": recipes(f"train {{ freeze = {listed(GLOB, 9000)} }}"),
    "many pairs of globs": recipes(f"train {{ lr_scale = {listed(SCALE, 4000)} }}"),
    "globs that take long": recipes(
        f"train {{ optimizer = sgd(no_decay={listed(SLOW, 99)}) }}", width=3000
    ),
    "globs of many recipes": recipes(
        *(f"train r{i} {{ lr_scale = {listed(SCALE, 99)} }}" for i in range(30)), width=900
    ),
    "many trials": net("relu") + f"test a {{ {', '.join(['gradients'] * 9000)} }}",
    "warnings everywhere": net("\n".join(f"x{i}: relu\n y{i}: input(8x8x1)" for i in range(3000))),
    "allowances everywhere": net("relu # allow: unraed, unread\n" * 9000),
    "blocks of one name": "block b { relu }\n" * 7000,
    "nets of one name": "net b { relu }\n" * 7000,
    "sections of one name": net("relu") + "data { source = digits }\n" * 5000,
    "entries of one name": net("relu") + f"data {{ {', '.join(['a = 1'] * 9000)} }}",
    "errors everywhere": net("nope\n" * 15000),
    "errors in arguments": net(f"fc({', '.join(['nope + 1'] * 9000)})"),
    "errors in branches": net(f"add {{ {' | '.join(['nope'] * 9000)} }}"),
    "unknown arguments": net(f"conv({', '.join(f'p{i}=1' for i in range(9000))})"),
    "unknown keys": net("relu") + f"data {{ {', '.join(f'k{i}=1' for i in range(9000))} }}",
    "unknown layers": "".join(f"block b{i} {{ relu }}\n" for i in range(6000))
    + net("\n".join(f"c{i}" for i in range(1000))),
    "syntax errors": "net a { input(8) -> }\n" * 5000,
    "a syntax error far out": net("relu -> " * 15000 + "->"),
    "long names": net(f"{'x' * 400_000}: {'y' * 400_000}"),
    "long names of one length": net("\n".join(f"{'x' * 9000}{i}" for i in range(50))),
    "long texts": net(f'conv("{"x" * 800_000}")'),
    "long texts again and again": net(f'let s = "{"x" * 90_000}"\n' + "conv(s)\n" * 2000),
    "an open text": net(f'conv("{"x" * 800_000}').replace(")", ""),
    "long places": net("relu") + f'test a {{ shape("{"a." * 90_000}") == 1 }}',
    "long paths": f'use "{"x/" * 90_000}"\n',
    "long numbers": net(f"fc({'9' * 100_000})"),
    "long sizes": net(f"conv(3, {'x'.join(['3'] * 90_000)})"),
    "long products": net(f"fc({'*'.join(['9'] * 15_000)})"),
    "long sums": net(f"fc({'+'.join(['1'] * 15_000)})"),
    "powers": net("fc(10**10**10)"),
    "signs": net(f"fc({'-' * 15_000}1)"),
    "negations": net(f"if {'not ' * 15_000} yes {{ relu }}"),
    "conditions": net("if 1 == 2 { relu }" + " else if 1 == 2 { relu }" * 4000),
    "concat doubles": net("(concat { identity | identity }) * 9999"),
    "images double": net("upsample(2) * 9999"),
    "many branches": net(f"concat {{ {' | '.join(['relu'] * 9000)} }}"),
    "many uses": "\n".join(f'use "x{i}.net"' for i in range(9000)),
    "comments": "# c\n" * 240_000,
    "comments in a net": net("# c\n" * 240_000),
    "comments at ends": net("fc(3) # c\n" * 5000),
    "blank lines": net("\n" * 900_000),
    "spaces": net(" " * 900_000),
    "brackets": "(" * 900_000,
    "quotes": '"' * 900_000,
    "backslashes": '"' + "\\" * 900_000,
    "digits": "1" * 900_000,
    "strangers": "\0" * 900_000,
    "too long": "#" * (MAX_FILE_CHARACTERS + 1),
    "too many words": net("relu\n" * MAX_TOKENS),
}


def worked(text: str) -> str:
    """All that is said of a text, by all that reads one; nothing where all is well."""

    def unreadable(path: str) -> str:
        raise NetError()

    def whole() -> Any:
        return build_program(parse(text, "a.net"), unreadable)

    said: list[str] = []
    for work in (
        lambda: format_text(text),
        lambda: said.extend(w.render() for w in check_program(whole())[1]),
        lambda: [run_test(whole(), t) for t in whole().tests[:1]],
        lambda: summarise(elaborate(whole())),
    ):
        try:
            work()
        except NetError as e:
            said.append(e.render())
    return "\n".join(said)


LONG = {
    *("many recipes", "globs of many recipes", "globs that take long", "many globs"),
    *("many pairs of globs", "comments at ends", "comments in a net", "many tests"),
    *("errors in arguments", "errors everywhere", "errors in branches", "warnings everywhere"),
    *("allowances everywhere", "many large nets", "many questions", "many trials", "conditions"),
    *("calls nest", "blocks double", "empty blocks double", "nets of one name", "many branches"),
    *("entries of one name", "sections of one name", "unknown arguments", "unknown keys"),
    *("unknown layers", "long products", "long sums", "two thousand sums", "many uses"),
    *("repeats of repeats", "long texts"),
}
"""Texts that go to a limit of what takes seconds; some such are tried in every run."""
assert TEXTS.keys() > LONG


def tried(*names: str) -> list[Any]:
    """Texts by name; those that take long are for slow runs."""
    marks = {name: [pytest.mark.slow] if name in LONG else [] for name in names}
    return [pytest.param(name, marks=found, id=name) for name, found in marks.items()]


LIMITS = {
    "pairs double": "a list has at most 10,000 entries",
    "texts in lists": "a list has at most 10,000 entries",
    "values nest": f"lists are nested more than {MAX_NESTING_DEPTH} deep",
    "lets in loops": "more than 1,000,000 values",
    "blocks double": "more than 120,000 steps",
    "labels of blocks": "nested more than 80 deep: b79 in b78 in b77 in ...",
    "nets of nets": f"more than {MAX_CHAIN_LENGTH} deep",
    "recipes after recipes": f"more than {MAX_CHAIN_LENGTH} recipes",
    "many trials": "more than 4,000,000,000 multiplications",
    "long names": "a word of over 1,000 characters",
    "too long": f"over {MAX_FILE_CHARACTERS:,} characters",
    "too many words": f"over {MAX_TOKENS:,} tokens",
    "brackets": f"more than {MAX_NESTING_DEPTH} deep",
}
"""What is said of some of them, with advice."""
assert TEXTS.keys() > LIMITS.keys()


@pytest.mark.parametrize("name", tried(*TEXTS))
def test_no_text_takes_long_and_nothing_long_is_said(name: str) -> None:
    started = time.process_time()
    said = worked(TEXTS[name])
    assert time.process_time() - started < SLOWEST
    assert len(said) < 4 * LONGEST_REPORT
    if limit := LIMITS.get(name):
        assert limit in said
        assert "\nhelp: " in said[said.index(limit) :]


@pytest.mark.slow
def test_globs_are_few() -> None:
    assert f"a list of at most {MAX_GLOBS} entries" in worked(TEXTS["many globs"])
    assert f"a list of at most {MAX_GLOBS} pairs" in worked(TEXTS["many pairs of globs"])


def test_files_that_are_used_count_too() -> None:
    def read(path: str) -> str:
        return "".join(f"block {path[:-4]}_{i} {{ relu }}\n" for i in range(MAX_TOKENS // 10))

    text = "".join(f'use "x{i}.net"\n' for i in range(30)) + net("relu")
    with pytest.raises(NetError, match=f"used here have over {MAX_TOKENS:,} tokens"):
        build_program(parse(text, "a.net"), read)


NESTS = {
    "groups": ("(", "relu", ")"),
    "branches": ("add { identity | ", "relu", "}"),
    "conditions": ("if 1 == 1 { ", "relu", "}"),
    "loops": ("for x in [1] { ", "relu", "}"),
    "labels": ("add { x: tanh | y: add { z: tanh | ", "relu", "}}"),
}
EXPRESSIONS = {
    "brackets": ("(1 + ", "1", ")"),
    "lists": ("[", "1", "]"),
    "pairs": ("(1, ", "2", ")"),
    "functions": ("min(1, ", "2", ")"),
    "calls": ("f(", "2", ")"),
    "indices": ("[0][", "0", "]"),
    "signs": ("-(", "2", ")"),
}


def nested(parts: tuple[str, str, str], deepest: int) -> str:
    """As many of a bracket in each other as there may be."""
    opening, middle, closing = parts
    times = deepest // (opening.count("{") + opening.count("(") + opening.count("[") or 1)
    if opening == "[0][":
        times = deepest
    return opening * times + middle + closing * times


@pytest.mark.parametrize("kind", [*NESTS, *EXPRESSIONS])
@pytest.mark.parametrize("below", [0, 800])
def test_what_is_promised_to_nest_does(kind: str, below: int) -> None:
    """From however deep in Python's stack it is called."""
    if kind in NESTS:
        body = nested(NESTS[kind], MAX_NESTING_DEPTH - 1)
    else:
        body = f"let z = {nested(EXPRESSIONS[kind], MAX_NESTING_DEPTH - 1)}"
    text = net(body)

    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        else:
            assert format_text(format_text(text)) == format_text(text)
            assert elaborate(build_program(parse(text))).layers

    deep(below)


def test_a_shrunk_net_is_not_tried_at_every_size() -> None:
    text = "net a { input(60000x60000x1) -> relu * 90 -> conv(1, 30001x30001, stride=29999) }"
    started = time.process_time()
    with pytest.raises(NetError, match="steps"):
        elaborate(build_program(parse(text)), settings=Settings(shrink=ShrinkSettings(2)))
    assert time.process_time() - started < SLOWEST


# ---- files that are no text ---------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("PASSWORD hunter2\n")
    return path


def refused(path: Path) -> str:
    with pytest.raises(NetError) as e:
        load_program(str(path))
    return e.value.render()


def test_a_file_that_is_no_net_is_named_and_not_quoted(tmp_path: Path, secret: Path) -> None:
    main = tmp_path / "main.net"
    (tmp_path / "link.net").symlink_to(secret)
    (tmp_path / "loop.net").symlink_to(tmp_path / "loop.net")
    for used in ("secret.txt", str(secret), "link.net", "./sub/../secret.txt"):
        main.write_text(f'use "{used}"\nnet a {{ input(3) }}')
        said = refused(main)
        assert "is not a .net file" in said
        assert "hunter2" not in said
        assert "PASSWORD" not in said
    assert "hunter2" not in refused(secret)
    assert not is_net_file(str(tmp_path / "loop.net"))
    (tmp_path / "wrong.net").write_text("block b { relu relu }")
    main.write_text('use "wrong.net"\nnet a { input(3) }')
    assert "block b { relu relu }" in refused(main)


def test_pipes_devices_and_folders_are_no_files(tmp_path: Path, netdsl: Any) -> None:
    os.mkfifo(tmp_path / "pipe.net")
    (tmp_path / "folder.net").mkdir()
    (tmp_path / "link.net").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder"), ("link", "a device")):
        (tmp_path / "main.net").write_text(f'use "{name}.net"\nnet a {{ input(3) }}')
        for path in ("main.net", f"{name}.net"):
            code, _, err = netdsl("check", path)
            assert code == 2
            assert f"{name}.net is {kind}, not a " in err


def test_a_text_that_came_with_weights_reads_nothing(tmp_path: Path, secret: Path) -> None:
    from netdsl.training.store.checkpoint import Checkpoint

    (tmp_path / "good.net").write_text("block b { relu }")
    for used in (secret, tmp_path / "good.net", Path("/dev/zero"), tmp_path / "nothing.net"):
        text = f'use "{used}"\nnet a {{ input(3); fc(3) }}'
        with pytest.raises(NetError) as e:
            Checkpoint({}, text, (), {}, {}, str(tmp_path / "x.safetensors")).program()
        assert "in a text that must be self-contained" in e.value.render()
        assert "hunter2" not in e.value.render()
    with pytest.raises(NetError):
        build_program(parse('use "good.net"', str(tmp_path / "a.net")), reject_read)
