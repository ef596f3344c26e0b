"""A run of a recipe: builds and checks it, trains it, and explains the errors that end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from netdsl.backends.base import Backend
from netdsl.data.pictures import BadPicture
from netdsl.data.sources import GivenData
from netdsl.errors import NetError, fail
from netdsl.interrupt import Stopped
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.ranks.rank_names import name_ranks
from netdsl.runtime.executor import Workspace
from netdsl.runtime.state import State
from netdsl.training.job import prepare_job
from netdsl.training.metrics.table import MetricName
from netdsl.training.recipe.initial_weights import match_states, shapes_of
from netdsl.training.run.bad_pictures import PictureMonitor, bad_picture_error
from netdsl.training.run.callbacks import (
    Callbacks,
    OnEpoch,
    OnStep,
    Result,
    StopRequested,
    format_end,
)
from netdsl.training.run.evaluator import Evaluator, ValidationDiverged
from netdsl.training.run.interval_timers import explain_short_interval
from netdsl.training.run.loop import train
from netdsl.training.run.memory import out_of_memory_error
from netdsl.training.run.nan_check import Diverged, Fault, divergence_error
from netdsl.training.run.phase import OnPhase, Phase, ignore_phase
from netdsl.training.run.replicas import find_first_origin
from netdsl.training.run.stepper import Stepper
from netdsl.training.run.watch_monitor import WatchMonitor
from netdsl.training.step.graphs import SUM_SUFFIX
from netdsl.training.step.loss_scale import SCALE_STATES
from netdsl.training.step.watch import WatchRequest
from netdsl.training.store.checkpoint import Checkpoint, inference_states
from netdsl.training.store.pipeline_revisions import check_pipeline
from netdsl.training.store.progress import Progress, load_progress
from netdsl.training.store.resume import (
    check_continues,
    check_same_data,
    check_states,
    is_finished_and_changed,
    note_changes,
)
from netdsl.training.store.run_directory import ReplicaDirectory, RunDirectory
from netdsl.training.store.warm_start import WarmStart, initialise_weights
from netdsl.types import Graph


class Trainer:
    """One run of one recipe. The constructor reads the data and checks everything that can go
    wrong.

    The run starts from freshly drawn weights, from those of `start`, or resumes the run of `saved`.
    `on_phase` is called with each phase, here and in `run`. `metrics` are measured besides those
    that the recipe names. Raises NetError if something is wrong
    or the run does not fit into memory.
    """

    def __init__(
        self,
        program: Program,
        recipe_name: str | None,
        backend: Backend,
        data: GivenData = None,
        start: Checkpoint | None = None,
        saved: Checkpoint | None = None,
        on_phase: OnPhase = ignore_phase,
        metrics: Sequence[MetricName] = (),
    ) -> None:
        self.on_phase = on_phase
        on_phase(Phase("reading data"))
        self.job = prepare_job(
            program, recipe_name, data, metrics=metrics, communicator=backend.communicator
        )
        self.recipe = self.job.recipe
        self.backend = backend.as_deterministic() if self.recipe.deterministic else backend
        self.warm_start: WarmStart | None = None
        free_bytes = self.backend.free_bytes()
        try:
            self._allocate(start, saved)
        except MemoryError:
            with_batch = lambda batch: self.job.with_batch(program, batch)
            fusion = self.backend.fusion
            raise out_of_memory_error(self.job, fusion, free_bytes, with_batch) from None
        self.previous_text = saved.net_text if saved else None
        self._is_finished_and_changed = saved is not None and is_finished_and_changed(
            saved, self.progress
        )
        self.reported_faults = len(self.job.dataset.picture_errors)  # those are in the inventory

    def _allocate(self, start: Checkpoint | None, saved: Checkpoint | None) -> None:
        self.on_phase(Phase("initializing weights"))
        self.state = State(self.backend)
        progress = self._restore(saved) if saved else self._initialise(start)
        self.on_phase(Phase("planning"))
        self.workspace = Workspace(self.backend, self.job.graphs)
        self.on_phase(Phase("compiling kernels"))
        self.stepper = Stepper(self.job, self.state, progress, self.workspace)
        self.evaluator = Evaluator(self.job, self.state, self.workspace)
        self.stepper.upload_images()
        self.evaluator.upload_images()

    def _initialise(self, start: Checkpoint | None) -> Progress:
        if start is not None:
            weights, states = inference_states(start.states), self.job.network.graph.states
            wanted = match_states(states, shapes_of(weights), (), start.origin)
            self.state.load(weights, wanted, start.origin)
        else:
            self.warm_start = initialise_weights(self.state, self.job.network, self.recipe)
        self.state.initialise(self.job.step_graph.states, self.recipe.seed)
        return Progress()

    def _restore(self, saved: Checkpoint) -> Progress:
        dataset = self.job.dataset
        check_same_data(saved, self.job.data_fingerprint, dataset.name_fingerprint)
        check_pipeline(saved, self.job)
        # if the loss was not scaled before, it starts with the recipe's scale
        new = [name for name in SCALE_STATES if name not in saved.states]
        states = self.job.step_graph.states
        wanted = [n for n in states if not n.name.endswith(SUM_SUFFIX) and n.name not in new]
        help = f'a new run can start from its weights with `init = weights("{saved.origin}")`'
        weights = self.job.network.graph.states
        match_states(weights, shapes_of(saved.states), (), saved.origin, help=help)
        check_states(wanted, saved)
        match_states(wanted, shapes_of(saved.states), (), saved.origin, help=help)
        self.state.load(saved.states, wanted, saved.origin)
        self.state.initialise(states, self.recipe.seed)
        progress = load_progress(note_changes(saved, self.job.net_text))
        images = len(self.job.train)
        if progress.seen > images:
            seen = f"{progress.seen:,} of the {images:,} images of an epoch"
            raise fail(f"{saved.origin} cannot be resumed: it claims to have seen {seen}")
        return progress

    @property
    def progress(self) -> Progress:
        return self.stepper.progress

    def opening_lines(self) -> tuple[str, ...]:
        """What the run learns from and starts with, as lines of text."""
        warm_start = self.warm_start.lines() if self.warm_start else ()
        notes = (*warm_start, *explain_short_interval(self.job))
        return (
            *self.job.inventory.lines(),
            *self._rank_lines(),
            *notes,
            *self._finished_lines(),
        )

    def _rank_lines(self) -> tuple[str, ...]:
        """How the ranks divide a batch, as a line of text."""
        count, batch = self.backend.communicator.size, self.recipe.data.batch
        if count == 1:
            return ()
        return (
            f"{count:,} ranks, each with {batch // count:,} of the {batch:,} images of a batch",
        )

    def _finished_lines(self) -> tuple[str, ...]:
        """Why a resumed run has nothing left to train, as a line of text."""
        if not self.progress.is_finished(self.recipe):
            return ()
        setting = self.progress.setting_to_continue(self.recipe)
        return (f"the run is complete; setting `{setting}` continues it",)

    def closing_line(self) -> str:
        """Which epoch of the finished run is the best one, and why it ended."""
        return format_end(self.progress, self.recipe)

    def run(
        self,
        out: Path,
        on_step: OnStep,
        on_epoch: OnEpoch,
        should_stop: Callable[[], bool] = lambda: False,
        watch: WatchRequest | None = None,
        log: Callable[[str], None] = lambda words: None,
    ) -> Result:
        """Trains to the end and writes all files of the run to `out`. The callables are those of
        `Callbacks`. If `should_stop` returns True, saves and raises Stopped. Raises
        NetError, naming the layer, if the loss is no longer finite."""
        if self._is_finished_and_changed and self.backend.communicator.is_root:
            has_test_set = self.job.dataset.read_test is not None
            check_continues(out, self.progress, self.recipe, has_test_set)
        kind = RunDirectory if self.backend.communicator.is_root else ReplicaDirectory
        directory = kind(out, self.job, self.state, self.progress, self.previous_text, log)
        if self.previous_text not in (None, self.job.net_text):
            directory.save_last(self.progress)  # the change is saved even if the run stops at once
        callbacks = Callbacks(on_step, on_epoch, should_stop, log, self.on_phase)
        pictures = PictureMonitor(self.job, log, self.reported_faults, self.backend.communicator)
        monitor = (
            WatchMonitor(watch, self.stepper, self.workspace, directory.metrics_log)
            if watch is not None
            else None
        )
        try:
            return train(
                self.job, self.stepper, self.evaluator, directory, pictures, callbacks, monitor
            )
        except StopRequested:
            directory.save_last(self.progress)
            raise Stopped from None
        except ValidationDiverged as e:
            where = f"the validation of epoch {self.progress.epoch + 1}"
            network = self.job.evaluation_network
            graph = self.job.evaluation_graph
            raise self._diverged(directory, graph, e.fault, where, network) from None
        except Diverged:
            raise self._step_diverged(directory) from None
        except BadPicture as e:
            raise self._bad_picture(directory, e) from None

    def _step_diverged(self, directory: RunDirectory) -> NetError:
        epoch, found = self.progress.epoch + 1, self.stepper.find_fault()
        where = f"step {found[0]:,} (epoch {epoch})" if found else f"epoch {epoch}"
        fault = found[1] if found else None
        return self._diverged(directory, self.job.step_graph, fault, where, self.job.network)

    def _diverged(
        self,
        directory: RunDirectory,
        graph: Graph,
        own_fault: Fault | None,
        where: str,
        network: Network,
    ) -> NetError:
        """The error that ends the run, on all ranks: that of the first rank with a fault."""
        communicator = self.backend.communicator
        fault, ranks = find_first_origin(communicator, graph, own_fault)
        if ranks:
            where += f", on {name_ranks(communicator.hosts, ranks)}"
        last, rate = directory.last, float(self.stepper.learning_rate())
        last_checkpoint = f"{last}, of epoch {self.progress.epoch}" if last.exists() else None
        return divergence_error(network, fault, where, rate, last_checkpoint)

    def _bad_picture(self, directory: RunDirectory, fault: BadPicture) -> NetError:
        """Saves the progress. To repair the data, the user may replace this picture and others, so
        the data are stored by name only, and the run can be resumed with pictures of the same
        names."""
        if not self.backend.communicator.is_alone:  # the others have begun an update
            return bad_picture_error(fault, directory.last.exists())
        try:
            self.stepper.synchronize()
        except Diverged:
            return self._step_diverged(directory)
        directory.save_last(self.progress, self.job.dataset.name_fingerprint)
        return bad_picture_error(fault, is_saved=True)
