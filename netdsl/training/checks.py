"""Checks that a net, its data and its loss fit together, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from netdsl.data.array_advice import (
    CHANNELS_LAST,
    ONE_HOT_ADVICE,
    advise_axes,
    advise_numbering,
    has_channels_first,
)
from netdsl.data.config import DataConfig
from netdsl.data.data_source import DataSource
from netdsl.data.inventory import abbreviate
from netdsl.data.limit import check_limit_classes
from netdsl.data.preprocessing import Preprocessing
from netdsl.data.samples import Dataset, Samples
from netdsl.data.sampling import BALANCED
from netdsl.errors import NetError, Span, fail, suggest_name
from netdsl.ir.views import strip_views
from netdsl.language.budget import Budget
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.limits import GLOB_MATCHES_PER_STEP
from netdsl.ops import OPS
from netdsl.signature import BoundCall
from netdsl.text_escaping import escape_line
from netdsl.training.metrics.ranking import check_score_memory
from netdsl.training.metrics.table import METRICS, MetricName
from netdsl.training.recipe.class_weights import check_weight_count
from netdsl.training.recipe.initial_weights import match_states
from netdsl.training.recipe.losses import CLASS_WEIGHTS
from netdsl.training.recipe.recipe import Recipe, resolve_recipe
from netdsl.training.step.graphs import has_label_probabilities, training_graph
from netdsl.types import Graph, Node, dims


def check_recipe(program: Program, name: str | None, budget: Budget | None = None) -> Network:
    """Returns the net that a recipe trains. Raises NetError if it could not start, as far as the
    file alone can tell."""
    budget = budget or Budget()
    recipe = resolve_recipe(program, name, budget)
    network = elaborate(program, recipe.net, recipe.settings(training=True), budget)
    source: DataSource = recipe.data.source.record
    if source.image_shape is not None:
        check_images(network, recipe.data, source.image_shape)
    if source.classes is not None:
        check_classes(network, source.classes)
        recipe.loss.check_class_names(source.classes)
        _check_limit(recipe, source.classes)
        _check_metric_classes(recipe.metric_spans, source.classes)
    check_mixing(network, recipe.data)
    check_loss(network, recipe)
    check_batch_norm(network, recipe)
    matches = recipe.glob_count * len(network.graph.states)
    spent = len(network.graph.nodes) + matches // GLOB_MATCHES_PER_STEP
    budget.spend_steps(spent, recipe.spans["train"])
    training_graph(network, recipe)
    if recipe.after is not None:
        _check_stage(program, recipe, network, budget)
    return network


def _check_stage(program: Program, recipe: Recipe, network: Network, budget: Budget) -> None:
    """Raises NetError if the weights do not match those of the preceding recipe's net."""
    assert recipe.after is not None
    before = resolve_recipe(program, recipe.after, budget)
    given = elaborate(program, before.net, before.settings(training=False), budget)
    shapes = {n.name: n.type.shape for n in given.graph.states}
    origin = f"`{given.name}`, which `{recipe.after}` trains,"
    match_states(network.graph.states, shapes, (), origin, recipe.spans.get("after"))


def check_division(batch: int, ranks: int, span: Span | None = None) -> None:
    """Raises NetError if a batch cannot be divided equally among the ranks."""
    if batch % ranks == 0:
        return
    lower = batch - batch % ranks
    near = f"`batch = {lower + ranks}`" if not lower else f"`batch = {lower}` or {lower + ranks}"
    raise fail(
        f"a batch of {batch:,} images cannot be divided equally among {ranks:,} ranks",
        span,
        help=f"`batch` is the number of images of all ranks together: set {near}",
    )


def _check_limit(recipe: Recipe, classes: tuple[str, ...]) -> None:
    """Raises NetError if the limit names a class that the data lacks."""
    try:
        check_limit_classes(recipe.data.limit, classes)
    except NetError as e:
        raise e.with_default_span(recipe.data.spans.get("limit")) from None


def check_batch_norm(network: Network, recipe: Recipe) -> None:
    """Raises NetError if batch normalisation would see a single image per batch: its running
    statistics then do not match evaluation."""
    renewed = [
        n
        for n in network.graph.updates
        if n.endswith(".running_mean") and not (network.ranks > 1 and _is_synchronised(network, n))
    ]
    if network.batch == 1 and renewed:
        layer = renewed[0].removesuffix(".running_mean")
        whose = "a batch of one image" if network.ranks == 1 else "the one image of each rank"
        raise fail(
            f"batch normalisation over {whose} (`{layer}`)",
            network.graph[renewed[0]].span,
            help="`batchnorm(sync=yes)` normalises over the images of all ranks"
            if network.ranks > 1
            else "use `groupnorm` or `layernorm`, which do not depend on the batch, or a larger "
            "`batch`; `accumulate` does not help, because each batch is normalised separately",
        )


