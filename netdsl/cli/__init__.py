"""The command line: one thin function per command; the work is done in the lower layers."""

from __future__ import annotations

from netdsl.cli import (
    attribution,
    compiler,
    diff,
    draw_command,
    export_command,
    import_command,
    inspection,
    plot_command,
    prediction,
    report_command,
    run_command,
    sweep_command,
    time_command,
    train,
    visualization,
)
from netdsl.cli.app import app, main

__all__ = [
    "app",
    "attribution",
    "compiler",
    "diff",
    "draw_command",
    "export_command",
    "import_command",
    "inspection",
    "main",
    "plot_command",
    "prediction",
    "report_command",
    "run_command",
    "sweep_command",
    "time_command",
    "train",
    "visualization",
]
