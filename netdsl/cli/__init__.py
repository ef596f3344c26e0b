"""The command line: one thin function per command; the work is done in the lower layers."""

from __future__ import annotations

from netdsl.cli import (
    compiler,
    diff,
    draw_command,
    export_command,
    import_command,
    inspection,
    prediction,
    sweep_command,
    time_command,
    train,
    visualization,
)
from netdsl.cli.app import app, main

__all__ = [
    "app",
    "compiler",
    "diff",
    "draw_command",
    "export_command",
    "import_command",
    "inspection",
    "main",
    "prediction",
    "sweep_command",
    "time_command",
    "train",
    "visualization",
]
