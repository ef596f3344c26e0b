"""The command that computes values at places of a net: run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netdsl.cli.app import (
    OK,
    DeviceOption,
    JsonOption,
    SetOption,
    app,
    echo,
    echo_stderr,
    print_json,
)
from netdsl.cli.file_arguments import load_program
from netdsl.cli.progress import show_progress
from netdsl.cli.value_rows import UNLIMITED, Limits, format_values, is_shortened
from netdsl.errors import fail
from netdsl.file_io import split_file_and_name

if TYPE_CHECKING:
    from netdsl.api.net import Net
    from netdsl.data.input_file import InputFile
    from netdsl.types import Array


@app.command()
def run(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE[:NET]|WEIGHTS",
            help="A .net file (with initial weights), a checkpoint or a run directory.",
        ),
    ],
    given: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="[NAME=]FILE",
            help="A picture, an array (.npy: one image or a batch) or a table of numbers (.csv). "
            "For a net with several inputs, repeat it with the name of each.",
        ),
    ],
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE",
            help="A path, as `netdsl summary` prints it; may be repeated. Default: the output.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="Also write the values: .npy, or .npz for several."
        ),
    ] = None,
    blank: Annotated[
        float, typer.Option(metavar="NUMBER", help="Value of blank cells in a table.")
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**31 - 1, help="Seed of the initial weights; default: the recipe's."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print all values, however many there are.")
    ] = False,
    device: DeviceOption = "auto",
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print the values at places of a net for an input. Pictures are prepared as in `predict`;
    floats and tables are used as they are. A table is an image with one channel, or, for a net
    that takes vectors, one vector per row.

    Example: netdsl run models/lecture/pooling.net:slide --input models/lecture/table.csv --at pool
    """
    places = tuple(dict.fromkeys(at or ()))
    paths = [Path(text) for text in given]
    if out is not None:
        _check_output(out, [Path(split_file_and_name(file)[0]), *paths], max(1, len(places)))
    net = _load_net(file, settings, device, seed)
    inputs = {
        name: _read_input(path, net.input_shapes[name], blank)
        for name, path in _assign_inputs(net, given).items()
    }
    is_batch = any(x.is_batch for x in inputs.values())
    with show_progress("compiling"):
        images = {name: x.content for name, x in inputs.items()}
        found = net.values(images, places or (net.output_place,))
    if net.seed is not None and net.params:
        echo_stderr(
            f"the weights of `{net.name}` are initial ones, drawn from seed {net.seed}; "
            "for trained weights, give a checkpoint"
        )
    if not is_batch:
        found = {place: values[0] for place, values in found.items()}
    if out is not None:
        _write_values(out, found)
    if as_json:
        rows = [_describe(place, values) for place, values in found.items()]
        print_json(rows if len(places) > 1 else rows[0])
    else:
        _show_values(found, is_batch, UNLIMITED if full else Limits())
    return OK


def _load_net(file: str, settings: list[str] | None, device: str, seed: int | None) -> Net:
    from netdsl.api.arguments import require_device
    from netdsl.api.net import has_weights, load, net_of_program

    if has_weights(Path(file)):
        for option, value in (("--set", settings), ("--seed", seed)):
            if value is not None:
                message = f"`{option}` applies only to a .net file; {file} contains weights"
                raise fail(message, help="leave it out")
        return load(file, device)
    require_device(device)
    path, name = split_file_and_name(file)
    return net_of_program(load_program(path, settings, name), name, device, seed)


def _assign_inputs(net: Net, given: Sequence[str]) -> dict[str, Path]:
    """The file for each input of the net. Raises NetError if one has none or several."""
    names = list(net.input_shapes)
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in names:
            if len(names) > 1:
                options = " ".join(f"--input {x}=FILE" for x in names)
                message = f"`--input {text}` is not an input of `{net.name}`, which has several"
                raise fail(message, help=f"write `{options}`")
            name, path = names[0], text
        if name in found:
            help = "for several images, give a batch in one .npy file"
            raise fail(f"the input `{name}` is given twice", help=help)
        found[name] = Path(path)
    missing = [name for name in names if name not in found]
    if missing:
        raise fail(f"the input `{missing[0]}` is missing", help=f"add `--input {missing[0]}=FILE`")
    return found


def _read_input(path: Path, shape: tuple[int, ...], blank: float) -> InputFile:
    from netdsl.data.input_file import read_input_file

    found = read_input_file(path, shape, blank)
    if found.blank_count:
        cells = "1 blank cell" if found.blank_count == 1 else f"{found.blank_count:,} blank cells"
        echo_stderr(f"{path}: {cells} read as {blank:g}")
    return found


_ARRAY_SUFFIX, _ARRAYS_SUFFIX = ".npy", ".npz"


def _check_output(out: Path, inputs: Sequence[Path], count: int) -> None:
    from netdsl.training.store.output_files import check_outputs, check_suffix

    check_outputs([out], inputs)
    if out.suffix != _ARRAYS_SUFFIX:
        help = f"values are written as {_ARRAY_SUFFIX}, or for several places as {_ARRAYS_SUFFIX}"
        check_suffix(out, _ARRAY_SUFFIX, help)
        if count > 1:
            raise fail(
                f"{out} can contain only one array, but there are {count} places",
                help=f"a {_ARRAYS_SUFFIX} file can contain the values of several places",
            )


def _write_values(out: Path, found: Mapping[str, Array]) -> None:
    from netdsl.data.npy import format_npy, format_npz
    from netdsl.file_io import write_atomically

    if out.suffix == _ARRAY_SUFFIX:
        write_atomically(out, format_npy(next(iter(found.values()))))
    else:
        write_atomically(out, format_npz(found))


def _describe(place: str, values: Array) -> dict[str, Any]:
    return {"place": place, "shape": list(values.shape), "values": values.tolist()}


def _show_values(found: Mapping[str, Array], is_batch: bool, limits: Limits) -> None:
    for place, values in found.items():
        for line in format_values(place, values, is_batch, limits):
            echo(line)
    if any(is_shortened(values, is_batch, limits) for values in found.values()):
        echo_stderr("shortened: `--full` prints all values, and `-o x.npy` writes them")
