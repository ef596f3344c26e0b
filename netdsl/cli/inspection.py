"""Commands that inspect a file: check, fmt, test, summary, gradcheck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl.cli.app import (
    BAD_INPUT,
    CHECK_FAILED,
    OK,
    FileArgument,
    JsonOption,
    SetOption,
    ShrinkOption,
    app,
    echo,
    echo_stderr,
    print_error,
    print_json,
    print_warnings,
)
from netdsl.cli.display import show_summary, show_test_result
from netdsl.cli.file_arguments import find_net_files, load_net, load_program, read_source
from netdsl.errors import Diagnostic, NetError, fail, shorten
from netdsl.file_io import split_file_and_name
from netdsl.standard_streams import STANDARD_OUTPUT

if TYPE_CHECKING:
    from netdsl.insight.net_tests import TestResult
    from netdsl.language.elaborate import Settings


@app.command()
def check(
    file: FileArgument,
    settings: SetOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 1 if there are warnings.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Parse a file, infer every shape, report all errors, and warn about what is allowed but
    probably not intended. `# allow: NAME` on the line of a warning, or on the line above, silences
    it.

    Example: netdsl check models/lenet.net
    """
    from netdsl.insight.program_check import check_program

    path, name = split_file_and_name(file)
    errors: tuple[Diagnostic, ...] = ()
    nets: list[str] = []
    warnings: list[Diagnostic] = []
    try:
        program = load_program(path, settings, name)
        recipe = name if name and not program.has_net(name) else None
        net = None if program.has_recipe(recipe) else name
        nets, warnings = check_program(program, net, is_changed=bool(settings))
    except NetError as e:
        if not as_json:
            raise
        errors = e.diagnostics
    if as_json:
        warning_rows = [_diagnostic_as_json(d) | {"lint": d.lint} for d in warnings]
        report = {
            "errors": [_diagnostic_as_json(d) for d in errors],
            "warnings": warning_rows,
            "nets": nets,
        }
        print_json({"ok": not errors, **report})
    else:
        print_warnings(warnings)
        echo_stderr(
            f"{path}: {shorten(', '.join(nets))}: {_format_warning_count(warnings)}"
            if nets
            else f"{path}: it contains no net"
        )
    if errors:
        return BAD_INPUT
    return CHECK_FAILED if strict and warnings else OK


def _format_warning_count(warnings: Sequence[Diagnostic]) -> str:
    count = len(warnings)
    return f"{count} warning{'s' * (count > 1)}" if count else "no warnings"


def _diagnostic_as_json(diagnostic: Diagnostic) -> dict[str, Any]:
    line, column = diagnostic.span.position if diagnostic.span else (None, None)
    return {
        "file": diagnostic.span.source.name if diagnostic.span else None,
        "line": line,
        "column": column,
        "message": diagnostic.message,
        "help": diagnostic.help,
    }


@app.command()
def fmt(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Files to format; `-` formats stdin.")
    ],
    check_only: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; exit with code 1 if a file would change."),
    ] = False,
) -> int:
    """Format files in the canonical style; comments are kept.

    Example: netdsl fmt models/*.net
    """
    from netdsl.file_io import write_atomically
    from netdsl.language.format import format_text

    changed_files, errors = [], []
    for path in files:
        try:
            text = read_source(path)
            formatted = format_text(text, path)
            if path == "-" and not check_only:
                if STANDARD_OUTPUT.was_closed:
                    raise fail("there is no standard output to write to")
                print(formatted, end="")
            elif formatted != text:
                if not check_only:
                    write_atomically(Path(path), formatted.encode())
                changed_files.append(path)
        except NetError as e:
            errors.append(e)
    for path in changed_files:
        echo_stderr(f"{'would change' if check_only else 'changed'} {path}")
    for error in errors:
        print_error(error)
    if errors:
        return BAD_INPUT
    return CHECK_FAILED if check_only and changed_files else OK


