"""Resuming a run: its saved text, the changes to it, and which changes are not allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from netdsl.data.sources import make_pin
from netdsl.errors import NetError, fail
from netdsl.language import syntax as s
from netdsl.language.override import override
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, parse_file, read_text, reject_read
from netdsl.language.unparse import expression_text
from netdsl.limits import MAX_MESSAGE_CHARACTERS
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.text_escaping import escape_line
from netdsl.training.recipe.recipe import Recipe, net_name, resolve_recipe
from netdsl.training.recipe.resolved_recipe import Pin, resolve_file
from netdsl.training.recipe.settings import SECTION_KEYS
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import SUFFIX, Checkpoint
from netdsl.training.store.metrics_log import last_epoch, read_test_metrics
from netdsl.training.store.progress import Progress
from netdsl.training.store.shared_checkpoint import share_checkpoint
from netdsl.types import Node

_MAX_LISTED_RUNS = 5
FIXED_KEYS = {
    "train.seed": "held-out images would be used for training",
    "data.validation": "held-out images would be used for training",
    "data.limit": "it would be a different run",
    "data.source": "it would be a different run",
    "train.net": "it would be a different run",
    "train.data": "held-out images would be used for training",
    "train.shrink": "it would have different weights",
    "train.init": "the weights were trained from the old initial weights",
    "train.best": "the best weights so far were chosen by the old metric, and no others were kept",
    "train.after": "the weights were trained from the old initial weights",
    "train.loss": "the best epoch is chosen among values of one loss",
    "data.eval_transform": "the best epoch is chosen among values for the same images",
}


@dataclass(frozen=True)
class Continuation:
    """The program that a resumed run uses, its last checkpoint (None if the run stopped before the
    first), and what changed: key -> (before, now)."""

    program: Program
    saved: Checkpoint | None
    changes: dict[str, tuple[str, str]]


def load_continuation(
    out: Path, settings: Sequence[str] = (), communicator: Communicator = ONE_RANK
) -> Continuation:
    """Reads from a run directory, which rank 0 does for all, how to resume its run, with `--set`
    applied. Raises NetError if it contains no run, or for a change that a started run does not
    allow."""
    text = out / "recipe.net"
    saved = share_checkpoint(communicator, lambda: _load_last_of_run(out))
    if saved is not None:
        file = saved.syntax_tree()
    else:
        content = communicator.share(lambda: read_text(str(text)).encode())
        file = parse_file(str(text), lambda path: content.decode())
    before = build_program(file, reject_read)
    if communicator.is_root and saved is not None and text.is_file():
        _check_same_net(before, text, saved.origin)
    net = net_name(before, None)
    changed = override(file, settings, net, None, SECTION_KEYS) if settings else file
    now = build_program(
        changed if saved is None else _keep_finished_stages(file, changed, settings), reject_read
    )
    changes = diff_programs(before, now)
    begun = saved is not None or bool(communicator.share(lambda: _has_stages(out)))
    for key in changes:
        reason = FIXED_KEYS.get(re.sub(r"\.\w+\.", ".", key))
        if reason is not None and begun:
            message = f"`{key}` cannot be changed in the middle of a run: {reason}"
            raise fail(message, help="start a new run, with `init = weights(...)` if you like")
    if saved is not None:
        _check_epochs(resolve_recipe(now).epochs, saved)
    return Continuation(now, saved, changes)


def _load_last_of_run(out: Path) -> Checkpoint | None:
    """The last checkpoint of a run that has one or a text. Raises NetError if there is no run."""
    saved = load_last(out)
    if saved is None and not (out / "recipe.net").is_file():
        raise _missing_run(out)
    return saved


def _has_stages(out: Path) -> bytes:
    """A byte if a stage of a run has been started, else none."""
    return b"1" if any(out.glob(f"*/last{SUFFIX}")) else b""


def list_runs(folder: Path) -> list[Path]:
    """The newest runs in a folder, the newest first."""
    texts = sorted(folder.glob("*/recipe.net"), key=lambda p: p.stat().st_mtime, reverse=True)
    return [p.parent for p in texts[:_MAX_LISTED_RUNS]]


def _missing_run(out: Path) -> NetError:
    if out.is_file():
        run = f": `--resume {out.parent}`" if (out.parent / "recipe.net").is_file() else ""
        return fail(f"{out} is a file", help=f"`--resume` takes the directory of a run{run}")
    reason = "there is no recipe.net" if out.exists() else "there is no such directory"
    message = f"{out} does not contain a run: {reason}"
    runs = list_runs(out) or list_runs(out.parent)
    if runs:
        return fail(message, help="runs are: " + ", ".join(f"`--resume {run}`" for run in runs))
    return fail(message, help="`netdsl train FILE` starts a run, and `--resume DIR` resumes it")


def _check_epochs(epochs: int, saved: Checkpoint) -> None:
    """Raises NetError if a run is to end before the place where it is."""
    done = saved.progress.get("epoch", 0)
    if epochs < done:
        raise fail(
            f"the run has trained {done:,} epochs already, more than `train.epochs = {epochs:,}`",
            help=f"give it at least {done:,}, or start a new run",
        )


def is_finished_and_changed(saved: Checkpoint, progress: Progress) -> bool:
    """Whether the run of a checkpoint was finished, and is resumed, with this progress, by another
    recipe than before."""
    if len(progress.changes) == len(saved.progress.get("changes", ())):
        return False
    return progress.is_finished(resolve_recipe(saved.program()))


def check_continues(folder: Path, progress: Progress, recipe: Recipe, has_test_set: bool) -> None:
    """Raises NetError if a changed run, which was finished, is complete: nothing would be trained
    by the new recipe, but the test set would be measured again and recorded with it. One whose test
    was cut off may change, so that it can be tested."""
    is_complete = bool(read_test_metrics(folder / "metrics.jsonl")) or not has_test_set
    if is_complete and progress.is_finished(recipe):
        epochs = f"{progress.epoch:,} epoch{'s' * (progress.epoch != 1)}"
        raise fail(
            f"the run is complete after {epochs}, and these changes do not continue it",
            help=f"setting `{progress.setting_to_continue(recipe)}` does; or start a new run, with "
            "`init = weights(...)` if you like",
        )


def check_states(states: Sequence[Node], saved: Checkpoint) -> None:
    """Raises NetError if a checkpoint lacks states of a training step that are not weights: those
    of another optimizer, of an average of the weights."""
    missing = [n.name for n in states if n.name not in saved.states]
    if not missing:
        return
    more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
    raise fail(
        f"{saved.origin} has no state `{missing[0]}`{more}, as the run was started with another "
        "`optimizer` or without `ema`",
        help="resume it with its own `optimizer` and `ema`, or start a new run from its weights "
        f'with `init = weights("{saved.origin}")`',
    )


def _check_same_net(of: Program, text: Path, origin: str) -> None:
    """Raises NetError if a checkpoint's net differs from that of the run directory."""
    try:
        there = build_program(parse_file(str(text)), reject_read)
    except NetError:  # recipe.net was edited and is invalid; it is ignored
        return
    if _net_items(there) != _net_items(of):
        raise fail(
            f"{origin} and {text} belong to different nets: one of them was replaced or edited",
            help=f"restore it, or remove {text} to resume with the net of the checkpoint",
        )


