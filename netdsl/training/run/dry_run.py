"""The dry run: the resolved recipe, its steps, its memory, and what its globs match."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from netdsl.data.inventory import Inventory
from netdsl.globs import matches_glob
from netdsl.plan.fusion import NO_FUSION, FusionOptions
from netdsl.training.job import Job
from netdsl.training.recipe.precision import describe_precision
from netdsl.training.recipe.rate_rules import full_scale
from netdsl.training.run.memory import Memory, predict_memory
from netdsl.training.store.progress import Progress
from netdsl.training.store.warm_start import load_initial_weights


@dataclass(frozen=True)
class GlobMatch:
    """A glob of the recipe, its key, and the weights that it matches."""

    key: str
    glob: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Rates:
    """The learning rate of the first update, the largest one, and that of the last update, if the
    loss never stops falling; `scale` is the factor of the recipe's `lr_rule`."""

    first: float
    largest: float
    last: float
    scale: float


@dataclass(frozen=True)
class DryRun:
    """Everything that is known about a run in advance."""

    recipe: str
    params: int
    trainable_params: int
    images: int
    validation: int
    steps: int
    epochs: int
    precision: str
    memory: Memory
    globs: tuple[GlobMatch, ...]
    inventory: Inventory | None = None
    """The inventory of the data; None if some are missing."""
    missing_data: str | None = None
    """Which data are missing, if any; the numbers of images and steps are then unknown."""
    rates: Rates | None = None
    """None if the number of steps is unknown."""
    class_weights: tuple[tuple[str, dict[str, float]], ...] = ()
    """The losses with class weights, and the weights by class."""

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "missing": self.missing_data,
            "data": self.inventory.as_json() if self.inventory else None,
            "params": self.params,
            "learnt": self.trainable_params,
            "images": self.images,
            "validation": self.validation,
            "steps_per_epoch": self.steps,
            "steps": self.steps * self.epochs,
            "lr": None if self.rates is None else asdict(self.rates),
            "precision": self.precision,
            "memory": {**self.memory.parts(), "total": self.memory.total},
            "class_weights": [{"loss": n, "weights": w} for n, w in self.class_weights],
            "globs": [{"key": g.key, "glob": g.glob, "matches": g.weights} for g in self.globs],
        }


def dry_run(job: Job, fusion: FusionOptions = NO_FUSION) -> DryRun:
    """Describes what a job would do, without drawing weights. Raises NetError if its initial
    weights do not fit."""
    recipe, states = job.recipe, job.network.graph.states
    if recipe.init is not None:
        load_initial_weights(recipe, states)
    updated = [n for n in job.network.parameters if n.name in job.step_graph.updates]
    return DryRun(
        recipe=job.net_text,
        params=job.network.params,
        trainable_params=sum(n.type.size for n in updated),
        images=len(job.train),
        validation=len(job.validation),
        steps=job.steps_per_epoch,
        epochs=job.recipe.epochs,
        precision=describe_precision(job.recipe.precision),
        memory=predict_memory(job, fusion),
        globs=_match_globs(job),
        rates=_find_rates(job) if job.steps_per_epoch else None,
        inventory=None if job.missing_data is not None else job.inventory,
        missing_data=job.missing_data,
        class_weights=_name_class_weights(job),
    )


_MAX_RATES = 2000
"""Updates whose rate is computed; the largest is looked for among them."""


def _find_rates(job: Job) -> Rates:
    recipe, steps = job.recipe, job.steps_per_epoch

    def rate(update: int) -> float:
        epoch, step = divmod(update, steps)
        progress = Progress(epoch=epoch, seen=step * recipe.images_per_update)
        return progress.learning_rate(recipe, steps)

    count = steps * recipe.epochs
    found = [rate(i) for i in (*range(0, count, -(-count // _MAX_RATES)), count - 1)]
    rule = recipe.lr_rule
    scale = full_scale(rule, recipe.images_per_update) if rule is not None else 1.0
    return Rates(found[0], max(found), found[-1], scale)


def _name_class_weights(job: Job) -> tuple[tuple[str, dict[str, float]], ...]:
    calls, classes = job.recipe.loss.class_weights, job.dataset.classes
    return tuple(
        (calls[name].name, dict(zip(classes, map(float, weights), strict=True)))
        for name, weights in job.class_weights.items()
    )


def _match_globs(job: Job) -> tuple[GlobMatch, ...]:
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
        GlobMatch(key, glob, tuple(n for n in names if matches_glob(n, glob)))
        for key, globs, names in keys
        for glob in globs
    )
