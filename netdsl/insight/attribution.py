"""Attribution of a class's score to parts of a picture: integrated gradients and Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from netdsl.errors import fail, suggest_name
from netdsl.inference import Predictor
from netdsl.ir.autodiff import grad
from netdsl.ir.builder import Builder
from netdsl.ir.verifier import verify_graph
from netdsl.ir.views import strip_views
from netdsl.language.elaborate import Settings
from netdsl.language.network import Network
from netdsl.limits import DEFAULT_ATTRIBUTION_STEPS
from netdsl.passes import pass_manager
from netdsl.runtime.executor import Executor
from netdsl.training.checks import check_class_scores
from netdsl.training.recipe.losses import class_scores
from netdsl.training.recipe.recipe import Recipe
from netdsl.training.step.graphs import prediction_graph
from netdsl.types import Array, Graph, Node, TensorType, dims

CHOSEN = "chosen"
SCORES, PROBABILITIES, VALUE, GRADIENT = "scores", "probabilities", "value", "gradient"
_MAX_BATCH, _MAX_BATCH_BYTES = 16, 2**29
"""The most pictures that are computed together, and bytes of values that they may have."""


@dataclass(frozen=True)
class ChosenClass:
    """The class that is explained: its number, its name, the score of the picture for it (before
    softmax or sigmoid) and its probability."""

    index: int
    name: str
    score: float
    probability: float

    def describe(self) -> str:
        """Name, probability and score on one line."""
        return f"class {self.name}  {self.probability:.1%}  score {self.score:.4g}"


@dataclass(frozen=True)
class Saliency:
    """Integrated gradients of a picture [H,W,C] in grey levels: `attributions` [H,W,C] say how much
    each value adds to the score, compared with a picture that is `baseline` everywhere."""

    picture: Array
    attributions: Array
    chosen: ChosenClass
    baseline_score: float
    steps: int

    @property
    def total(self) -> float:
        """The sum of all attributions."""
        return float(self.attributions.sum(dtype=np.float64))

    @property
    def difference(self) -> float:
        """The score minus that of the baseline, which the sum approaches with more steps."""
        return self.chosen.score - self.baseline_score

    @property
    def completeness_error(self) -> float:
        """How far the sum is from the difference of the scores, as a share of the difference, or
        as it is if both scores are the same."""
        gap = abs(self.total - self.difference)
        return gap / abs(self.difference) if self.difference else gap


@dataclass(frozen=True)
class GradCam:
    """Where in a picture [H,W,C] maps of a place support a class: `heat` [h,w], 0 and above, in
    units of the score."""

    picture: Array
    heat: Array
    chosen: ChosenClass
    place: str


def attribution_graph(network: Network, recipe: Recipe, at: str) -> Graph:
    """From pictures and `chosen` (one-hot, N x classes) to `scores` and `probabilities` [N,
    classes], the `value` of the node `at`, and the `gradient` of each picture's chosen score by it.
    The scores are those before a final softmax or sigmoid. Raises NetError if the net does not
    give one score per class."""
    forward = prediction_graph(network, recipe)
    b = Builder(forward, network.dtype)
    with b.at(None, "attribution"):
        scores = _find_raw_scores(b, network)
        chosen = b.input(CHOSEN, TensorType(scores.type.shape, b.dtype))
        total = b.reduce_sum(b.mul(scores, chosen), axes=(0, 1))
    gradient = grad(b, total, [b.nodes[at]])[at]
    results = {
        SCORES: scores,
        PROBABILITIES: b.nodes[forward.outputs[PROBABILITIES]],
        VALUE: b.nodes[at],
        GRADIENT: gradient,
    }
    return verify_graph(b.build(results, name=f"{network.name}.attribution"))


def _find_raw_scores(b: Builder, network: Network) -> Node:
    """The scores [N, classes] before the function that makes probabilities of them."""
    end = strip_views(network.graph, network.graph.outputs["main"])
    is_final = end.op in ("softmax", "log_softmax", "sigmoid")
    return class_scores(b, b.nodes[end.args[0]] if is_final else network.main_output)


class Attributor:
    """Computes the scores of pictures and the gradients of a class's score by the picture, or by
    the value at a place."""

    def __init__(self, trained: Predictor, place: str | None = None) -> None:
        """Raises NetError if there is no such place, or if the net gives no class scores."""
        batch = 1 if place is not None else _choose_batch(trained)
        network = trained.network(_elaboration_settings(trained.recipe, batch))
        check_class_scores(network, trained.recipe, trained.classes, trained.checkpoint.origin)
        self.batch = batch
        self._input, self._classes, self._backend = (
            network.image_input,
            trained.classes,
            trained.backend,
        )
        at = self._input if place is None else network.find_node(place).name
        graph = attribution_graph(network, trained.recipe, at)
        passes = (pass_manager.SIMPLIFY_PASS, pass_manager.LOWER_PASS, pass_manager.SIMPLIFY_PASS)
        self._executor = Executor(
            pass_manager.run_passes(graph, passes), trained.backend, trained.state
        )

    def run(self, pictures: Array, index: int = 0) -> dict[str, Array]:
        """The results of at most `batch` pictures [N,H,W,C] for the class of that number."""
        count = len(pictures)
        padded = pictures[np.minimum(np.arange(self.batch), count - 1)]
        chosen = np.zeros((self.batch, len(self._classes)), np.float32)
        chosen[:, index] = 1
        found = self._executor.run({self._input: padded, CHOSEN: chosen})
        return {k: np.array(self._backend.download(v))[:count] for k, v in found.items()}

    def choose_class(self, picture: Array, wanted: str | None) -> ChosenClass:
        """The class of that name or number, by default the one with the highest score for a
        picture [1,H,W,C]. Raises NetError if there is none."""
        found = self.run(picture)
        scores, probabilities = found[SCORES][0], found[PROBABILITIES][0]
        if np.isnan(scores).any():
            raise fail("a score of the picture is not a number", help="the weights may contain NaN")
        index = int(scores.argmax()) if wanted is None else find_class(self._classes, wanted)
        return ChosenClass(
            index, self._classes[index], float(scores[index]), float(probabilities[index])
        )


def find_class(classes: Sequence[str], wanted: str) -> int:
    """The number of a class given by its name, or else by its number. Raises NetError if there is
    none."""
    if wanted in classes:
        return classes.index(wanted)
    if wanted.isascii() and wanted.isdecimal() and int(wanted) < len(classes):
        return int(wanted)
    help = suggest_name(wanted, classes, "classes are") or f"numbers are 0 to {len(classes) - 1}"
    raise fail(f"there is no class `{wanted}`", help=help)


def compute_saliency(
    trained: Predictor,
    picture: Array,
    wanted: str | None = None,
    steps: int = DEFAULT_ATTRIBUTION_STEPS,
    baseline: float = 0.0,
    on_step: Callable[[int], None] = lambda done: None,
) -> Saliency:
    """Integrated gradients (Sundararajan et al. 2017) of a picture [1,H,W,C] in grey levels, of the
    net's size: the picture minus the baseline, times the
    mean gradient of the class's score on the straight line between both, sampled at the middle of
    `steps` equal parts. `baseline` is a grey level from 0 (black) to 255. Raises NetError if the
    net takes no pictures or gives no class scores, or if there is no such class."""
    picture = picture.astype(np.float32)
    attributor = Attributor(trained)
    chosen = attributor.choose_class(picture, wanted)
    start = np.full_like(picture, baseline)
    baseline_score = attributor.run(start)[SCORES][0, chosen.index]
    attributions = integrate_gradients(
        lambda x: attributor.run(x, chosen.index)[GRADIENT],
        *(picture[0], start[0]),
        *(steps, attributor.batch),
        on_step,
    )
    return Saliency(picture[0], attributions, chosen, float(baseline_score), steps)


def integrate_gradients(
    gradient: Callable[[Array], Array],
    picture: Array,
    start: Array,
    steps: int,
    batch: int = 1,
    on_step: Callable[[int], None] = lambda done: None,
) -> Array:
    """The attributions [...] of a function with this gradient ([n,...] to [n,...], at most `batch`
    at once), from `start` to `picture`, by the midpoint rule."""
    total = np.zeros(picture.shape, np.float64)
    for first in range(0, steps, batch):
        places = np.arange(first, min(first + batch, steps))
        share = ((places + 0.5) / steps).reshape(-1, *[1] * picture.ndim)
        points = start + share * (picture.astype(np.float64) - start)
        total += gradient(points.astype(picture.dtype)).sum(axis=0, dtype=np.float64)
        on_step(int(places[-1]) + 1)
    return (picture.astype(np.float64) - start) * total / steps


def compute_grad_cam(
    trained: Predictor, picture: Array, place: str | None = None, wanted: str | None = None
) -> GradCam:
    """Grad-CAM (Selvaraju et al. 2017) of a picture [1,H,W,C] in grey levels, of the net's size:
    the maps of a place, by default the last with maps, each
    weighted by the mean gradient of the class's score by it, summed and cut at 0. Raises NetError
    if the place has no maps or does not lead to the scores, or if there is no such class."""
    network = trained.network(_elaboration_settings(trained.recipe, 1))
    place = find_last_maps(network) if place is None else place
    _check_maps(network, place)
    picture = picture.astype(np.float32)
    attributor = Attributor(trained, place)
    chosen = attributor.choose_class(picture, wanted)
    found = attributor.run(picture, chosen.index)
    heat = weigh_maps(found[VALUE][0], found[GRADIENT][0])
    return GradCam(picture[0], heat, chosen, place)


def weigh_maps(maps: Array, gradients: Array) -> Array:
    """The heat [h,w] of maps [h,w,c] with the gradients [h,w,c] of a score by them."""
    weights = gradients.mean(axis=(0, 1), dtype=np.float64)
    return np.maximum(maps @ weights, 0)


def find_last_maps(network: Network) -> str:
    """The last layer before the scores whose output has several positions. Raises NetError if there
    is none."""
    for layer in reversed(network.layers):
        if _has_maps(network.graph[layer.result]) and _leads_to_scores(network, layer.result):
            return layer.path
    raise fail(f"`{network.name}` has no layer with maps", help="`netdsl saliency` takes any net")


def _check_maps(network: Network, place: str) -> None:
    node = network.find_node(place)
    if not _has_maps(node):
        shape = dims(node.type.shape[1:])
        help = f"the last place with maps is `{find_last_maps(network)}`"
        raise fail(f"`{place}` gives {shape}, not maps with several positions", help=help)
    if not _leads_to_scores(network, node.name):
        raise fail(f"the scores of `{network.name}` do not depend on `{place}`")


def _has_maps(node: Node) -> bool:
    return node.type.rank == 4 and max(node.type.shape[1:3]) > 1


def _leads_to_scores(network: Network, name: str) -> bool:
    return name in network.graph.backward_slice(network.graph.outputs["main"])


def load_picture(trained: Predictor, path: Path) -> Array:
    """A picture file as the net takes it, [1,H,W,C] of grey levels from 0 to 255. Raises NetError
    if it is none, or if the net takes no pictures."""
    network = trained.network(_elaboration_settings(trained.recipe, 1))
    return trained.load_picture(network, path)


def _elaboration_settings(recipe: Recipe, batch: int) -> Settings:
    """As in evaluation, but for pictures with values between the grey levels."""
    return replace(recipe.settings(training=False, batch=batch), input_dtype="float32")


def _choose_batch(trained: Predictor) -> int:
    """How many pictures are computed together, such that their values fit into memory."""
    network = trained.network(_elaboration_settings(trained.recipe, 1))
    size = sum(n.type.nbytes for n in network.graph.nodes.values() if n.op != "state")
    return max(1, min(_MAX_BATCH, _MAX_BATCH_BYTES // size))
