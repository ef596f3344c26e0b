"""The command line: one thin function a command; the work is done on the floors below."""

from __future__ import annotations

from netdsl.cli import comparing, compiling, inspecting, picturing, timing, training, using
from netdsl.cli.app import app, main

__all__ = [
    "app",
    "comparing",
    "compiling",
    "inspecting",
    "main",
    "picturing",
    "timing",
    "training",
    "using",
]
