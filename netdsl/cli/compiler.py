"""Commands that show the compiler at work: compile, explain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import (
    OK,
    DeviceOption,
    FileArgument,
    JsonOption,
    SetOption,
    ShrinkOption,
    TuneOption,
    app,
    echo,
    echo_stderr,
    print_json,
)
from netdsl.cli.file_arguments import load_program, load_recipe
from netdsl.cli.progress import show_progress
from netdsl.errors import fail, suggest_name
from netdsl.file_io import split_file_and_name

if TYPE_CHECKING:
    from netdsl.insight.compile_target import CompileTarget
    from netdsl.insight.explain import Compilation

TrainOption = Annotated[
    bool, typer.Option("--train", help="Compile the training step instead of inference.")
]
BatchOption = Annotated[
    int | None,
    typer.Option(min=1, max=2**20, help="Images per batch; default: the recipe's batch, else 1."),
]
StepRanksOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=2**20,
        help="With --train: the step of one of N ranks, which divide the batch.",
    ),
]
LowerOption = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="im2col: every convolution as one matrix product."),
]
_EMIT_FORMATS = ("ir", "json", "graphml", "dot", "plan", "kernels", "source")


@app.command("compile")
def compile_(
    file: FileArgument,
    train: TrainOption = False,
    batch: BatchOption = None,
    ranks: StepRanksOption = 1,
    device: DeviceOption = "model",
    emit: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What to print: ir, json, graphml or dot (the IR), plan, kernels, or source (LLVM "
            "or CUDA, with --device).",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(metavar="SM", help="The GPU for --emit source --device cuda, as in sm_90."),
    ] = None,
    lower: LowerOption = None,
    tune: TuneOption = None,
    shrink: ShrinkOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run the passes, choose the kernels and plan the memory. With --tune, also build the kernels,
    so that later runs load them from disk.

    Example: netdsl compile models/resnet.net:resnet50 --train --batch 256 --emit plan
    """
    from netdsl.ir.export import to_dot, to_graphml, to_json
    from netdsl.ir.printer import to_text
    from netdsl.plan.plan_printer import format_kernels, format_plan

    if emit is not None and emit not in _EMIT_FORMATS:
        raise fail(f"there is no `--emit {emit}`", help=suggest_name(emit, _EMIT_FORMATS, "one of"))
    if emit is not None and as_json:
        raise fail(
            "`--emit` prints the program, and `--json` prints figures", help="give only one of them"
        )
    if arch is not None and emit != "source":
        raise fail("`--arch` chooses the GPU for the source", help="add `--emit source`")
    if ranks > 1 and not train:
        raise fail("`--ranks` divides the batch of a training step", help="add `--train`")
    found = _compile(file, settings, train, batch, device, lower, shrink, ranks)
    if tune is not None:
        echo_stderr(f"built every kernel in {_build_kernels(found, device, tune):.1f} s")
    if as_json:
        print_json(found.as_json())
    elif emit == "ir":
        echo(to_text(found.plan.graph), end="")
    elif emit == "plan":
        echo(format_plan(found.plan), end="")
    elif emit == "kernels":
        echo(format_kernels(found.plan), end="")
    elif emit == "source":
        from netdsl.backends import generate_source

        echo(generate_source(device, found.plan, arch), end="")
    elif emit == "json":
        echo(to_json(found.plan.graph))
    elif emit == "graphml":
        echo(to_graphml(found.plan.graph), end="")
    elif emit == "dot":
        echo(to_dot(found.plan.graph), end="")
    else:
        from netdsl.cli.display import show_compilation

        show_compilation(found)
    return OK


@app.command()
def explain(
    file: FileArgument,
    train: TrainOption = False,
    batch: BatchOption = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cuda, cpu, reference or model (default; with --kernels auto)."),
    ] = None,
    lower: LowerOption = None,
    shrink: ShrinkOption = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Print every line that a pass changed, not only the first few."
        ),
    ] = False,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="Print each kernel and what computes it on the device."),
    ] = False,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="With --kernels: also print what else could compute it, "
            "and why it was not chosen.",
        ),
    ] = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show what each pass changes, the kernels with their source lines, and the memory.
    With --kernels, show what computes each kernel instead.

    Example: netdsl explain models/resnet.net:resnet50 --train
    """
    from netdsl.backends import open_backend
    from netdsl.cli.display import show_explanation

    if why and not kernels:
        raise fail("`--why` explains kernels", help="add `--kernels`")
    if kernels and device in (None, "auto"):
        device = open_backend().name
    device = device or "model"
    found = _compile(file, settings, train, batch, device, lower, shrink)
    if kernels:
        _explain_kernels(found, device, why, as_json)
    elif as_json:
        passes = [
            {"name": c.name, "nodes_before": len(c.before.nodes), "nodes": len(c.after.nodes)}
            for c in found.pass_diffs
        ]
        print_json({"passes": passes} | found.as_json())
    else:
        show_explanation(found, full)
    return OK


def _explain_kernels(found: Compilation, device: str, why: bool, as_json: bool) -> None:
    from netdsl.cli.kernel_tables import show_kernels, show_reasons, show_reference_count
    from netdsl.insight.explain import explain_kernels

    kernels = explain_kernels(found.plan, device)
    if as_json:
        print_json({"of": found.title, "kernels": [k.as_json() for k in kernels]})
    else:
        echo(f"{found.title}, device {device}")
        (show_reasons if why else show_kernels)(kernels)
        show_reference_count(kernels)


def _compile(
    file: str,
    settings: list[str] | None,
    train: bool,
    batch: int | None,
    device: str,
    lower: str | None,
    shrink: int | None,
    ranks: int = 1,
) -> Compilation:
    from netdsl.backends import fusion_of
    from netdsl.insight.explain import compile_target

    path, name = split_file_and_name(file)
    program = load_recipe(path, settings, name) if train else load_program(path, settings, name)
    target = replace(_make_target(name, train, batch, lower, shrink), ranks=ranks)
    with show_progress("compiling"):
        return compile_target(program, target, fusion_of(device))


def _build_kernels(compilation: Compilation, device: str, seconds: float) -> float:
    """Builds every kernel on a device, which caches them and its tuning results, and runs them
    once. Returns the seconds it took."""
    import time

    from netdsl.backends import open_backend
    from netdsl.runtime.executor import Executor
    from netdsl.runtime.state import State

    started = time.perf_counter()
    backend = open_backend(device).with_tuning(seconds)
    state = State(backend)
    state.initialise(compilation.plan.graph.states, seed=0)
    with show_progress("building kernels"):
        Executor(compilation.plan.graph, backend, state).launch()
    return time.perf_counter() - started


def _make_target(
    name: str | None, train: bool, batch: int | None, lower: str | None, shrink: int | None
) -> CompileTarget:
    from netdsl.insight.compile_target import CompileTarget
    from netdsl.language.elaborate import shrink_settings
    from netdsl.passes import pass_manager

    lowerings = {
        None: pass_manager.FORWARD_PASSES,
        "im2col": (pass_manager.SIMPLIFY_PASS, pass_manager.IM2COL_PASS),
    }
    if lower not in lowerings:
        known = [way for way in lowerings if way]
        raise fail(
            f"there is no `--lower {lower}`", help=suggest_name(lower or "", known, "one of")
        )
    return CompileTarget(name, train, batch, lowerings[lower], shrink_settings(shrink))