def _keep_finished_stages(file: s.File, changed: s.File, settings: Sequence[str]) -> s.File:
    """The changed file, in which finished stages keep the settings that they were trained with."""
    sections = [i for i in file.items if isinstance(i, s.Section) and i.kind == "train"]
    over = {x.name: x for x in sections if x.name}
    for setting in settings:
        for name in over:
            if setting.startswith(f"train.{name}."):
                raise fail(f"`{setting}` comes too late: the stage `{name}` is complete")
    kept = (
        over.get(i.name or "", i) if isinstance(i, s.Section) and i.kind == "train" else i
        for i in changed.items
    )
    return replace(changed, items=tuple(kept))


def load_last(out: Path) -> Checkpoint | None:
    """The last checkpoint of a run, or None if it saved none. Raises NetError if it saved one that
    is now missing: starting over would overwrite the run's files."""
    path = out / f"last{SUFFIX}"
    if path.exists():
        return checkpoint.load(path)
    kept = [p.name for p in (out / f"best{SUFFIX}", *sorted(out.glob(f"epoch-*{SUFFIX}")))]
    there = [name for name in kept if (out / name).exists()]
    if last_epoch(out / "metrics.jsonl") > 1:  # epoch 1 is logged before its checkpoint is saved
        there.append("metrics.jsonl")
    if there:
        raise fail(
            f"{path} is missing, so the run cannot be resumed: {', '.join(there)} would be lost",
            help="restore it, or start a new run in another directory; "
            f'`init = weights("{out}")` starts it from the best weights of this one',
        )
    return None


