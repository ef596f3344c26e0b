"""Commands that show the compiler at work: compile, explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, Device, File, Json, Sets, Shrink, Tune, app, print_json, say, show
from netdsl.cli.files import load, load_recipe
from netdsl.errors import fail, suggest_name
from netdsl.file_io import split_file_and_name

if TYPE_CHECKING:
    from netdsl.insight.compile_target import CompileTarget
    from netdsl.insight.explain import Compilation

Train = Annotated[bool, typer.Option("--train", help="The training step instead of inference.")]
Batch = Annotated[
    int | None, typer.Option(min=1, max=2**20, help="Images at a time; the recipe's, else 1.")
]
Lower = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="im2col: every convolution as one matrix product."),
]
_EMITS = ("ir", "json", "graphml", "plan", "kernels", "source")


@app.command("compile")
def compile_(
    file: File,
    train: Train = False,
    batch: Batch = None,
    device: Device = "model",
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="ir, json or graphml: the IR; plan; kernels; source: LLVM or CUDA, with --device.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(metavar="SM", help="The GPU of --emit source --device cuda, as sm_90."),
    ] = None,
    lower: Lower = None,
    tune: Tune = None,
    shrink: Shrink = None,
    settings: Sets = None,
    as_json: Json = False,
) -> int:
    """Run the passes, choose the kernels and plan the memory; with --tune, build the kernels too,
    so that a run finds them on the disk.

    Example: netdsl compile models/resnet.net:resnet50 --train --batch 256 --emit plan
    """
    from netdsl.ir.export import to_graphml, to_json
    from netdsl.ir.printer import to_text
    from netdsl.plan.plan_printer import format_kernels, format_plan

    if emit is not None and emit not in _EMITS:
        raise fail(f"there is no `--emit {emit}`", help=suggest_name(emit, _EMITS, "one of"))
    if emit is not None and as_json:
        raise fail("`--emit` prints the program, `--json` figures", help="give one of them")
    if arch is not None and emit != "source":
        raise fail("`--arch` is the GPU whose source is shown", help="give `--emit source` with it")
    found = _compiled(file, settings, train, batch, device, lower, shrink)
    if tune is not None:
        say(f"every kernel built in {_built(found, device, tune):.1f} s")
    if as_json:
        print_json(found.as_json())
    elif emit == "ir":
        show(to_text(found.plan.graph), end="")
    elif emit == "plan":
        show(format_plan(found.plan), end="")
    elif emit == "kernels":
        show(format_kernels(found.plan), end="")
    elif emit == "source":
        from netdsl.backends import generate_source

        show(generate_source(device, found.plan, arch), end="")
    elif emit == "json":
        show(to_json(found.plan.graph))
    elif emit == "graphml":
        show(to_graphml(found.plan.graph), end="")
    else:
        from netdsl.cli.show import show_compiled

        show_compiled(found)
    return OK


@app.command()
def explain(
    file: File,
    train: Train = False,
    batch: Batch = None,
    device: Device = "model",
    lower: Lower = None,
    shrink: Shrink = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every line that a pass changed, not only the first.")
    ] = False,
    settings: Sets = None,
    as_json: Json = False,
) -> int:
    """Every pass as before and after, the kernels with the lines they stem from, the memory.

    Example: netdsl explain models/resnet.net:resnet50 --train
    """
    from netdsl.cli.show import show_explanation

    found = _compiled(file, settings, train, batch, device, lower, shrink)
    if as_json:
        changes = [
            {"name": c.name, "nodes_before": len(c.before.nodes), "nodes": len(c.after.nodes)}
            for c in found.pass_diffs
        ]
        print_json({"passes": changes} | found.as_json())
    else:
        show_explanation(found, full)
    return OK


def _compiled(
    file: str,
    settings: list[str] | None,
    train: bool,
    batch: int | None,
    device: str,
    lower: str | None,
    shrink: int | None,
) -> Compilation:
    from netdsl.backends import fusion_of
    from netdsl.insight.explain import compile_target

    path, name = split_file_and_name(file)
    program = load_recipe(path, settings, name) if train else load(path, settings, name)
    target = _target(name, train, batch, lower, shrink)
    return compile_target(program, target, fusion_of(device))


def _built(found: Compilation, device: str, seconds: float) -> float:
    """Builds every kernel on a device, which keeps them and what it finds to be fastest, and runs
    them once; how long that took."""
    import time

    from netdsl.backends import open_backend
    from netdsl.runtime.executor import Executor
    from netdsl.runtime.state import State

    started = time.perf_counter()
    backend = open_backend(device).with_tuning(seconds)
    state = State(backend)
    state.initialise(found.plan.graph.states, seed=0)
    Executor(found.plan.graph, backend, state).launch()
    return time.perf_counter() - started


def _target(
    name: str | None, train: bool, batch: int | None, lower: str | None, shrink: int | None
) -> CompileTarget:
    from netdsl.insight.compile_target import CompileTarget
    from netdsl.language.elaborate import shrink_settings
    from netdsl.passes import pass_manager

    ways = {
        None: pass_manager.FORWARD_PASSES,
        "im2col": (pass_manager.SIMPLIFY_PASS, pass_manager.IM2COL_PASS),
    }
    if lower not in ways:
        known = [way for way in ways if way]
        raise fail(
            f"there is no `--lower {lower}`", help=suggest_name(lower or "", known, "one of")
        )
    return CompileTarget(name, train, batch, ways[lower], shrink_settings(shrink))
