"""Checks that a resumed run uses the same order, split and crops of images as when it started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from netdsl.data.revisions import (
    BALANCED_ORDER,
    DRAWS,
    FIT,
    LIMIT,
    ORDER,
    REVISIONS,
    SKIPPED,
    SPLIT,
    Revisions,
    changes_since,
)
from netdsl.data.sampling import BALANCED
from netdsl.errors import fail
from netdsl.training.job import Job
from netdsl.training.recipe.recipe import resolve_recipe
from netdsl.training.store.checkpoint import Checkpoint

PIPELINE_KEY = "pipeline"
"""The entry of a checkpoint's progress that maps each pipeline component to its revision."""


@dataclass(frozen=True)
class _Component:
    """A pipeline component that determines a run's images, with its changes so far."""

    name: str
    changes: Revisions
    arguments: Mapping[str, Any] = field(default_factory=dict)


def pipeline_revisions(job: Job) -> dict[str, int]:
    """The pipeline components that a job uses, with their revisions in this version of the
    program."""
    return {part.name: 1 + len(part.changes) for part in _components(job)}


def _components(job: Job) -> Iterator[_Component]:
    data, image = job.recipe.data, job.dataset.train.image_shape
    order = BALANCED_ORDER if data.sampling == BALANCED else ORDER
    yield _Component(order, REVISIONS[order])
    if data.limit is not None:
        yield _Component(LIMIT, REVISIONS[LIMIT])
    if job.dataset.validation is None and data.validation:
        yield _Component(SPLIT, REVISIONS[SPLIT])
    if any(chosen.record.is_random for chosen in data.augment):
        yield _Component(DRAWS, REVISIONS[DRAWS])
    for chosen in (*data.augment, *data.eval_transform):
        yield _Component(chosen.name, chosen.record.revisions, chosen.arguments)
    if any(prepare.needs_resize(image) for prepare in (job.augment, job.transform)):
        yield _Component(FIT, REVISIONS[FIT])
    if image is None and data.is_skipping_bad_pictures:
        yield _Component(SKIPPED, REVISIONS[SKIPPED])


def check_pipeline(saved: Checkpoint, job: Job) -> None:
    """Raises NetError if the run was started by a version of the program that prepares its images
    differently. Changes made by the user (`--set`) are not checked here."""
    before = _saved_revisions(saved)
    parts = [part for part in _components(job) if part.name in before]
    notes = [note for part in parts for note in _differences(part, before[part.name])]
    if notes:
        raise fail(
            f"{saved.origin} cannot be resumed: another version of netdsl started the run and "
            f"prepared images differently",
            notes=list(dict.fromkeys(notes)),
            help=f'start a new run from these weights with `init = weights("{saved.origin}")`',
        )


def find_split_revision(saved: Checkpoint) -> int | None:
    """The revision of the split by which a run held out images; None if it held out none."""
    return _saved_revisions(saved).get(SPLIT)


def _differences(part: _Component, before: int) -> list[str]:
    now = 1 + len(part.changes)
    if before > now:
        return [f"{part.name}: revision {before}, which this version does not know"]
    return [f"{part.name}: {what}" for what in changes_since(before, part.changes, part.arguments)]


def _saved_revisions(saved: Checkpoint) -> dict[str, int]:
    """The revisions that a run was started with. A checkpoint without them has the first ones."""
    found, data = saved.progress.get(PIPELINE_KEY), resolve_recipe(saved.program()).data
    if found is None:
        names = (c.name for c in (*data.augment, *data.eval_transform))
        found = dict.fromkeys((*REVISIONS, *names), 1)
    if not data.is_skipping_bad_pictures:  # so far it had none
        return {name: n for name, n in found.items() if name != SKIPPED}
    return {SKIPPED: 1, **found}  # which was not recorded at first