def diff_programs(
    before: Program, now: Program, pin: Pin = lambda call: call
) -> dict[str, tuple[str, str]]:
    """The entries of the resolved text that differ, and `net` if a net differs. `pin` changes the
    paths of both."""
    old, new = (_resolved_entries(p, pin) for p in (before, now))
    found = {k: (old.get(k, "none"), v) for k, v in new.items() if old.get(k) != v}
    if _net_items(before) != _net_items(now):
        found["net"] = ("as it was", "changed")
    return found


def _resolved_entries(of: Program, pin: Pin) -> dict[str, str]:
    return {
        f"{x.kind}.{x.name}.{e.name}" if x.name else f"{x.kind}.{e.name}": expression_text(e.value)
        for x in resolve_file(of, None, pin).items
        if isinstance(x, s.Section)
        for e in x.entries
        if isinstance(e, s.SectionEntry)
    }


def _net_items(of: Program) -> list[s.Item]:
    return [i for i in of.items if isinstance(i, s.Net | s.Instance | s.Block | s.Let)]


def check_same_recipe(folder: Path, asked: Program, pin: Pin) -> None:
    """Raises NetError if a directory holds a run of another recipe than `asked`, the program of a
    resolved recipe whose paths `pin` found; for a run that was asked for again."""
    path = folder / "recipe.net"
    if not path.is_file():
        return
    changes = diff_programs(build_program(parse_file(str(path)), reject_read), asked, pin)
    if changes:
        differences = [f"`{k}` is {old} there, but {new} now" for k, (old, new) in changes.items()]
        raise fail(
            f"{folder} contains a run of another recipe: {differences[0]}",
            notes=differences[1:],
            help="give another `--out`; nothing was overwritten",
        )


def check_same_data(saved: Checkpoint, fingerprint: str, name_fingerprint: str) -> None:
    """Raises NetError if a run was trained on other images than those of a data set with these
    fingerprints."""
    before = saved.progress.get("data", fingerprint)
    if before not in (fingerprint, name_fingerprint):
        raise fail(
            f"the data set is not the one on which the run of {saved.origin} was trained",
            notes=[f"then: {before}", f"now: {fingerprint}"],
            help="held-out images would be used for training; restore the data, or start "
            "a new run with `init = weights(...)`",
        )


def note_changes(saved: Checkpoint, net_text: str) -> Checkpoint:
    """The checkpoint with a note on what changes if its run is resumed with `net_text`."""
    changes = {}
    if net_text != saved.net_text:
        now = build_program(parse(net_text), reject_read)
        changes = diff_programs(saved.program(), now, make_pin(None))
    if not changes:
        return saved
    words = ", ".join(f"{k} = {new} (was {old})" for k, (old, new) in changes.items())
    words = escape_line(words)  # a note is one line, whatever strings the recipe contains
    words = (
        words if len(words) <= MAX_MESSAGE_CHARACTERS else f"{words[:MAX_MESSAGE_CHARACTERS]}..."
    )
    done = saved.progress.get("update", 0)
    notes = [*saved.progress.get("changes", ()), f"resumed after {done} updates: {words}"]
    return replace(saved, progress={**saved.progress, "changes": notes})
