"""Pickles, which are never read: loading one runs code that it contains."""

from __future__ import annotations

import json
from pathlib import Path

from netdsl.errors import NetError, fail

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle")
_PROTOCOLS = (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
HEAD_SIZE = 9
"""The bytes of a file that tell a pickle from a safetensors file."""


def is_pickle(path: Path, head: bytes) -> bool:
    """Whether a file is a pickle by its name or its first bytes. A safetensors file may begin with
    the same two bytes; its ninth opens an object of JSON."""
    if head[8:9] == b"{":
        return False
    return path.suffix.lower() in PICKLE_SUFFIXES or head[:2] in _PROTOCOLS


def pickle_error(path: Path) -> NetError:
    """The error for a pickle, with the lines of Python that turn PyTorch's into safetensors."""
    target = path.with_suffix(".safetensors")
    if target == path:
        target = path.with_stem(f"{path.stem}-converted")
    source, written = json.dumps(str(path)), json.dumps(str(target))
    states = 'x.get("model", x.get("state_dict", x))'
    tensors = f"{{k: v.contiguous().clone() for k, v in {states}.items() if torch.is_tensor(v)}}"
    return fail(
        f"{path} is a pickle, which may run code when it is loaded, so it is never read",
        notes=[
            "import torch; from safetensors.torch import save_file; "
            f"x = torch.load({source}, weights_only=True)",
            f"save_file({tensors}, {written})",
        ],
        help="these two lines of Python write its weights to a safetensors file, where PyTorch is "
        "installed; if it contains a whole module, save the module's `state_dict()` instead",
    )
