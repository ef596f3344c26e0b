"""Validation and test of a run, with the average of the weights if the recipe has one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from netdsl.backends.lazy_batch import materialize
from netdsl.data.samples import Batch, Samples, cache_on_device, evaluation_batches
from netdsl.runtime.executor import FoldedExecutor, Workspace
from netdsl.runtime.state import State
from netdsl.training.job import Job
from netdsl.training.metrics.table import MetricName, Score, measured_names
from netdsl.training.run.nan_check import Diverged, Fault, find_fault
from netdsl.training.run.score import evaluate
from netdsl.training.run.tally import Tally
from netdsl.training.step.targets import target_inputs
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import inference_states
from netdsl.training.store.shared_checkpoint import share_checkpoint


class ValidationDiverged(Diverged):
    """The validation loss is not finite. `fault` is the first non-finite value, if found."""

    def __init__(self, fault: Fault | None) -> None:
        super().__init__()
        self.fault = fault


class Evaluator:
    """The executor of the evaluation, which shares its workspace with the training step."""

    def __init__(self, job: Job, state: State, workspace: Workspace) -> None:
        self.job, self.state, self.workspace = job, state, workspace
        self.averages = State(state.backend) if job.recipe.ema else state
        self.averages.initialise(job.evaluation_graph.states, job.recipe.seed)
        self.executor = self._executor(self.averages)
        self.validation: Samples = job.validation

    def _executor(self, state: State) -> FoldedExecutor:
        return FoldedExecutor(
            self.job.folded_evaluation, state.backend, state, workspace=self.workspace
        )

    @property
    def has_validation(self) -> bool:
        return len(self.validation) > 0

    def upload_images(self) -> None:
        """Caches the validation images on the device if they fit."""
        self.validation = cache_on_device(
            self.job.validation, self.job.transform, self.state.backend
        )

    def release_images(self) -> None:
        self.validation = self.job.validation

    def validate(self, on_images: Callable[[int], None]) -> Score:
        """Returns the score on the validation images; calls `on_images` after every batch, with
        the number of images so far. Raises ValidationDiverged if the loss is not finite."""
        if self.averages is not self.state:
            weights = inference_states(self.state.snapshot())
            states = self.job.evaluation_graph.states
            self.averages.load(weights, states, "the average of the weights")
        score = self._score("val", self.executor, self.validation, on_images)
        if not math.isfinite(score.loss):
            raise ValidationDiverged(self._find_fault())
        return score

    def test(self, path: Path, samples: Samples, on_images: Callable[[int], None]) -> Score:
        """Returns the score of the checkpoint at `path` on the test images. Raises NetError if it
        cannot be read."""
        backend = self.state.backend
        best = share_checkpoint(backend.communicator, lambda: checkpoint.load(path))
        assert best is not None
        state = State(backend)
        state.load(best.states, self.job.evaluation_graph.states, best.origin)
        return self._score("test", self._executor(state), samples, on_images)

    def metrics(self, part: str, score: Score | None) -> dict[str, float | None]:
        """The metrics of the images of a part, by name; None if they were not measured."""
        names, classes = self._names(part), self.job.dataset.classes
        if score is None:
            return {str(name): None for name in names}
        return {str(name): name.measure(score, classes) for name in names}

    def _names(self, part: str) -> tuple[MetricName, ...]:
        return measured_names(part, self.job.recipe.requested_metrics)

    def _keeps_scores(self, part: str) -> bool:
        return any(name.metric.needs_scores for name in self._names(part))

    def _score(
        self,
        part: str,
        executor: FoldedExecutor,
        samples: Samples,
        on_images: Callable[[int], None],
    ) -> Score:
        tally = Tally(
            len(self.job.dataset.classes),
            samples.is_multi_label,
            keeps_scores=self._keeps_scores(part),
        )
        batches = self._batches(samples)
        return evaluate(executor, self.job.image_input, batches, tally, on_images)

    def _batches(self, samples: Samples) -> Iterator[Batch]:
        job = self.job
        batch = job.evaluation_network.batch
        return evaluation_batches(samples, batch, job.transform, job.shard)

    def _find_fault(self) -> Fault | None:
        """The first non-finite value of the validation, given that all weights are finite."""
        states = self.averages.snapshot()
        for batch in self._batches(self.validation):
            inputs = {self.job.image_input: materialize(batch.images), **target_inputs(batch)}
            fault = find_fault(self.job.evaluation_graph, {**states, **inputs})
            if fault is not None:
                return fault
        return None