def _is_synchronised(network: Network, state: str) -> bool:
    """Whether the batch normalisation that updates a state uses the moments of all ranks."""
    path = state.rpartition(".")[0]
    return any(x.arguments.get("sync", False) for x in network.layers if x.path == path)


MAX_EVALUATION_IMAGES, MAX_EVALUATION_VALUES, MAX_EVALUATION_BYTES = 250, 2**22, 2**27
"""Limits for one evaluation batch: images, values in them, and bytes of activations. A batch is
never smaller than in a training step."""


def evaluation_batch(network: Network, data: DataConfig) -> int:
    """The evaluation batch size; as large as fits wherever a training step of this network does."""
    values = sum(math.prod(n.type.shape[1:]) for n in network.sample_inputs)
    images = MAX_EVALUATION_VALUES // values
    kept, most = _activation_bytes(network.graph)
    fit = network.batch * max(MAX_EVALUATION_BYTES, kept // 2) // most  # training keeps half
    return max(data.batch // network.ranks, min(MAX_EVALUATION_IMAGES, images, fit))


def _activation_bytes(graph: Graph) -> tuple[int, int]:
    """Total bytes of everything computed from the inputs, and the most that one node reads and
    writes."""
    sizes: dict[str, int] = {}
    kept = most = 0
    for node in graph.nodes.values():
        given = [sizes[a] for a in node.args if a in sizes]
        if OPS[node.op].kind == "view" and given:
            sizes[node.name] = given[0]
        elif given or node.op == "input":
            sizes[node.name] = node.type.nbytes
            kept, most = kept + node.type.nbytes, max(most, node.type.nbytes + sum(given))
    return kept, most


def training_transform(network: Network, data: DataConfig) -> Preprocessing:
    """The preprocessing of training images."""
    return Preprocessing(data.image_augmentations, network.image_shape)


def evaluation_transform(network: Network, data: DataConfig) -> Preprocessing:
    """The preprocessing of images for evaluation and prediction."""
    return Preprocessing(data.eval_transform, network.image_shape)


def check_data(network: Network, data: DataConfig, dataset: Dataset) -> None:
    """Raises NetError if images or classes do not fit the net, or if there are fewer than two
    classes."""
    check_class_count(dataset)
    check_sampling(data, dataset)
    if data.source.record.classes is None:
        _check_class_gaps(dataset)
    check_images(network, data, dataset.train.image_shape)
    check_classes(network, dataset.classes)


def check_class_count(dataset: Dataset) -> None:
    """Raises NetError if all training samples are of one class, or have the same labels: any net
    would then be right."""
    labels = dataset.train.labels
    if (labels != labels[0]).any():
        return
    if dataset.train.is_multi_label:
        names = [c for c, has in zip(dataset.classes, labels[0], strict=True) if has]
        same = f"the same labels, {abbreviate(names)}" if names else "no label"
        message = f"all {len(labels):,} training images have {same}"
        raise fail(message, help="a net can only learn if the labels differ")
    name = escape_line(dataset.classes[int(labels[0])])
    raise fail(
        f"all {len(labels):,} training images are of one class, `{name}`",
        help="there must be at least two classes; in a folder of pictures, each class has its "
        f"own folder, DIR/train/CLASS or DIR/CLASS, and `{name}` is the only CLASS here",
    )


def _check_class_gaps(dataset: Dataset) -> None:
    """Raises NetError if some class has no training sample, where the labels alone define the
    classes. Of several labels per image, one may have none: the inventory says so, and the net
    learns that it is absent."""
    if dataset.train.is_multi_label:
        return
    counts = dataset.train.count_by_class(len(dataset.classes))
    empty = [c for c, n in zip(dataset.classes, counts, strict=True) if not n]
    if not empty:
        return
    if dataset.classes[-1] != str(len(counts) - 1):
        message = f"there are {len(counts):,} classes, but no training images of "
        raise fail(message + abbreviate(empty), help="each class needs at least one training image")
    present = [c for c, n in zip(dataset.classes, counts, strict=True) if n]
    raise fail(
        f"the labels of the training images are {abbreviate(present)}, and none is "
        f"{abbreviate(empty)}; labels are 0, 1, 2, ... without gaps",
        help=advise_numbering(counts > 0) or "each label of the test images needs training images",
    )


def check_unchanged(data: DataConfig, samples: Samples) -> None:
    """Raises NetError if samples that are no pictures would have to be changed like pictures."""
    shape = samples.image_shape
    kind = "floats" if samples.are_floats else "vectors" if shape and len(shape) != 3 else None
    changes = (("augment", data.image_augmentations), ("eval_transform", data.eval_transform))
    for key, calls in changes:
        if kind and calls:
            raise fail(
                f"`{key}` changes pictures of bytes, but the images are {kind}",
                calls[0].span,
                help=f"give the images as uint8 [N,H,W,C], or set `data.{key}` to []",
            )


def check_images(network: Network, data: DataConfig, image: tuple[int, ...] | None) -> None:
    """Raises NetError if images of this shape (None: pictures of any size) do not fit the net's
    input after the preprocessing of the data section."""
    wanted = network.graph[network.image_input]
    reorder = None if image is None else advise_axes((1, *image), network.image_shape)
    if image is not None and image != network.image_shape and has_channels_first(image):
        reorder = CHANNELS_LAST
    if image is not None and reorder:
        message = f"the images are {dims(image)}, but the net needs {dims(network.image_shape)}"
        raise fail(message, wanted.span, help=reorder)
    for key, prepare, count in (
        ("augment", training_transform(network, data), data.batch),
        ("eval_transform", evaluation_transform(network, data), evaluation_batch(network, data)),
    ):
        given = _prepared_shape(prepare, image, count, wanted.span)
        if image is not None and given != network.image_shape:
            source = data.source
            is_known = source.record.image_shape is not None
            file = None if is_known else source.arguments.get("path")
            after = f", after `{key}` {dims(given)}" if given != image else ""
            other = f"end `{key}` with a crop" if after else "choose another source"
            raise fail(
                f"the images{f' of {file}' if file else ''} are {dims(image)}{after}, but the net "
                f"needs {dims(network.image_shape)}",
                wanted.span,
                help=f"begin the net with `input({dims(given)})`, or {other}",
            )


def _prepared_shape(
    prepare: Preprocessing, image: tuple[int, ...] | None, count: int, span: Span | None
) -> tuple[int, ...]:
    try:
        return prepare.compute_output_shape(image, count)
    except NetError as e:
        raise e.with_default_span(span) from None


def check_mixing(network: Network, data: DataConfig) -> None:
    """Raises NetError if the images of a batch cannot be mixed."""
    for i, chosen in enumerate(data.mixings):
        if chosen in data.mixings[:i]:
            message = f"`{chosen.drop_defaults()}` is listed twice"
            help = "a batch is mixed by one entry; `p` is the probability that it is mixed at all"
            raise fail(message, chosen.span, help=help)
        if data.batch == 1:
            message = (
                f"`{chosen.name}` mixes the images of a batch, but each batch has only one image"
            )
            raise fail(message, chosen.span, help="set a larger `batch`")
        if chosen.record.needs_pictures and len(network.image_shape) != 3:
            message = f"`{chosen.name}` cuts boxes out of pictures, but the net takes vectors"
            raise fail(message, chosen.span, help="`mixup` also works on vectors")


def check_sampling(data: DataConfig, dataset: Dataset) -> None:
    """Raises NetError if an epoch cannot be balanced by class."""
    if data.sampling == BALANCED and dataset.train.is_multi_label:
        raise fail(
            "`sampling = balanced` needs one class per image, but these images have several labels",
            data.spans.get("sampling"),
            help="leave `sampling` out; `loss = bce(class_weights=balanced)` gives rare labels "
            "more weight",
        )


def has_scores(network: Network) -> bool:
    """Whether a net gives one score per class, at one position."""
    return math.prod(network.main_output.type.shape[1:-1]) == 1


def check_classes(network: Network, classes: tuple[str, ...]) -> None:
    """Raises NetError if an output does not give one score per class."""
    for name in network.graph.outputs.values():
        out = network.graph[name]
        if out.type.shape[-1] != len(classes):
            scores = out.type.shape[-1]
            raise fail(
                f"the data set has {len(classes)} classes, but the net gives {scores} scores",
                out.span,
                help=f"end it with `fc({len(classes)})`; setting `classes={len(classes)}` does "
                f"this if the net has a `classes` parameter",
            )


def check_class_scores(
    network: Network, recipe: Recipe, classes: tuple[str, ...], origin: str
) -> None:
    """Raises NetError if the main output of a trained net does not give one score for each of its
    classes. Side outputs may give anything."""
    out = network.main_output
    shape = out.type.shape[1:]
    if not has_scores(network) or shape[-1] != len(classes):
        raise fail(
            f"`{network.name}` gives {dims(shape)}, but one score per class is needed; {origin} "
            + ("has 1 class" if len(classes) == 1 else f"has {len(classes):,} classes"),
            out.span,
            help=_VALUES_HELP,
        )
    if shape[-1] == 1 and not has_label_probabilities(network, recipe):
        message = f"`{network.name}` gives one score, and a softmax of one is always 1"
        help = f"use `sigmoid` for a probability; {_VALUES_HELP}"
        raise fail(message, out.span, help=help)


_VALUES_HELP = (
    "`netdsl run` prints the values at any place, and Python's `netdsl.load(WEIGHTS)(images)` "
    "returns them; `netdsl export` works with this net"
)


def check_loss(network: Network, recipe: Recipe) -> None:
    """Raises NetError if the net ends with a function that the loss applies itself, or if a list of
    class weights does not have one for each score."""
    for name in network.graph.outputs.values():
        out = network.graph[name]
        while out.op == "reshape":
            out = network.graph[out.args[0]]
        for chosen, _ in recipe.loss.terms:
            _check_end(chosen, out)
    classes = network.main_output.type.shape[-1]
    for chosen in recipe.loss.class_weights.values():
        check_weight_count(chosen.arguments[CLASS_WEIGHTS], classes, chosen.span)


_APPLIED_ENDS = {
    "softmax": ("softmax", "log_softmax"),
    "sigmoid": ("sigmoid", "softmax", "log_softmax"),
}
"""The ends of nets that contradict the function of a loss."""


def _check_end(loss: BoundCall, end: Node) -> None:
    function = loss.record.probabilities
    if end.op not in _APPLIED_ENDS.get(function, ()):
        return
    raise fail(
        f"`{loss.name}` takes plain scores, but the net ends with `{end.op}`",
        end.span,
        help=f"remove `{end.op}`; the loss and `predict` apply "
        + ("it" if function in end.op else f"a {function}")
        + " themselves",
    )


def check_targets(network: Network, recipe: Recipe, samples: Samples) -> None:
    """Raises NetError if the loss does not suit samples with several labels per image."""
    if not samples.is_multi_label:
        return
    end = strip_views(network.graph, network.graph.outputs["main"])
    for chosen, _ in recipe.loss.terms:
        found = chosen.record.probabilities
        if found == "softmax":
            message = (
                f"`{chosen.name}` is for one class per image, but these images have several labels"
            )
            help = "`loss = bce` learns each label independently"
            if samples.is_one_hot:
                help = f"every image has exactly one label: {ONE_HOT_ADVICE}; {help}"
            raise fail(f"{message} here", chosen.span or recipe.spans.get("train"), help=help)
        if found is None and end.op != "sigmoid":
            message = f"`{chosen.name}` compares scores with labels of 0 and 1"
            help = "use `loss = bce`, or end the net with `sigmoid`"
            raise fail(f"{message}, but the scores are unbounded", end.span, help=help)


def check_metrics(
    requested: Sequence[tuple[MetricName, Span | None]], dataset: Dataset, validation: Samples
) -> None:
    """Raises NetError if a recipe names a metric that these data do not have: of a class that does
    not exist, or one that is undefined for several labels per image; or if the scores that it needs
    take too much memory."""
    _check_metric_classes(requested, dataset.classes)
    for name, span in requested:
        if name.metric.needs_one_label and dataset.train.is_multi_label:
            message = f"`{name}` is not defined for images with several labels"
            raise fail(message, span, help=f"`{replace(name, metric=METRICS['accuracy'])}` is")
        if name.metric.needs_scores:
            test = dataset.read_test() if dataset.read_test and name.part == "test" else None
            check_score_memory(len(validation if test is None else test), len(dataset.classes))


def _check_metric_classes(
    requested: Sequence[tuple[MetricName, Span | None]], classes: tuple[str, ...]
) -> None:
    """Raises NetError for a metric of a class that does not exist."""
    for name, span in requested:
        if name.class_name is not None and name.class_name not in classes:
            help = suggest_name(name.class_name, classes, "the classes are")
            raise fail(
                f"the data set has no class `{escape_line(name.class_name)}`",
                span,
                help=escape_line(help) if help else None,
            )
