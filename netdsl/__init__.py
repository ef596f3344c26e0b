"""netdsl: a graph-compiled language for convolutional networks.

`load` gives a net to predict with, `train` trains one; docs/python.md shows both. Only what is used
is imported: `import netdsl` itself takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netdsl.api.net import Net, load
    from netdsl.api.plotting import plot
    from netdsl.api.prediction import Prediction
    from netdsl.api.report import report
    from netdsl.api.training import TrainingResult, train
    from netdsl.errors import NetError

__version__ = "0.1.0"
__all__ = [
    "Net",
    "NetError",
    "Prediction",
    "TrainingResult",
    "__version__",
    "load",
    "plot",
    "report",
    "train",
]

_MODULES = {
    "Net": "netdsl.api.net",
    "NetError": "netdsl.errors",
    "Prediction": "netdsl.api.prediction",
    "TrainingResult": "netdsl.api.training",
    "load": "netdsl.api.net",
    "plot": "netdsl.api.plotting",
    "report": "netdsl.api.report",
    "train": "netdsl.api.training",
}
"""Where each name is defined; `load` and `train` import the whole compiler."""


def __getattr__(name: str) -> Any:
    if name == "sklearn":
        return import_module("netdsl.sklearn")
    if name not in _MODULES:
        raise AttributeError(f"module 'netdsl' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
