"""A job: a recipe with its net, data and graphs, fully checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from netdsl.data import sources
from netdsl.data.data_source import DatasetNotFound
from netdsl.data.inventory import Inventory, make_inventory
from netdsl.data.limit import limit_samples
from netdsl.data.listing import share_fingerprint
from netdsl.data.pictures import Pictures
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Dataset, Samples, split
from netdsl.data.sampling import BALANCED
from netdsl.data.shard import Shard
from netdsl.data.sources import NO_SOURCE, GivenData
from netdsl.errors import NetError, Source, fail
from netdsl.language.elaborate import elaborate
from netdsl.language.format import format_file
from netdsl.language.network import Network
from netdsl.language.parse import check_limits
from netdsl.language.program import Program
from netdsl.passes.batch_norm_folding import FoldedGraph
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.signature import BoundCall
from netdsl.training.checks import (
    check_batch_norm,
    check_data,
    check_division,
    check_images,
    check_loss,
    check_metrics,
    check_mixing,
    check_targets,
    check_unchanged,
    evaluation_batch,
    evaluation_transform,
    training_transform,
)
from netdsl.training.metrics.table import MetricName
from netdsl.training.recipe.expectations import check_test_metrics
from netdsl.training.recipe.losses import ClassInputs
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.recipe.resolved_recipe import resolve_file
from netdsl.training.step.compile import compile_accumulation, compile_evaluation, compile_step
from netdsl.training.step.graphs import evaluation_graph, training_graph
from netdsl.types import Graph


@dataclass(frozen=True)
class Job:
    """A run that is ready to start; no weight is drawn yet."""

    name: str | None
    recipe: Recipe
    net_text: str
    network: Network
    evaluation_network: Network
    dataset: Dataset
    train: Samples
    validation: Samples
    class_weights: ClassInputs = field(default_factory=dict)
    """The inputs of a training step for the weights of classes."""
    source: BoundCall | None = None
    """The source, with the paths where its files are if it was given a folder."""
    communicator: Communicator = ONE_RANK
    """The ranks that train together, each on its part of every batch."""
    common_fingerprint: str | None = None
    """The fingerprint of the data of all ranks, if there are several, which have compared it."""
    missing_data: str | None = None
    """Which data are missing, if any; there are then no samples."""

    @property
    def image_input(self) -> str:
        """The name of the graph input for images."""
        return self.network.image_input

    @property
    def augment(self) -> Preprocessing:
        """The preprocessing of training images."""
        return training_transform(self.network, self.recipe.data)

    @property
    def transform(self) -> Preprocessing:
        """The preprocessing of validation and test images."""
        return evaluation_transform(self.network, self.recipe.data)

    @property
    def images_per_update(self) -> int:
        """The number of images in one update."""
        return self.recipe.images_per_update

    @property
    def steps_per_epoch(self) -> int:
        """The number of updates per epoch."""
        return len(self.train) // self.images_per_update

    @cached_property
    def inventory(self) -> Inventory:
        """The inventory of the data."""
        source = self.source or self.recipe.data.source
        name = "as given" if source.record is NO_SOURCE else str(source.drop_defaults())
        data = self.recipe.data
        is_limited, is_balanced = data.limit is not None, data.sampling == BALANCED
        return make_inventory(
            name, self.dataset, self.train, self.validation, is_limited, is_balanced
        )

    @property
    def shard(self) -> Shard:
        """The part of each batch that this rank takes."""
        return Shard(self.communicator.rank, self.communicator.size)

    @cached_property
    def data_fingerprint(self) -> str:
        """The fingerprint of the training images and labels."""
        return self.common_fingerprint or self.dataset.fingerprint

    @cached_property
    def saved_fingerprint(self) -> str:
        """The fingerprint that checkpoints store. A rank that meets a damaged picture ends the run
        unsaved, so on several ranks it is always that of the names alone: the run can be resumed
        with another picture of the same name."""
        is_by_name = not self.communicator.is_alone and isinstance(self.train.images, Pictures)
        return self.dataset.name_fingerprint if is_by_name else self.data_fingerprint

    @cached_property
    def step_graph(self) -> Graph:
        return compile_step(self.network, self.recipe)

    @cached_property
    def accumulation_graph(self) -> Graph | None:
        """The graph for all batches of an update but the last, if an update takes several."""
        if self.recipe.accumulate == 1:
            return None
        return compile_accumulation(self.network, self.recipe)

    @cached_property
    def evaluation_graph(self) -> Graph:
        return evaluation_graph(self.evaluation_network, self.recipe)

    @cached_property
    def folded_evaluation(self) -> FoldedGraph:
        """The evaluation graph with folded batch norms."""
        return compile_evaluation(self.evaluation_network, self.recipe)

    @property
    def training_graphs(self) -> tuple[Graph, ...]:
        """The graphs of an update."""
        return (
            (self.step_graph, self.accumulation_graph)
            if self.accumulation_graph
            else (self.step_graph,)
        )

    @property
    def evaluation_graphs(self) -> tuple[Graph, ...]:
        """The graphs of an evaluation."""
        return self.folded_evaluation.prepare, self.folded_evaluation.main

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """All graphs that a run executes."""
        return self.training_graphs + self.evaluation_graphs

    def with_batch(self, program: Program, batch: int) -> Job:
        """The same job with another batch size."""
        recipe = replace(self.recipe, data=replace(self.recipe.data, batch=batch))
        network, evaluating = elaborate_networks(program, recipe, self.shard.count)
        return replace(self, recipe=recipe, network=network, evaluation_network=evaluating)


def elaborate_networks(program: Program, recipe: Recipe, ranks: int = 1) -> tuple[Network, Network]:
    """Elaborates the net for training by each of `ranks` and for evaluation. Raises NetError if it
    does not have exactly one image input, or if the ranks cannot share a batch equally."""
    check_division(recipe.data.batch, ranks, recipe.data.spans.get("batch"))
    network = elaborate(program, recipe.net, recipe.settings(training=True, ranks=ranks))
    batch = evaluation_batch(network, recipe.data)
    settings = recipe.settings(training=False, batch=batch)
    return network, elaborate(program, recipe.net, settings)


def split_samples(dataset: Dataset, recipe: Recipe) -> tuple[Samples, Samples]:
    """The training and validation samples. Validation samples are the source's own, or held out
    from the training samples; a limit then takes a part of the others."""
    data, seed = recipe.data, recipe.seed
    train, validation = (
        (dataset.train, dataset.validation)
        if dataset.validation is not None
        else split(dataset.train, data.validation, seed)
    )
    try:
        return limit_samples(train, data.limit, dataset.classes, seed), validation
    except NetError as e:
        raise e.with_default_span(data.spans.get("limit")) from None


def resolve_text(program: Program, name: str | None, data: GivenData) -> str:
    """The text of the recipe that a run stores, with the paths where its files were found. Raises
    NetError if it is too large to be read back."""
    text = format_file(resolve_file(program, name, sources.make_pin(data)))
    try:
        check_limits(Source("it", text))
    except NetError as e:
        raise fail(
            "a run stores its net, its recipes and everything that they use as one text, but here "
            f"{e.diagnostics[0].message}",
            help="remove the blocks and nets that this net does not need",
        ) from None
    return text


def prepare_job(
    program: Program,
    name: str | None,
    data: GivenData = None,
    allow_missing: bool = False,
    metrics: Sequence[MetricName] = (),
    communicator: Communicator = ONE_RANK,
) -> Job:
    """Reads the data and checks everything that can be checked in advance, so that a run does not
    fail later for a predictable reason. If the data are missing, raises NetError, or with
    `allow_missing` returns a job without samples. `metrics` are measured besides those of the
    recipe. Each rank of `communicator` takes its part of every batch."""
    recipe = replace(resolve_recipe(program, name), more_metrics=tuple(metrics))
    if isinstance(data, Dataset):
        check_unchanged(recipe.data, data.train)
        recipe = replace(recipe, has_float_images=data.train.are_floats)
    network, evaluating = elaborate_networks(program, recipe, communicator.size)
    check_mixing(network, recipe.data)
    check_loss(network, recipe)
    check_batch_norm(network, recipe)
    training_graph(network, recipe)
    text = resolve_text(program, name, data)
    try:
        dataset = sources.load(
            recipe.data.source, data, recipe.data.is_skipping_bad_pictures, communicator
        )
    except DatasetNotFound as e:
        if not allow_missing:
            raise
        check_images(network, recipe.data, recipe.data.source.record.image_shape)
        nothing = Samples(np.zeros((0, *network.image_shape), np.uint8), np.zeros(0, np.int32))
        empty = Dataset(nothing, ()), nothing, nothing
        why = e.diagnostics[0].message
        return Job(
            *(name, recipe, text, network, evaluating, *empty),
            communicator=communicator,
            missing_data=why,
        )
    recipe = replace(recipe, is_multi_label=dataset.train.is_multi_label)
    check_targets(network, recipe, dataset.train)
    check_data(network, recipe.data, dataset)
    if dataset.read_test is None:
        check_test_metrics(recipe.expectations)
    else:
        dataset.read_test()  # training does not read the test set: report errors in its files now
    train, validation = split_samples(dataset, recipe)
    check_metrics(recipe.metric_spans, dataset, validation)
    counts = train.count_by_class(len(dataset.classes))
    weights = recipe.loss.find_class_weights(dataset.classes, counts, len(train))
    source = recipe.data.source
    source = sources.make_pin(data)(source) if isinstance(data, str) else source
    job = Job(
        *(name, recipe, text, network, evaluating, dataset, train, validation, weights, source),
        communicator=communicator,
        common_fingerprint=share_fingerprint(communicator, dataset),
    )
    if job.steps_per_epoch == 0:
        message = f"a batch of {job.images_per_update} is larger than the {len(train)} images"
        made = f"`accumulate` combines {recipe.accumulate} batches of {recipe.data.batch}"
        raise fail(
            message,
            notes=[made] if recipe.accumulate > 1 else [],
            help="set a smaller `batch` in the data section, or a smaller `accumulate`"
            + (", or a larger `limit`" if recipe.data.limit else ""),
        )
    return job
