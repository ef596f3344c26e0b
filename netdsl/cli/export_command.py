"""The command that writes trained nets for other programs: export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netdsl.cli.app import OK, DeviceOption, JsonOption, app, echo, print_json
from netdsl.cli.prediction import WeightsArgument
from netdsl.errors import fail

if TYPE_CHECKING:
    from netdsl.interchange.onnx_writing import ExportReport

ONNX_SUFFIX = ".onnx"


@app.command("export")
def export(
    weights: WeightsArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE.onnx", help="The model to write.")
    ],
    is_raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Take normalised floats [N,C,H,W] instead of the bytes of pictures."
        ),
    ] = False,
    is_half: Annotated[
        bool, typer.Option("--half", help="Store weights and compute in float16.")
    ] = False,
    keeps_batch_norms: Annotated[
        bool,
        typer.Option(
            "--keep-batchnorm", help="Fold no batch norm into the weights of the layer before it."
        ),
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Write trained weights with their net as an ONNX model. The scores are compared with netdsl's
    if onnxruntime is installed.

    Example: netdsl export runs/cifar-1 -o cifar.onnx
    """
    if out.suffix.lower() == ONNX_SUFFIX:
        report = _export_onnx(weights, out, is_raw, is_half, keeps_batch_norms, device)
    else:
        raise fail(f"{out} does not end in `{ONNX_SUFFIX}`, and the suffix chooses the format")
    if as_json:
        print_json(report.values)
    else:
        for line in report.lines:
            echo(line)
    return OK


def _export_onnx(
    weights: Path, out: Path, is_raw: bool, is_half: bool, keeps_batch_norms: bool, device: str
) -> ExportReport:
    from netdsl.backends import open_backend
    from netdsl.inference import Predictor
    from netdsl.interchange.onnx_export import ExportOptions
    from netdsl.interchange.onnx_writing import write_onnx

    options = ExportOptions(is_half, keeps_batch_norms)
    return write_onnx(Predictor(weights, open_backend(device)), out, options, is_raw)
