"""Names of other libraries' functions and methods, and their replacements in Python here."""

from __future__ import annotations

from collections.abc import Mapping

_TRAIN = 'netdsl.train("FILE.net") trains, and its result has the trained `net`'
_LOAD = 'netdsl.load("FILE.net") gives a net, netdsl.load("DIR") the trained net of a run'
_SCORES = (
    "net(images) gives scores, net.predict(images) classes, net.probabilities(images) probabilities"
)
_EVAL = "`netdsl eval DIR` evaluates a trained net; in Python, a net is always in inference mode"
_LAYERS = (
    "`net.layers` lists the layers, `net.params` counts the weights; see also `netdsl summary`"
)
_WEIGHTS = "`net.weights` contains the weights by name, as read-only arrays"
_DEVICE = 'the device is an argument: netdsl.load("DIR", device="cuda")'
_SAVE = 'net.save("x.safetensors") writes the net with its weights, netdsl.load reads it'
_FILE = "a net is described in a .net file, which netdsl.load and netdsl.train take"

NAMES_OF_MODULES: Mapping[str, str] = {
    **dict.fromkeys(("fit", "Trainer", "run"), _TRAIN),
    **dict.fromkeys(("compile", "load_model", "open", "build", "from_pretrained"), _LOAD),
    **dict.fromkeys(("Model", "Sequential", "nn", "parse", "Network"), _FILE),
    **dict.fromkeys(("predict",), _SCORES),
    **dict.fromkeys(("evaluate", "eval", "test"), _EVAL),
    **dict.fromkeys(("save",), _SAVE),
}
NAMES_OF_NETS: Mapping[str, str] = {
    **dict.fromkeys(("fit", "train", "train_on_batch", "compile"), _TRAIN),
    **dict.fromkeys(("forward", "predict_proba", "predict_on_batch", "scores"), _SCORES),
    **dict.fromkeys(("eval", "evaluate", "test", "score"), _EVAL),
    **dict.fromkeys(("summary", "modules", "children", "named_modules"), _LAYERS),
    **dict.fromkeys(
        ("state_dict", "parameters", "named_parameters", "get_weights", "load_state_dict"), _WEIGHTS
    ),
    **dict.fromkeys(("to", "cuda", "cpu"), _DEVICE),
    **dict.fromkeys(("save_weights", "save_model", "export"), _SAVE),
}


def missing_attribute(owner: str, name: str, instead: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that does not exist, with its replacement if that is known."""
    message = f"{owner} has no attribute '{name}'"
    return AttributeError(f"{message}\nhelp: {instead[name]}" if name in instead else message)
