"""What is compiled and inspected: a net for inference or as a recipe's training step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from netdsl.language.elaborate import Settings, ShrinkSettings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.passes import pass_manager
from netdsl.passes.batch_norm_folding import FoldedGraph
from netdsl.passes.pass_manager import Pass
from netdsl.training.checks import check_division, check_loss
from netdsl.training.recipe.recipe import Recipe, default_recipe, resolve_recipe
from netdsl.training.step.compile import compile_step
from netdsl.training.step.graphs import training_graph
from netdsl.types import Graph


@dataclass(frozen=True)
class CompileTarget:
    """What to compile: a net for inference or as a training step, at a batch size, optionally
    shrunk. `name` is the net's, or for training a recipe's. Of a training step, `ranks` may divide
    the batch."""

    name: str | None = None
    training: bool = False
    batch: int | None = None
    forward_passes: tuple[Pass, ...] = pass_manager.FORWARD_PASSES
    shrink: ShrinkSettings | None = None
    ranks: int = 1


@dataclass(frozen=True)
class PreparedGraph:
    """A net's graph, ready for planning; `title` describes it in a few words. For inference,
    `folded` holds it with the graph that prepares its weights."""

    title: str
    network: Network
    graph: Graph
    folded: FoldedGraph | None = None


def prepare_target(
    program: Program, target: CompileTarget, watch: pass_manager.PassObserver | None = None
) -> PreparedGraph:
    """Runs the pipeline for a target."""
    if target.training:
        recipe_name, network, recipe = elaborate_for_training(program, target)
        step = compile_step(network, recipe, watch, target.forward_passes)
        title = f"{network.name}, training by {recipe_name}, batch {network.batch}"
        if target.ranks > 1:
            title += f" on each of {target.ranks:,} ranks"
        return PreparedGraph(title, network, step)
    network = _elaborate_for_inference(program, target)
    folded = pass_manager.prepare_inference(network.graph, watch, target.forward_passes)
    title = f"{network.name}, inference, batch {network.batch}"
    return PreparedGraph(title, network, folded.main, folded)


def build_unoptimized_graph(program: Program, target: CompileTarget) -> Graph:
    """The graph of a target as the source describes it."""
    if target.training:
        _, network, recipe = elaborate_for_training(program, target)
        return training_graph(network, recipe)
    return _elaborate_for_inference(program, target).graph


def _elaborate_for_inference(program: Program, target: CompileTarget) -> Network:
    settings = Settings(batch=target.batch or 1, shrink=target.shrink)
    return elaborate(program, program.resolve_net_name(target.name), settings)


def elaborate_for_training(program: Program, target: CompileTarget) -> tuple[str, Network, Recipe]:
    """The recipe of a training step: the named one, else one in the file that trains this net, else
    plain SGD; with the network elaborated for it. The first value describes the recipe."""
    recipe_name, recipe = find_recipe(program, target.name)
    if recipe is None:
        net, recipe = (
            program.resolve_net_name(target.name),
            default_recipe(program.resolve_net_name(target.name)),
        )
        batch = _divide(target.batch or target.ranks, target.ranks)
        settings = Settings(batch, training=True, shrink=target.shrink, ranks=target.ranks)
        network = elaborate(program, net, settings)
    else:
        batch = recipe.data.batch if target.batch is None else target.batch
        settings = recipe.settings(True, _divide(batch, target.ranks), target.ranks)
        if target.shrink is not None:
            settings = replace(settings, shrink=target.shrink)
        network = elaborate(program, recipe.net, settings)
    check_loss(network, recipe)
    return recipe_name, network, recipe


def _divide(batch: int, ranks: int) -> int:
    """The images of each rank. Raises NetError if the ranks cannot divide the batch equally."""
    check_division(batch, ranks)
    return batch // ranks


def find_recipe(program: Program, name: str | None) -> tuple[str, Recipe | None]:
    """The recipe of that name, else the file's own recipe for the net of that name, if any; first
    a description of it."""
    if program.has_recipe(name):
        return f"`train {name}`", resolve_recipe(program, name)
    if name is None and program.find_section("train"):
        return "the file's recipe", resolve_recipe(program)
    net = program.resolve_net_name(name)
    for section in program.sections("train"):
        if program.find_trained_net(section.name) == net:
            label = f"`train {section.name}`" if section.name else "the file's recipe"
            return label, resolve_recipe(program, section.name)
    return "plain SGD", None
