"""netdsl: a graph-compiled language for convolutional networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netdsl.insight.python_api import NetFile

__version__ = "0.1.0"


def load(place: str) -> NetFile:
    """Loads a .net file, or one net or recipe of it:
    `netdsl.load("models/resnet.net:resnet50").graph()` returns the net as a networkx.DiGraph.
    Raises NetError if it cannot be found."""
    from netdsl.insight import python_api  # imports the whole compiler

    return python_api.load(place)
