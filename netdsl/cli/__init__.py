"""The command line: one thin function per command; the work is done in the lower layers."""

from __future__ import annotations

from netdsl.cli import (
    attribution,
    chart_command,
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
    scale_command,
    sweep_command,
    time_command,
    train,
    visualization,
)
from netdsl.cli.app import app, main
from netdsl.cli.command_groups import group_commands

group_commands()

__all__ = [
    "app",
    "attribution",
    "chart_command",
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
    "scale_command",
    "sweep_command",
    "time_command",
    "train",
    "visualization",
]
