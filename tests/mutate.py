"""Plants faults, one at a time, in a copy of the tree, and runs the tests that should detect them.

    python -m tests.mutate [--area passes] [--list] [--only NAME] [--no-baseline]

The table of faults is tests/faults.py. Exit codes: 0 if every fault is caught or has a reason to
survive, 1 if one survives without a reason or no longer fits the source, 2 if the tests fail before
anything is planted.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tests.faults import AREAS, FAULTS, Fault
from tests.processes import run_process

ROOT = Path(__file__).parent.parent
TIME_LIMIT = 600
"""Seconds that the tests of a fault may take."""
CAUGHT, TIMEOUT, SPARED, SURVIVED, STALE = "caught", "timeout", "spared", "SURVIVED", "stale"


def explain_stale(fault: Fault, root: Path = ROOT) -> str | None:
    """Why a fault cannot be planted, or None: its text must occur exactly once, the result must be
    valid Python, and its tests must exist."""
    path = root / fault.file
    if not path.is_file():
        return f"there is no {fault.file}"
    text = path.read_text(encoding="utf-8")
    if (found := text.count(fault.old)) != 1:
        return f"its text occurs {found} times in {fault.file}"
    try:
        ast.parse(text.replace(fault.old, fault.new))
    except SyntaxError as e:
        return f"it makes no Python of {fault.file}: {e}"
    missing = [t for t in fault.tests if not _test_exists(t, root)]
    return f"there is no {missing[0]}" if missing else None


def _test_exists(test: str, root: Path) -> bool:
    """Whether a test file exists, and the test function in it if one is named."""
    file, _, name = test.partition("::")
    path = root / file
    if not path.is_file() or not name:
        return path.is_file()
    return re.search(rf"^def {name.partition('[')[0]}\(", path.read_text("utf-8"), re.M) is not None


@dataclass(frozen=True)
class MutationOutcome:
    """The outcome for a fault: one of the words above, the seconds, and the test that caught it."""

    fault: Fault
    word: str
    seconds: float
    told: str = ""

    @property
    def ok(self) -> bool:
        return self.word in (CAUGHT, TIMEOUT, SPARED)

    def __str__(self) -> str:
        told = self.fault.spared if self.word == SPARED else self.told
        return (
            f"{self.word:9}{self.seconds:6.1f} s  {self.fault.area:9} {self.fault.name:32} {told}"
        )


@dataclass
class TreeCopy:
    """A copy of the tree in which tests run."""

    root: Path
    cache: Path
    _stamps: Iterator[int] = field(default_factory=lambda: count(int(time.time()) + 1))

    @staticmethod
    def of(source: Path, folder: Path) -> TreeCopy:
        """Copies the tracked and untracked files of `source`, without ignored ones, into a
        directory."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=source,
            capture_output=True,
            check=True,
        )
        for name in listed.stdout.decode().split("\0"):
            if name and (source / name).is_file():
                target = folder / "tree" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, target)
        return TreeCopy(folder / "tree", folder / "cache")

    def write(self, name: str, text: str) -> None:
        """Writes a file with a unique modification time: Python matches bytecode to source by whole
        seconds and size."""
        (self.root / name).write_text(text, encoding="utf-8")
        stamp = next(self._stamps)
        os.utime(self.root / name, (stamp, stamp))

    def run(self, tests: Sequence[str], limit: float | None) -> tuple[int | None, str]:
        """Returns the exit code of the tests (None: timeout) and the first one that failed."""
        data = os.environ.get("NETDSL_DATA", str(ROOT.parent / "shared" / "data"))
        own = {"PYTHONPATH": str(self.root), "NETDSL_CACHE": str(self.cache), "NETDSL_DATA": data}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0"]
        command += ["--hypothesis-profile", "planted"]
        try:
            done = run_process(
                *(*command, *tests),
                limit=limit,
                cwd=self.root,
                env={**os.environ, **own},
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return None, ""
        seen = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
        return done.returncode, seen[1] if seen else done.stdout.strip()[-200:]

    def plant(self, fault: Fault) -> MutationOutcome:
        """Runs the tests of a fault while it is planted."""
        started = time.perf_counter()
        if problem := explain_stale(fault, self.root):
            return MutationOutcome(fault, STALE, 0.0, problem)
        sound = (self.root / fault.file).read_text(encoding="utf-8")
        self.write(fault.file, sound.replace(fault.old, fault.new))
        try:
            code, told = self.run(fault.tests, TIME_LIMIT)
        finally:
            self.write(fault.file, sound)
        seconds = time.perf_counter() - started
        return MutationOutcome(fault, _classify(fault, code), seconds, told if code else "")


def _classify(fault: Fault, code: int | None) -> str:
    """Classifies an exit code of pytest, or of a signal."""
    if code is None:
        return TIMEOUT
    if code == 0:
        return SPARED if fault.spared else SURVIVED
    none_ran = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
    return STALE if code in none_ran else CAUGHT


def select_faults(areas: Sequence[str], names: Sequence[str]) -> list[Fault]:
    """The faults of these areas and with these names; all if none are given."""
    return [f for f in FAULTS if (not areas or f.area in areas) and (not names or f.name in names)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--area", action="append", choices=AREAS, default=[])
    parser.add_argument("--only", action="append", metavar="NAME", default=[])
    parser.add_argument("--list", action="store_true", help="print the faults, plant none")
    parser.add_argument("--no-baseline", action="store_true", help="plant at once")
    given = parser.parse_args(arguments)
    faults = select_faults(given.area, given.only)
    if given.list:
        for fault in faults:
            print(f"{fault.area:9} {fault.name:32} {fault.file}  {' '.join(fault.tests)}")
        return 0
    with tempfile.TemporaryDirectory(prefix="netdsl-mutate-") as folder:
        copy = TreeCopy.of(ROOT, Path(folder))
        if not given.no_baseline:
            code, told = copy.run(list(dict.fromkeys(t for f in faults for t in f.tests)), None)
            if code != 0:
                print(f"the tests fail where nothing is planted: {told}")
                return 2
        outcomes = []
        for fault in faults:
            outcomes.append(copy.plant(fault))
            print(outcomes[-1], flush=True)
    return _summary(outcomes)


def _summary(outcomes: Sequence[MutationOutcome]) -> int:
    print()
    for area in AREAS:
        words = Counter(o.word for o in outcomes if o.fault.area == area)
        if words:
            counts = ", ".join(f"{n} {word}" for word, n in sorted(words.items()))
            print(f"{area:9} {counts}")
    seen = sum(o.word in (CAUGHT, TIMEOUT) for o in outcomes)
    print(f"{seen} of {len(outcomes)} caught")
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
