"""Whether a net, its data and its loss fit together: told before anything runs."""

from __future__ import annotations

from netdsl.errors import fail
from netdsl.language.elaborate import elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.train.recipe import Recipe, resolve
from netdsl.train.start import adopted
from netdsl.train.step import training_graph
from netdsl.types import dims


def check_recipe(program: Program, name: str | None) -> Network:
    """The net that a recipe trains. Raises NetError where it could not start, as far as the file
    alone can tell."""
    recipe = resolve(program, name)
    network = elaborate(program, recipe.net, recipe.settings(training=True))
    source = recipe.data.source.record
    if source.image is not None:
        check_images(network, source.image)
    if source.classes is not None:
        check_classes(network, source.classes)
    check_loss(network, recipe)
    check_norms(network, recipe)
    training_graph(network, recipe)
    if recipe.after is not None:
        _check_stage(program, recipe, network)
    return network


def _check_stage(program: Program, recipe: Recipe, network: Network) -> None:
    """Raises NetError where the net of the recipe before has other weights."""
    assert recipe.after is not None
    before = resolve(program, recipe.after)
    given = elaborate(program, before.net, before.settings(training=False))
    shapes = {n.name: n.type.shape for n in given.graph.states}
    origin = f"`{given.name}`, which `{recipe.after}` trains,"
    adopted(network.graph.states, shapes, (), origin, recipe.spans.get("after"))


def check_norms(network: Network, recipe: Recipe) -> None:
    """Raises NetError where batch normalisation would look at one image alone: what it learns in
    training is then not what evaluation does."""
    renewed = [n for n in network.graph.updates if n.endswith(".running_mean")]
    if recipe.data.batch == 1 and renewed:
        layer = renewed[0].removesuffix(".running_mean")
        raise fail(
            f"batch normalisation over a batch of one image (`{layer}`)",
            network.graph[renewed[0]].span,
            help="use `groupnorm` or `layernorm`, which do not look at the batch, or a larger "
            "`batch`; `accumulate` does not help, each batch is normalised by itself",
        )


def single_input(network: Network) -> str:
    """The name of a net's one image input. Raises NetError where there are several."""
    images = [n for n in network.graph.inputs if n.type.rank > 1]
    if len(images) != 1:
        names = ", ".join(n.name for n in images)
        raise fail(f"`{network.name}` has the inputs {names}; the data sources give one image")
    return images[0].name


def check_fit(
    network: Network, image: tuple[int, ...], classes: tuple[str, ...], file: str | None = None
) -> None:
    """Raises NetError where images or classes do not fit the net; `file` is what they are of."""
    check_images(network, image, file)
    check_classes(network, classes)


def check_images(network: Network, image: tuple[int, ...], file: str | None = None) -> None:
    """Raises NetError where images of this shape do not fit the net's input."""
    wanted = network.graph[single_input(network)]
    if image != wanted.type.shape[1:]:
        given = dims(image)
        raise fail(
            f"the images{f' of {file}' if file else ''} are {given}, the net wants "
            f"{dims(wanted.type.shape[1:])}",
            wanted.span,
            help=f"begin the net with `input({given})`, or choose another source",
        )


def check_classes(network: Network, classes: tuple[str, ...]) -> None:
    """Raises NetError where an output does not give one score a class."""
    for name in network.graph.outputs.values():
        out = network.graph[name]
        if out.type.shape[-1] != len(classes):
            raise fail(
                f"the data has {len(classes)} classes, the net gives {out.type.shape[-1]} scores",
                out.span,
                help=f"end it with `fc({len(classes)})`",
            )


def check_loss(network: Network, recipe: Recipe) -> None:
    """Raises NetError where a loss would be given what it makes itself."""
    for name in network.graph.outputs.values():
        out = network.graph[name]
        while out.op == "reshape":
            out = network.graph[out.args[0]]
        names = [chosen.name for chosen, _ in recipe.loss.terms]
        if "cross_entropy" in names and out.op in ("softmax", "log_softmax"):
            raise fail(
                f"`cross_entropy` takes plain scores, the net ends with `{out.op}`",
                out.span,
                help=f"remove `{out.op}`; the loss and `predict` apply it themselves",
            )
