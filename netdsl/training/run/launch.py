"""Starts runs: a new one of a file, or a resumed one, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from netdsl.data.sources import GivenData, make_pin
from netdsl.errors import fail
from netdsl.file_io import split_file_and_name
from netdsl.language import syntax as s
from netdsl.language.program import Program, build_program, reject_read
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.training.recipe.resolved_recipe import resolve_file
from netdsl.training.recipe.settings import override_recipe
from netdsl.training.store.checkpoint import Checkpoint
from netdsl.training.store.lock import lock_directories
from netdsl.training.store.resume import check_same_recipe, load_continuation
from netdsl.training.store.run_directory import create_run_directory

Parse = Callable[[str], s.File]


@dataclass(frozen=True)
class Launch:
    """What a run starts from: its program, the recipe's name, its directory (which a new run
    creates once all checks have passed), and for a resumed run its checkpoint and what changed: key
    -> (before, now)."""

    program: Program
    name: str | None
    out: Path | Callable[[], Path]
    saved: Checkpoint | None = None
    changes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    is_new: bool = True


@contextmanager
def launch(
    file: str | None,
    out: Path | None,
    resume: Path | None,
    settings: Sequence[str],
    parse: Parse,
    is_preview: bool = False,
    communicator: Communicator = ONE_RANK,
) -> Iterator[Launch]:
    """Reads what a run of `FILE[:RECIPE]` starts from, or the one in the directory `resume`, which
    is locked for the duration of the block unless nothing is written (`is_preview`): from before
    it is read, so that no other process resumes it in the meantime. Raises NetError if there is no
    such run, or if the arguments contradict each other."""
    if resume is None:
        yield _launch_new(file, out, settings, parse)
        return
    is_locked = not is_preview and communicator.share_flag(resume.is_dir)
    locks = lock_directories(resume, communicator=communicator) if is_locked else nullcontext()
    with locks:
        yield _launch_again(file, out, resume, settings, communicator)


@contextmanager
def launch_or_continue(
    file: str | None,
    out: Path,
    settings: Sequence[str],
    data: GivenData,
    parse: Parse,
    communicator: Communicator = ONE_RANK,
) -> Iterator[Launch]:
    """Reads what a run of `FILE[:RECIPE]` in `out` starts from: from where it is, if it was started
    before. The directory is locked for the duration of the block. Raises NetError if the run there
    has another recipe."""
    new = _launch_new(file, out, settings, parse)
    if not communicator.share_flag(out.is_dir):
        yield new
        return
    with lock_directories(out, communicator=communicator):
        if not communicator.share_flag((out / "recipe.net").is_file):
            yield new
            return
        if communicator.is_root:
            pin = make_pin(data)
            asked = build_program(resolve_file(new.program, new.name, pin), reject_read)
            check_same_recipe(out, asked, pin)
        found = load_continuation(out, (), communicator)
        yield Launch(found.program, None, out, found.saved, is_new=False)


def _launch_new(
    place: str | None, out: Path | None, settings: Sequence[str], parse: Parse
) -> Launch:
    if place is None:
        raise fail("there is no file to train", help="netdsl train FILE, or --resume DIR")
    path, name = split_file_and_name(place)
    program = override_recipe(parse(path), settings, name)
    return Launch(program, name, lambda: create_run_directory(path, out))


def _launch_again(
    place: str | None,
    out: Path | None,
    resume: Path,
    settings: Sequence[str],
    communicator: Communicator,
) -> Launch:
    if place is not None or out is not None:
        help = "`--set` changes it: `netdsl train --resume DIR --set train.epochs=20`"
        raise fail("a resumed run has its own file and directory", help=help)
    found = load_continuation(resume, settings, communicator)
    return Launch(found.program, None, resume, found.saved, found.changes, is_new=False)
