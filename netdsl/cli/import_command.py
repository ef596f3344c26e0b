"""The command that takes nets and weights of other programs over: import."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, JsonOption, app, print_transfer_report
from netdsl.cli.progress import show_progress
from netdsl.errors import fail

if TYPE_CHECKING:
    from netdsl.interchange.imported_net import ImportOptions
    from netdsl.interchange.transfer_report import TransferReport

NET_SUFFIX, WEIGHTS_SUFFIX = ".net", ".safetensors"


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A model (.onnx) or weights (.safetensors, .npz)."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="The net to write (.net), or with --into its weights.",
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE.safetensors", help="Also write the weights."),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            "--into", metavar="FILE.net:NET", help="Fit the weights to this existing net."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="A file with one class name per line."),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            "--normalize",
            metavar="STATISTICS",
            help="What the weights expect, as in a data section: imagenet, by(mean=..., std=...).",
        ),
    ] = None,
    is_bgr: Annotated[
        bool, typer.Option("--bgr", help="The weights expect the channel order blue, green, red.")
    ] = False,
    scale: Annotated[
        float,
        typer.Option(
            "--scale",
            metavar="MAX",
            min=1e-6,
            max=1e6,
            help="The largest pixel value that the weights expect.",
        ),
    ] = 1.0,
    is_rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Ignore the .net in the metadata of a model that netdsl exported."
        ),
    ] = False,
    excluded: Annotated[
        list[str] | None,
        typer.Option(
            "--except",
            metavar="GLOB",
            help='With --into: layers to initialise at random, such as "head.*".',
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="HxW",
            help="Height and width of the images, if the model leaves them open.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Write an ONNX model as a .net with its weights, or fit weights to an existing net.

    Example: netdsl import squeezenet.onnx -o squeezenet.net --weights squeezenet.safetensors
    """
    from netdsl.interchange.imported_net import ImportOptions

    globs = tuple(excluded or ())
    options = ImportOptions(classes, normalize, is_bgr, scale, is_rebuild, _parse_size(size), globs)
    with show_progress(f"importing {source}"):
        if into is not None:
            report = _import_weights(source, into, out, weights, options)
        else:
            report = _import_net(source, out, weights, options)
    print_transfer_report(report, as_json)
    return OK


def _import_weights(
    source: Path, into: str, out: Path, weights: Path | None, options: ImportOptions
) -> TransferReport:
    from netdsl.interchange.weights.importer import import_weights
    from netdsl.training.store.output_files import check_suffix

    check_suffix(out, WEIGHTS_SUFFIX, "with `--into`, `-o` names the weights")
    if weights is not None:
        raise fail(
            "`--weights` cannot be used with `--into`", help="with `--into`, `-o` names the weights"
        )
    if options.size is not None:
        raise fail(
            "`--size` cannot be used with `--into`", help="with `--into`, the net sets the size"
        )
    if options.is_rebuild:
        raise fail(
            "`--rebuild` cannot be used with `--into`", help="with `--into`, you provide the net"
        )
    return import_weights(source, into, out, options)


def _import_net(
    source: Path, out: Path, weights: Path | None, options: ImportOptions
) -> TransferReport:
    from netdsl.interchange.onnx_import.importer import check_model, import_onnx
    from netdsl.training.store.output_files import check_suffix

    check_model(source)
    if options.excluded:
        raise fail("`--except` needs `--into`", help="it leaves out layers of an existing net")
    check_suffix(out, NET_SUFFIX, "`-o` names the net, `--weights` its weights")
    if weights is not None:
        check_suffix(weights, WEIGHTS_SUFFIX, "`--weights` names the weights")
    return import_onnx(source, out, weights, options)


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Height and width, as in `224x224`, or one number for both."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text, re.ASCII)
    if found is None:
        raise fail(
            f"`{text}` is not a height and width", help="write, for example, `--size 224x224`"
        )
    sides = found[1], found[2] or found[1]
    if max(map(len, sides)) > _MAX_SIDE_DIGITS:
        limit = f"{10**_MAX_SIDE_DIGITS - 1:,}"
        raise fail(f"`{text}` is too large", help=f"a side has at most {limit} pixels")
    return int(sides[0]), int(sides[1])


_MAX_SIDE_DIGITS = 5
