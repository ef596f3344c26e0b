"""What is kept on disk is machine code, so it is run: only what this very program of this very
user kept under this very name is taken. All else is made again, and nobody waits for a FIFO."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import pickle
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from netdsl import disk_cache
from netdsl.backends.cpu import llvm_jit
from netdsl.disk_cache import CPU_CACHE, CUDA_CACHE, LANGUAGE_CACHE
from netdsl.language import parse
from tests.conftest import ROOT
from tests.processes import run_in_threads, run_process

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
MODEL = str(ROOT / "models" / "digits.net")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("NETDSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disk_cache, "_shown_warnings", [])
    llvm_jit.compile_llvm.cache_clear()
    yield tmp_path / "cache"
    llvm_jit.compile_llvm.cache_clear()


def text_of(factor: int) -> str:
    """A module whose function `run` multiplies by a factor."""
    return f"define i64 @run(i64 %x) {{\n %y = mul i64 %x, {factor}\n ret i64 %y\n}}\n"


def product(factor: int) -> int:
    """7 times the factor, by the machine code that is kept for it."""
    llvm_jit.compile_llvm.cache_clear()
    run = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(
        llvm_jit.compile_llvm("run", text_of(factor))
    )
    return int(run(7))


class Assembler:
    """Counts what is compiled anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._real = 0, llvm_jit._compile_object
        monkeypatch.setattr(llvm_jit, "_compile_object", self._assemble)

    def _assemble(self, text: str) -> bytes:
        self.count += 1
        return self._real(text)


@pytest.fixture
def assembler(monkeypatch: pytest.MonkeyPatch) -> Assembler:
    return Assembler(monkeypatch)


def entries() -> tuple[Path, Path]:
    """The files that the code of two factors is kept in, which are made."""
    found = []
    for factor in (3, 5):
        before = set(CPU_CACHE.directory.iterdir()) if CPU_CACHE.directory.exists() else set()
        assert product(factor) == 7 * factor
        (path,) = set(CPU_CACHE.directory.iterdir()) - before
        found.append(path)
    return found[0], found[1]


