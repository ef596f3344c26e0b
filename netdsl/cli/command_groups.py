"""The order and the groups of the commands in `netdsl --help`, each with its first sentence."""

from __future__ import annotations

import inspect
import re

from netdsl.cli.app import app

GROUPS = {
    "Write a net": ("check", "fmt", "test", "summary", "draw", "diff", "gradcheck"),
    "Train and use it": ("train", "sweep", "eval", "predict", "run"),
    "See runs and what a net has learned": (
        "plot",
        "report",
        "chart",
        "filters",
        "activations",
        "visualize",
        "saliency",
        "gradcam",
    ),
    "Exchange nets and weights": ("import", "export"),
    "Look into the compiler": ("compile", "explain", "time", "scale"),
}
_FIRST_SENTENCE = re.compile(r"(.+?)(?:[:;]\s|\.(?=\s+[A-Z`-]|$|\n\n))", re.DOTALL)
"""What comes before the first colon, semicolon or full stop; `al. 2017` does not end it."""


def group_commands() -> None:
    """Sorts all commands by group, and gives each its group and a short help."""
    groups = {name: group for group, names in GROUPS.items() for name in names}
    order = list(groups)
    for command in app.registered_commands:
        callback = command.callback
        assert callback is not None
        command.name = command.name or callback.__name__
        command.rich_help_panel = groups[command.name]
        sentence = _FIRST_SENTENCE.match(inspect.cleandoc(callback.__doc__ or ""))
        assert sentence is not None, command.name
        command.short_help = " ".join(sentence[1].split())
    app.registered_commands.sort(key=lambda command: order.index(command.name or ""))
