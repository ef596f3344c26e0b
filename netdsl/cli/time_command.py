"""The command that shows where the time goes: time."""

from __future__ import annotations

from typing import Annotated

import typer

from netdsl.cli.app import OK, DeviceOption, FileArgument, JsonOption, SetOption, app, print_json
from netdsl.cli.compiler import BatchOption, TrainOption
from netdsl.cli.file_arguments import load_program, load_recipe
from netdsl.cli.progress import show_progress
from netdsl.file_io import split_file_and_name


@app.command("time")
def time_(
    file: FileArgument,
    train: TrainOption = False,
    batch: BatchOption = None,
    device: DeviceOption = "auto",
    rounds: Annotated[
        int,
        typer.Option(min=1, max=10_000, help="Number of rounds; the times are medians over them."),
    ] = 9,
    full: Annotated[
        bool, typer.Option("--full", help="Print every kernel and layer, not only the slowest.")
    ] = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show the time of each kernel and layer, compared with the limits of this machine.

    Example: netdsl time models/resnet.net:resnet50 --train --batch 8
    """
    from netdsl.backends import open_backend
    from netdsl.insight.compile_target import CompileTarget, prepare_target
    from netdsl.insight.profiler import profile_step

    path, name = split_file_and_name(file)
    program = load_recipe(path, settings, name) if train else load_program(path, settings, name)
    with show_progress("compiling and timing"):
        backend = open_backend(device)
        prepared_net = prepare_target(program, CompileTarget(name, train, batch))
        found = profile_step(prepared_net, backend, rounds).with_observed_ceilings()
    if as_json:
        print_json(found.as_json())
    else:
        from netdsl.cli.profile_tables import show_profile

        show_profile(found, full)
    return OK