@app.command()
def test(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="Files or folders; default: all .net files below the working directory.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Print the actual value for each expectation.")
    ] = False,
    shrink: ShrinkOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run the `test` sections: expected parameters, shapes and gradients. With --shrink, check only
    the gradients of their nets, not the counts; a net that cannot be shrunk fails.

    Example: netdsl test models
    """
    results: list[TestResult] = []
    errors: list[NetError] = []
    for path in find_net_files(files or ["."]):
        for result in _run_tests(path, shrink, errors):
            results.append(result)
            if not as_json:
                show_test_result(path, result, verbose)
    failed = sum(not result.ok for result in results)
    for error in errors:
        print_error(error)
    if as_json:
        print_json(
            {
                "passed": len(results) - failed,
                "failed": failed,
                "tests": [r.as_json() for r in results],
            }
        )
    else:
        echo_stderr(f"{len(results) - failed} passed, {failed} failed")
    if errors:
        return BAD_INPUT
    return CHECK_FAILED if failed else OK


def _run_tests(path: str, shrink: int | None, errors: list[NetError]) -> Iterator[TestResult]:
    """Yields the results of a file's tests, and collects the errors of the others. A file without
    tests is checked, so that none passes unread."""
    from netdsl.insight.net_tests import run_shrunk_test, run_test
    from netdsl.insight.program_check import check_program
    from netdsl.language.budget import Budget, LimitError

    try:
        program, budget = load_program(path), Budget()
        if not program.tests:
            check_program(program)
            echo_stderr(f"{path}: no tests")
    except NetError as e:
        errors.append(e)
        return
    for section in program.tests:
        try:
            if shrink is None:
                yield run_test(program, section, budget)
            else:
                yield run_shrunk_test(program, section, shrink)
        except NetError as e:
            errors.append(e)
            if isinstance(e, LimitError):
                return


@app.command()
def summary(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE[:NAME]|WEIGHTS",
            help="A .net file, a checkpoint, a run, or a folder of nets; `-` reads stdin.",
        ),
    ],
    shrink: ShrinkOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show the layers of a net: outputs, parameters, multiply-accumulates, memory for one image.
    For a folder, print a Markdown page of its nets.

    Example: netdsl summary models/lenet.net:caffe_lenet
    """
    from netdsl.file_kinds import RUN, recognise
    from netdsl.language.elaborate import Settings, shrink_settings

    place = Path(file)
    if place.is_dir() and recognise(place) != RUN:
        elaboration_settings = Settings(shrink=shrink_settings(shrink))
        return _summarise_folder(place, elaboration_settings, settings, as_json)
    from netdsl.insight.summary import summarise

    found = summarise(load_net(file, settings, shrink).elaborate())
    if as_json:
        print_json(found.as_json())
    else:
        show_summary(found)
    return OK


def _summarise_folder(
    folder: Path, elaboration_settings: Settings, overrides: list[str] | None, as_json: bool
) -> int:
    from netdsl.insight.zoo import load_zoo

    if overrides:
        raise fail("`--set` changes one file, not a folder", help="name the file")
    found = load_zoo(folder, elaboration_settings)
    if as_json:
        print_json(found.as_json())
    else:
        echo(found.as_markdown(), end="")
    return OK


@app.command()
def gradcheck(
    file: FileArgument,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of the weights, images and directions.")
    ] = 1,
    shrink: ShrinkOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check the gradient of every layer in its net against finite differences, in float64.

    Example: netdsl gradcheck models/resnet.net:resnet50 --shrink 8
    """
    from netdsl.insight.gradcheck import gradcheck as run

    path, name = split_file_and_name(file)
    rows = []
    for row in run(load_program(path, settings, name), name, seed, shrink):
        rows.append(row)
        if not as_json:
            echo(f"{'ok  ' if row.ok else 'FAIL'} {row.error:8.1e}  {row.name}")
    ok = all(r.ok for r in rows)
    if as_json:
        print_json({"ok": ok, "layers": [{"name": r.name, "error": r.error} for r in rows]})
    return OK if ok else CHECK_FAILED
