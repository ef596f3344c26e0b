"""The command that compares two nets: diff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, JsonOption, app, print_json
from netdsl.cli.display import show_diff
from netdsl.cli.file_arguments import load_program
from netdsl.file_io import split_file_and_name
from netdsl.file_kinds import CHECKPOINT, FOLDER, RUN, recognise

if TYPE_CHECKING:
    from netdsl.language.network import Network

NetArgument = Annotated[
    str, typer.Argument(metavar="FILE[:NET]", help="A .net file, a checkpoint, or a run.")
]


@app.command()
def diff(a: NetArgument, b: NetArgument, as_json: JsonOption = False) -> int:
    """Show what differs between two nets, and which weights of one fit the other.

    Example: netdsl diff models/lenet.net:lenet5 models/lenet.net:caffe_lenet
    """
    from netdsl.insight.network_diff import compare_networks

    found = compare_networks(_load_network(a), _load_network(b))
    if as_json:
        print_json(found.as_json())
    else:
        show_diff(found)
    return OK


def _load_network(place: str) -> Network:
    """The net of that name in a file, or the one that a checkpoint was trained with."""
    from netdsl.language.elaborate import Settings, elaborate
    from netdsl.training.recipe.recipe import recipe_of_weights
    from netdsl.training.store import checkpoint

    path, name = split_file_and_name(place)
    if recognise(Path(path)) in (CHECKPOINT, RUN, FOLDER):
        program = checkpoint.load_best(Path(path)).program()
        recipe = recipe_of_weights(program)
        return elaborate(program, name or recipe.net, Settings(shrink=recipe.small))
    return elaborate(load_program(path, None, name), name)
