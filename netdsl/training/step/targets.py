"""The graph inputs for the targets of a batch, and their values."""

from __future__ import annotations

from netdsl.data.samples import Batch
from netdsl.ir.builder import Builder
from netdsl.language.network import Network
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.recipe.targets import Targets
from netdsl.types import Array, TensorType


def declare_targets(
    b: Builder, recipe: Recipe, network: Network, training: bool = False
) -> Targets:
    """Declares the inputs `weights` [N], `labels` int32 [N] unless images have several labels,
    and `targets` [N, classes] if they have or if training mixes labels."""
    batch, classes = network.batch, network.main_output.type.shape[-1]
    labels = targets = None
    if not recipe.is_multi_label:
        labels = b.input("labels", TensorType((batch,), "int32"))
    if recipe.is_multi_label or (training and recipe.mixes_labels):
        targets = b.input("targets", TensorType((batch, classes), b.dtype))
    weights = b.input("weights", TensorType((batch,), b.dtype))
    has_weights = bool(recipe.loss.class_weights) or recipe.data.is_skipping_bad_pictures
    ranks = network.ranks if training and has_weights else 1
    return Targets(classes, weights, labels, targets, ranks)


def target_inputs(batch: Batch) -> dict[str, Array]:
    """The values of the inputs that `declare_targets` declares, by name."""
    given = {"labels": batch.labels, "weights": batch.weights}
    return given if batch.targets is None else given | {"targets": batch.targets}