def turned(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swapped(path: Path, other: Path) -> None:
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


def sealed_as_before(path: Path, other: Path) -> None:
    """Another's code behind a checksum of its content alone."""
    image = other.read_bytes()[32:]
    path.write_bytes(hashlib.sha256(image).digest() + image)


def replaced(make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def spoil(path: Path, other: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def linked(path: Path, other: Path) -> None:
    """A link to what would be right."""
    aside = path.parent.parent / "aside"
    path.rename(aside)
    path.symlink_to(aside)


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    finally:
        os.chdir(here)


SPOILED: dict[str, Callable[[Path, Path], object]] = {
    "empty": lambda path, other: path.write_bytes(b""),
    "cut off": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit turned": turned,
    "swapped": swapped,
    "sealed as before": sealed_as_before,
}
UNTRUSTED: dict[str, Callable[[Path, Path], object]] = {
    "a FIFO": replaced(os.mkfifo),
    "a folder": replaced(os.mkdir),
    "a socket": replaced(listening),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a symbolic link": linked,
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "writable by its group": lambda path, other: path.chmod(0o620),
    "writable by all": lambda path, other: path.chmod(0o602),
    "too large": lambda path, other: os.truncate(path, 2**31),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=list(SPOILED))
def test_what_is_not_what_was_kept_is_made_again(
    spoil: Callable[[Path, Path], None], assembler: Assembler, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = entries()
    spoil(one, other)
    assert [product(3), product(5)] == [21, 35]
    again = assembler.count
    assert again > 2
    assert [product(3), product(5)] == [21, 35]
    assert assembler.count == again, "it is kept anew"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("spoil", UNTRUSTED.values(), ids=list(UNTRUSTED))
def test_what_others_can_have_written_is_not_used(
    spoil: Callable[[Path, Path], None], assembler: Assembler, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = entries()
    spoil(one, other)
    assert [product(3), product(5), product(3)] == [21, 35, 21]
    assert assembler.count >= 3
    err = capfd.readouterr().err
    assert err.count("warning:") == 1
    assert str(one) in err


def give_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


@needs_root
def test_a_file_of_another_user_is_not_used(
    assembler: Assembler, capfd: pytest.CaptureFixture[str]
) -> None:
    one, _ = entries()
    give_away(one)
    assert product(3) == 21
    assert assembler.count == 3
    assert "belongs to another user" in capfd.readouterr().err
    assert one.stat().st_uid == os.geteuid(), "it is replaced"


def move_and_link(folder: Path) -> None:
    folder.rename(folder.with_name("aside"))
    folder.symlink_to("aside")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: folder.chmod(0o770), "writable by other users"),
        (lambda folder: folder.chmod(0o1777), "writable by other users"),
        (move_and_link, "a symbolic link"),
        pytest.param(give_away, "another user", marks=needs_root),
    ],
)
def test_a_folder_of_others_is_neither_read_nor_written(
    spoil: Callable[[Path], None],
    reason: str,
    assembler: Assembler,
    capfd: pytest.CaptureFixture[str],
) -> None:
    entries()
    spoil(CPU_CACHE.directory)
    before = sorted(p.name for p in CPU_CACHE.directory.iterdir())
    assert [product(3), product(5), product(11)] == [21, 35, 77]
    assert assembler.count == 5
    assert sorted(p.name for p in CPU_CACHE.directory.iterdir()) == before
    err = capfd.readouterr().err
    assert err.count("warning:") == 1
    assert reason in err


@pytest.mark.parametrize("foreign", ["key", "version", "processor", "engine"])
def test_what_is_foreign_is_made_again(
    foreign: str, monkeypatch: pytest.MonkeyPatch, assembler: Assembler
) -> None:
    """An entry that was kept whole and sound, as something else."""
    one, other = entries()
    with monkeypatch.context() as m:
        match foreign:
            case "key":
                content = other.read_bytes()
            case "version":
                m.setattr(disk_cache, "__version__", "0.0.9")
                product(3)
                content = (CPU_CACHE.directory / one.name).read_bytes()
            case "processor":
                m.setattr(llvm_jit, "_compiler_key", lambda: "another processor")
                product(3)
                (new,) = set(CPU_CACHE.directory.iterdir()) - {one, other}
                content = new.read_bytes()
            case _:
                CUDA_CACHE.store(one.name, one.read_bytes()[32:])
                content = (CUDA_CACHE.directory / one.name).read_bytes()
    assert len(content) > 300
    one.write_bytes(content)
    before = assembler.count
    assert product(3) == 21
    assert assembler.count == before + 1


def test_folders_are_private_and_files_too(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    old = os.umask(0)
    try:
        entries()
    finally:
        os.umask(old)
    assert stat.S_IMODE(CPU_CACHE.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in CPU_CACHE.directory.iterdir()} == {0o600}
    assert stat.S_IMODE(cache.stat().st_mode) & 0o055 == 0o055, "data sets may be shared"


class Planted:
    """A pickle that leaves a file behind where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def forget_parser() -> None:
    """The next text is parsed as by a new process."""
    parse._load_parser.cache_clear()
    parse.parse.cache_clear()


def test_tables_of_the_language_are_not_run(tmp_path: Path, netdsl: Any) -> None:
    assert netdsl("check", MODEL)[0] == 0
    forget_parser()
    assert netdsl("check", MODEL)[0] == 0
    (path,) = LANGUAGE_CACHE.directory.iterdir()
    code = pickle.dumps({"data": Planted(tmp_path / "was run"), "memo": {}})
    for content in (code, hashlib.sha256(code).digest() + code):
        path.write_bytes(content)
        forget_parser()
        assert netdsl("check", MODEL)[0] == 0
        assert not (tmp_path / "was run").exists()
    for content in (code, b"", b"[]", b"{}", b'{"data": {}, "memo": {"0": {"@": 5}}}'):
        LANGUAGE_CACHE.store(path.name, content)  # of this very user, with the right checksum
        forget_parser()
        assert netdsl("check", MODEL)[0] == 0
        assert not (tmp_path / "was run").exists()


def test_the_parser_is_the_same_from_its_tables() -> None:
    parse._load_parser.cache_clear()
    made = parse._load_parser()
    parse._load_parser.cache_clear()
    again = parse._load_parser()
    assert again is not made
    assert again.source_path != made.source_path, "it is from the tables"
    for path in sorted((ROOT / "models").rglob("*.net")):
        text = path.read_text()
        assert made.parse(text, start="start") == again.parse(text, start="start")


def test_nothing_unpickles() -> None:
    for path in (ROOT / "netdsl").rglob("*.py"):
        for word in ("import pickle", "import marshal", "import shelve", ".save(tables"):
            assert word not in path.read_text(), path


_WRITES = """
import hashlib, sys
from netdsl.disk_cache import CPU_CACHE
seed, wrong = int(sys.argv[1]), 0
for i in range(300):
    key = f"key{(i * 7 + seed) % 5}"
    content = hashlib.sha256(key.encode()).digest() * 3000
    found = CPU_CACHE.load(key)
    wrong += found not in (None, content)
    CPU_CACHE.store(key, content)
    wrong += CPU_CACHE.load(key) != content
print(wrong)
"""


def executed(code: str, *args: str) -> tuple[str, str]:
    """What a text prints in a process of its own."""
    done = run_process(sys.executable, "-c", code, *args, text=True, cwd=ROOT)
    return done.stdout, done.stderr


def test_processes_at_once_never_see_a_part() -> None:
    found = run_in_threads(*(partial(executed, _WRITES, str(seed)) for seed in range(3)))
    assert found == [("0\n", "")] * 3
    assert {p.name for p in CPU_CACHE.directory.iterdir()} == {f"key{i}" for i in range(5)}


_CHECKS = """
import os, sys
from netdsl import cli
from netdsl.language import parse
cache = os.environ.pop("NETDSL_CACHE")
os.environ["NETDSL_CACHE"] = os.devnull  # the first time only imports what root can read
for user in (0, int(sys.argv[1])):
    os.setuid(user)
    parse._load_parser.cache_clear()
    try:
        parse._load_parser()
    except OSError:
        sys.exit("cannot read")
    os.environ["NETDSL_CACHE"] = cache
parse.parse("net a { input(8x8x1); fc(10) }")
print(parse._load_parser().source_path)
"""


@needs_root
@pytest.mark.parametrize("there", ["nothing", "of root", "of a stranger"])
def test_a_home_that_cannot_be_written_to(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who can't write there: root's tables are read, a stranger's are not, and the
    program goes on without any."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("NETDSL_CACHE", folder)
        _goes_on_as_nobody(Path(folder), there)


def _goes_on_as_nobody(cache: Path, there: str) -> None:
    if there != "nothing":
        parse._load_parser.cache_clear()
        parse._load_parser()
        (path,) = LANGUAGE_CACHE.directory.iterdir()
        LANGUAGE_CACHE.directory.chmod(0o755)
        path.chmod(0o644)
    if there == "of a stranger":
        os.chown(LANGUAGE_CACHE.directory, NOBODY - 1, NOBODY - 1)
    before = sorted(cache.rglob("*"))
    out, err = executed(_CHECKS, str(NOBODY))
    if "cannot read" in err:
        pytest.skip("another user cannot read this installation")
    assert (out == "<deserialized>\n") == (there == "of root")
    assert ("belongs to another user" in err) == (there == "of a stranger")
    assert "Traceback" not in err
    assert sorted(cache.rglob("*")) == before


def test_where_nobody_reads_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    entries()
    CPU_CACHE.directory.chmod(0o777)
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(disk_cache, "_shown_warnings", [])
        monkeypatch.setattr(sys, "stderr", stream)
        assert product(3) == 21
