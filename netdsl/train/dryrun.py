"""What a run would do: its recipe spelled out, its steps, its memory, what its globs match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from netdsl.data.inventory import Inventory
from netdsl.globs import matches
from netdsl.plan.fusion import ALONE, Fusion
from netdsl.train.job import Job
from netdsl.train.memory import Memory, predicted
from netdsl.train.precision import described
from netdsl.train.start import beginning


@dataclass(frozen=True)
class Matched:
    """A glob of the recipe, the key that it stands under, and the weights that it matches."""

    key: str
    glob: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class DryRun:
    """All that can be known of a run before it."""

    recipe: str
    params: int
    learnt: int
    images: int
    validation: int
    steps: int
    epochs: int
    precision: str
    memory: Memory
    globs: tuple[Matched, ...]
    found: Inventory | None = None
    """What was found of the data; nothing where some of them are missing."""
    missing: str | None = None
    """What of the data is not there, so that nothing is known of images and steps."""

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "missing": self.missing,
            "data": self.found.as_json() if self.found else None,
            "params": self.params,
            "learnt": self.learnt,
            "images": self.images,
            "validation": self.validation,
            "steps_per_epoch": self.steps,
            "steps": self.steps * self.epochs,
            "precision": self.precision,
            "memory": {**self.memory.parts(), "total": self.memory.total},
            "globs": [{"key": g.key, "glob": g.glob, "matches": g.weights} for g in self.globs],
        }


def dry_run(job: Job, fusion: Fusion = ALONE) -> DryRun:
    """What a job would do; no weight is drawn. Raises NetError where the weights that it begins
    with do not fit."""
    recipe, states = job.recipe, job.network.graph.states
    if recipe.init is not None:
        beginning(recipe.init, states, recipe.spans.get("init"))
    updated = [n for n in job.network.parameters if n.name in job.step.updates]
    return DryRun(
        recipe=job.net_text,
        params=job.network.params,
        learnt=sum(n.type.size for n in updated),
        images=len(job.train),
        validation=len(job.validation),
        steps=job.steps,
        epochs=job.recipe.epochs,
        precision=described(job.recipe.precision),
        memory=predicted(job, fusion),
        globs=_globs(job),
        found=None if job.missing is not None else job.found,
        missing=job.missing,
    )


def _globs(job: Job) -> tuple[Matched, ...]:
    recipe, states = job.recipe, [n.name for n in job.network.graph.states]
    learnable = [n.name for n in job.network.parameters]
    left_out = recipe.init.arguments["except"] if recipe.init else ()
    keys = (
        ("freeze", recipe.freeze, states),
        ("lr_scale", [glob for glob, _ in recipe.lr_scale], learnable),
        ("no_decay", recipe.optimizer.arguments["no_decay"], learnable),
        ("except", left_out, states),
    )
    return tuple(
        Matched(key, glob, tuple(n for n in names if matches(n, glob)))
        for key, globs, names in keys
        for glob in globs
    )
