"""The command that writes trained nets for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, DeviceOption, JsonOption, app, print_transfer_report
from netdsl.cli.prediction import WeightsArgument
from netdsl.cli.progress import show_progress
from netdsl.errors import fail

if TYPE_CHECKING:
    from netdsl.interchange.transfer_report import TransferReport
ONNX_SUFFIX, WEIGHTS_SUFFIX = ".onnx", ".safetensors"


@app.command("export")
def export(
    weights: WeightsArgument,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FILE", help="A model (.onnx), or weights (.safetensors)."
        ),
    ],
    is_raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Export a model that takes normalised floats [N,C,H,W] instead of pixel bytes.",
        ),
    ] = False,
    is_half: Annotated[
        bool, typer.Option("--half", help="Store weights and compute in float16.")
    ] = False,
    keeps_batch_norms: Annotated[
        bool,
        typer.Option(
            "--keep-batchnorm",
            help="Do not fold batch norms into the weights of the layers before them.",
        ),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="torch", help="Write PyTorch's names and axis order."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            "--names",
            metavar="FILE",
            help="With `--layout torch`: use the names in this file of weights.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Write trained weights with their net as an ONNX model, or alone for PyTorch. The scores of a
    model are compared with netdsl's if onnxruntime is installed.

    Example: netdsl export runs/cifar-1 -o cifar.onnx
    """
    from netdsl.training.store.output_files import check_outputs

    check_outputs([out], [weights, *filter(None, [names])])
    if out.suffix.lower() == WEIGHTS_SUFFIX:
        if device != "auto":
            raise fail("`--device` is for models (.onnx), whose scores are computed")
        if is_raw or is_half or keeps_batch_norms:
            raise fail("`--raw`, `--half` and `--keep-batchnorm` are for models (.onnx)")
        report = _export_weights(weights, out, layout, names)
    elif out.suffix.lower() != ONNX_SUFFIX:
        formats = f"`{ONNX_SUFFIX}` or `{WEIGHTS_SUFFIX}`"
        name = f"{out.stem}{WEIGHTS_SUFFIX}"
        help = f"`-o {out.stem}{ONNX_SUFFIX}` writes a model, `-o {name}` weights"
        if out.suffix.lower() in (".pt", ".pth", ".bin", ".ckpt"):
            help = f"PyTorch reads `-o {name} --layout torch`, with safetensors.torch.load_file"
        message = f"{out} does not end in {formats}, and the suffix selects the format"
        raise fail(message, help=help)
    elif layout is not None or names is not None:
        raise fail(f"`--layout` and `--names` are for weights ({WEIGHTS_SUFFIX})")
    else:
        report = _export_onnx(weights, out, is_raw, is_half, keeps_batch_norms, device)
    print_transfer_report(report, as_json)
    return OK


def _export_weights(
    weights: Path, out: Path, layout: str | None, names: Path | None
) -> TransferReport:
    from netdsl.interchange.weights.torch_export import export_torch
    from netdsl.training.store.checkpoint import load_best

    if layout != "torch":
        message = (
            "weights can be written in the layout of another program"
            if layout is None
            else (f"there is no layout `{layout}`")
        )
        raise fail(
            message, help="`--layout torch` is PyTorch's; netdsl reads checkpoints as they are"
        )
    with show_progress(f"exporting {weights}"):
        return export_torch(load_best(weights), out, names)


def _export_onnx(
    weights: Path, out: Path, is_raw: bool, is_half: bool, keeps_batch_norms: bool, device: str
) -> TransferReport:
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.interchange.onnx_export.exporter import ExportOptions
    from netdsl.interchange.onnx_export.writing import write_onnx

    options = ExportOptions(is_half, keeps_batch_norms)
    with show_progress(f"exporting {weights}, and comparing its scores"):
        return write_onnx(Predictor(weights, open_backend(device)), out, options, is_raw)
