"""A net in Python: its weights and figures, predictions, values at any place, its graph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import networkx as nx

from netdsl.api.arguments import read_path, read_place, read_places, require_device
from netdsl.api.forward import ForwardRunner, NetOfRecipe
from netdsl.api.inputs import NetInputs, combine_inputs, read_inputs
from netdsl.api.prediction import Prediction, check_numbers, make_predictions
from netdsl.backends import open_backend
from netdsl.data.preprocessing import Preprocessing
from netdsl.errors import fail
from netdsl.file_io import split_file_and_name
from netdsl.foreign_names import NAMES_OF_NETS, missing_attribute
from netdsl.inference import Predictor
from netdsl.insight.attribution import (
    GradCam,
    Saliency,
    compute_grad_cam,
    compute_saliency,
)
from netdsl.insight.compile_target import CompileTarget, build_unoptimized_graph, prepare_target
from netdsl.insight.features.ascent import AscentSettings
from netdsl.insight.features.feature_search import FeatureQuery, FeatureSearch
from netdsl.insight.features.visualization import Feature
from netdsl.insight.summary import LayerRow, summarise
from netdsl.ir.export import to_networkx
from netdsl.language.format import format_file
from netdsl.language.parse import parse
from netdsl.language.program import Program, build_program, load_program, reject_read
from netdsl.limits import DEFAULT_ASCENT_STEPS, DEFAULT_ATTRIBUTION_STEPS
from netdsl.runtime.state import draw_initial_value
from netdsl.training.checks import check_class_scores, has_scores
from netdsl.training.recipe.initial_weights import match_states, shapes_of
from netdsl.training.recipe.recipe import recipe_of_net, recipe_of_weights, resolve_recipe
from netdsl.training.recipe.resolved_recipe import resolve_file, resolve_net_file
from netdsl.training.step.graphs import has_label_probabilities
from netdsl.training.store import checkpoint
from netdsl.training.store.checkpoint import SUFFIX, Checkpoint
from netdsl.training.store.output_files import check_outputs, check_suffix
from netdsl.types import Array


@dataclass(frozen=True)
class Given:
    """Weights by name (None: to be drawn), names of the classes (none: numbers), metrics, and where
    they are from."""

    weights: Mapping[str, Array] | None
    classes: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "the net"


NO_WEIGHTS = Given(None)


class _NamedWeights(dict[str, Array]):
    """Weights by name, whose KeyError says which names there are."""

    def __missing__(self, name: str) -> Array:
        inside = [n for n in self if n.startswith(f"{name}.")]
        near = inside or get_close_matches(name, self, n=3) or list(self)[:3]
        raise KeyError(f"no weight is called {name!r}; there are {', '.join(map(repr, near))}")


class Net:
    """A net with weights, as returned by `netdsl.load` or a training run; it is immutable.

    Threads can share a net: their results do not depend on each other, and other threads run while
    one computes. The net is compiled on first use, once for each of a few batch sizes. It can be
    pickled: the pickle contains its text and its weights.
    """

    def __init__(
        self,
        source: NetOfRecipe,
        target: str | None = None,
        device: str = "auto",
        given: Given = NO_WEIGHTS,
    ) -> None:
        """Use `netdsl.load`. `target` is the name of a net or recipe that `graph` takes. Raises
        NetError if the net has errors, or if the given weights do not fit it."""
        if not isinstance(source, NetOfRecipe):
            raise fail("`netdsl.Net` is not called", help="netdsl.load(PLACE) gives a net")
        self._source, self._target, self._device = source, target, device
        self._network = source.elaborate(1)
        self._given = given
        if given.weights is not None:
            states = self._network.graph.states
            match_states(states, shapes_of(given.weights), (), given.origin)

    def __reduce__(self) -> tuple[Any, ...]:
        given = replace(self._given, weights=dict(self.weights))
        return _restore, (self.text, self.name, self._device, given)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raises AttributeError, with the name here for that of another library."""
            raise missing_attribute("a net", name, NAMES_OF_NETS)

    # ---- what it is

    @property
    def name(self) -> str:
        """The name of the net in its text."""
        return self._network.name

    @property
    def text(self) -> str:
        """The net and its recipe as one self-contained .net text with all defaults; the recipe
        names the net, even if the text contains other nets."""
        program = self._source.program
        if program.has_recipe(self._target):
            return format_file(resolve_file(program, self._target))
        return format_file(resolve_net_file(program, self.name))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores: numbers if nothing names them."""
        scores, names = self._network.main_output.type.shape[-1], self._given.classes
        is_named = bool(names) and (self._given.weights is not None or len(names) == scores)
        return names if is_named else tuple(map(str, range(scores)))

    @cached_property
    def is_multi_label(self) -> bool:
        """Whether the net predicts each label independently, because it was trained with `bce` or
        ends in sigmoids. An image can then have several labels, or none."""
        return has_label_probabilities(self._network, self._source.recipe)

    @property
    def seed(self) -> int | None:
        """The seed from which random weights are drawn; None for weights that were given."""
        return self._source.recipe.seed if self._given.weights is None else None

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the epoch in which the weights were saved; empty for random weights."""
        return dict(self._given.metrics)

    @property
    def params(self) -> int:
        """The number of trainable values."""
        return self._network.params

    @property
    def macs(self) -> int:
        """The multiply-accumulates for one image."""
        return self._network.macs

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one image: height, width, channels. Raises NetError if the net has several
        inputs."""
        return self._network.image_shape

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one image at each input, by the name of the input."""
        return {n.name: n.type.shape[1:] for n in self._network.sample_inputs}

    @property
    def output_place(self) -> str:
        """The place that gives the net's own value."""
        return self._network.output_paths["main"]

    @cached_property
    def layers(self) -> tuple[LayerRow, ...]:
        """The layers, as `netdsl summary` shows them."""
        return summarise(self._network).layers

    @cached_property
    def places(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of the value at each place, for one image: [H,W,C] or [C]."""
        paths = self._network.nodes_by_path
        return MappingProxyType({p: self._network.find_node(p).type.shape[1:] for p in paths})

    @cached_property
    def weights(self) -> Mapping[str, Array]:
        """The weights and running statistics by name, read-only; a `.copy()` can be changed.
        Convolutions are K x R x S x C. Without a checkpoint, the weights are random, from the seed
        of the recipe."""
        given, seed = self._given.weights, self._source.recipe.seed
        found = {
            n.name: draw_initial_value(n, seed) if given is None else given[n.name]
            for n in self._network.graph.states
        }
        for value in found.values():
            value.flags.writeable = False
        return MappingProxyType(_NamedWeights(found))

    def __repr__(self) -> str:
        return f"<netdsl.Net {self.name}, {self.params:,} parameters>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint (`.safetensors`) that all commands read. Raises NetError if it cannot
        be written, or if the file exists and was not written by an import, an export or `save`."""
        place = Path(read_path(path, "path"))
        help = (
            f"a checkpoint is a {SUFFIX}; `netdsl export x{SUFFIX} -o x.onnx` converts it to ONNX"
        )
        check_suffix(place, SUFFIX, help)
        check_outputs([place], is_save=True)
        about = self.text, self.classes, self.metrics
        checkpoint.save(place, Checkpoint(self.weights, *about, progress={}))

    # ---- what it computes

    def __call__(self, images: Any, at: str | None = None) -> Array:
        """The scores of images, [N, classes], or the value at a place of the net, [N,H,W,C] or
        [N,C]; places are the paths that `netdsl summary` shows. A net that gives images has no
        scores, so its own value is that at its last place. Images are those of `predict`; a net
        with several inputs takes a dict with the images of each by its name. Raises NetError if
        there is no such place."""
        if at is None and has_scores(self._network):
            return self._runner.run(self._inputs(images))["scores"]
        place = self.output_place if at is None else read_place(at)
        return self.values(images, (place,))[place]

    def values(self, images: Any, places: Sequence[str]) -> dict[str, Array]:
        """The values at several places, computed together: arrays [N,H,W,C] or [N,C] by place.
        Images are those of a call. Raises NetError if there is no such place."""
        chosen = read_places(places)
        for place in chosen:
            self._network.find_node(place)
        return self._runner.run(self._inputs(images), chosen)

    def predict(self, images: Any) -> list[Prediction]:
        """The most likely class of each image, or its labels.

        Images are pictures, which are resized, cropped and normalised as by `netdsl predict`: a
        path, a Pillow image, a list of these, or bytes (uint8) [N,H,W,C] or [H,W,C]; or floats
        [N, *input_shape], which are used unchanged. For a single channel, the last axis can be
        left out. Without images, the list is empty. Raises NetError for anything else, and if a
        score is NaN."""
        found = self._score(images)
        scores, probabilities = found["scores"], found["probabilities"]
        return make_predictions(self.classes, scores, probabilities, self.is_multi_label)

    def probabilities(self, images: Any) -> Array:
        """The probabilities of all classes, [N, classes], for images as in `predict`: each row adds
        up to 1, unless the net `is_multi_label`. Raises NetError in the same cases as `predict`."""
        return self._score(images)["probabilities"]

    def saliency(
        self,
        image: Any,
        class_name: str | int | None = None,
        steps: int = DEFAULT_ATTRIBUTION_STEPS,
        baseline: float = 0.0,
    ) -> Saliency:
        """How much each value of a picture adds to the score of a class, by default the most likely
        one: integrated gradients, as `netdsl saliency` draws them. `baseline` is the grey level,
        from 0 to 255, of the picture that it is compared with. Raises NetError for anything but one
        picture, and if there is no such class."""
        picture, wanted = self._picture(image), _format_class(class_name)
        return compute_saliency(self._predictor, picture, wanted, steps, baseline)

    def grad_cam(
        self, image: Any, at: str | None = None, class_name: str | int | None = None
    ) -> GradCam:
        """Where in a picture the maps of a place, by default the last one with maps, support a
        class, by default the most likely one: Grad-CAM, as `netdsl gradcam` draws it. Raises
        NetError as `saliency` does, and if the place has no maps."""
        picture, wanted = self._picture(image), _format_class(class_name)
        place = None if at is None else read_place(at)
        return compute_grad_cam(self._predictor, picture, place, wanted)

    def visualize(
        self,
        place: str,
        channels: Sequence[int] | None = None,
        diversity: int = 1,
        size: int | None = None,
        steps: int = DEFAULT_ASCENT_STEPS,
        seed: int = 1,
    ) -> list[Feature]:
        """Pictures, bytes [diversity,H,W,C], that activate channels of a place most, by default the
        first 16, with their activations: as `netdsl visualize` draws them, without dead channels.
        Raises NetError if there is no such place or channel, and for sizes that the net does not
        take."""
        if min(diversity, steps, size or 1) < 1 or seed < 0:
            raise fail("`diversity`, `size` and `steps` are at least 1, and `seed` is at least 0")
        chosen = None if channels is None else ",".join(map(str, channels))
        query = FeatureQuery(read_place(place), chosen, diversity=diversity, size=size)
        search = FeatureSearch(self._predictor, query, AscentSettings(steps, seed=seed))
        return [row.feature for row in search.run().rows]

    def _picture(self, image: Any) -> Array:
        """One picture, [1,H,W,C], as the net takes it. Raises NetError if it is none."""
        inputs = self._inputs(image)
        if inputs.are_floats:
            raise fail("floats are not pictures", help="give a path, a Pillow image or uint8")
        if len(inputs) != 1:
            raise fail(f"one picture is explained at a time, and {len(inputs):,} were given")
        return inputs.batch(0, 1)[self._network.image_input]

    @cached_property
    def _predictor(self) -> Predictor:
        saved = Checkpoint(self.weights, self.text, self.classes, self.metrics, progress={})
        return Predictor(saved, open_backend(self._device))

    def _score(self, images: Any) -> dict[str, Array]:
        check_class_scores(self._network, self._source.recipe, self.classes, self._given.origin)
        found = self._runner.run(self._inputs(images))
        check_numbers(found["scores"])
        return found

    def _inputs(self, images: Any) -> NetInputs:
        shapes, transform = self.input_shapes, self._source.recipe.data.eval_transform
        if not isinstance(images, Mapping):
            if len(shapes) > 1:
                listed = ", ".join(self._network.described_inputs)
                help = "give each by its name: net({" + ", ".join(f'"{x}": ...' for x in shapes)
                raise fail(f"`{self.name}` has the inputs {listed}", help=help + "})")
            images = {next(iter(shapes)): images}
        if images.keys() != shapes.keys():
            given, wanted = (", ".join(f"`{x}`" for x in names) for names in (images, shapes))
            raise fail(f"the inputs of `{self.name}` are {wanted}, not {given or 'none'}")
        return combine_inputs(
            {
                name: read_inputs(images[name], shape, Preprocessing(transform, shape))
                for name, shape in shapes.items()
            }
        )

    @cached_property
    def _runner(self) -> ForwardRunner:
        return ForwardRunner(self._source, self.weights, self._device)

    # ---- what it is made of

    def graph(
        self, train: bool = False, batch: int | None = None, passes: bool = True
    ) -> nx.DiGraph:
        """The net as a networkx graph, a copy that you can change: for inference, or with `train`
        the whole training step of a recipe, including gradients and updates; with `passes=False`,
        as written in the source, before the compiler rewrites it.

        Nodes are names, in an order in which they can run; `graph.nodes[name]["node"]` contains
        operator, operands, attributes and type. An edge leads from an operand to its reader; its
        `operands` are the positions at which it is read. `graph.graph` contains `name`, and under
        `outputs` and `updates` the nodes of the outputs and of the new values of the states. Raises
        NetError if the recipe has errors.
        """
        target = CompileTarget(self._target if train else self.name, train, batch)
        if passes:
            return to_networkx(prepare_target(self._source.program, target).graph)
        return to_networkx(build_unoptimized_graph(self._source.program, target))


def load(place: str | os.PathLike[str], device: str = "auto", seed: int | None = None) -> Net:
    """Loads a net: with its best weights from a run directory, with the weights of a checkpoint
    (`.safetensors`), or from a .net file (`FILE` or `FILE:NAME`, a net or recipe) with random
    weights from `seed`, by default the recipe's. `device` is as for `--device`.

    Raises NetError if there is no such net, if it has errors, if the file is damaged, or if a seed
    is given for a checkpoint."""
    given = read_path(place, "place", "give a run directory, a checkpoint or a .net file")
    if ("{" in given or "\n" in given) and not os.path.exists(given):
        help = 'write it to a file first: pathlib.Path("x.net").write_text(TEXT)'
        raise fail("`place` is the text of a net, not its file", help=help)
    require_device(device)
    path = Path(given)
    if path.suffix == ".onnx":
        help = "`netdsl import x.onnx -o x.net --weights x.safetensors` converts it"
        raise fail(f"{path} is an ONNX file", help=help)
    if has_weights(path):
        if seed is not None:
            raise fail(f"`seed` draws weights, and {path} has its own", help="leave out `seed`")
        return _load_checkpoint(path, device)
    file, name = split_file_and_name(given)
    if Path(file).suffix != ".net" and not os.path.exists(file):
        help = checkpoint.suggest_runs([path])
        raise fail(f"there is no run or file {given}", help=help)
    return net_of_program(load_program(file), name, device, seed)


def has_weights(path: Path) -> bool:
    """Whether a path is to be read as a checkpoint or a run directory, not as a .net file."""
    return path.suffix == SUFFIX or path.is_dir()


def _format_class(class_name: Any) -> str | None:
    return None if class_name is None else str(class_name)


def _load_checkpoint(path: Path, device: str) -> Net:
    saved = checkpoint.load_best(path)
    weights = checkpoint.inference_states(saved.states)
    given = Given(weights, saved.classes, saved.metrics, saved.origin)
    program = saved.program()
    recipe = recipe_of_weights(program)
    return Net(NetOfRecipe(program, recipe), None, device, given)


def net_of_program(program: Program, name: str | None, device: str, seed: int | None = None) -> Net:
    """The net of that name, or that the recipe of that name trains, with random weights from
    `seed`, by default that of the recipe. Raises NetError if there is no such net."""
    if program.has_recipe(name):
        recipe = resolve_recipe(program, name)
    else:
        recipe = recipe_of_net(program, program.resolve_net_name(name))
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    given = Given(None, recipe.data.source.record.classes or ())
    return Net(NetOfRecipe(program, recipe), name, device, given)


def _restore(text: str, name: str, device: str, given: Given) -> Net:
    """A net that was pickled."""
    program = build_program(parse(text, f"{name}.net"), reject_read)
    return Net(NetOfRecipe(program, recipe_of_net(program, name)), name, device, given)
