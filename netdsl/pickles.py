"""Pickles, which are never read: loading one runs code that it holds."""

from __future__ import annotations

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
    target = path.with_suffix(".safetensors").name
    tensors = f'torch.load("{path.name}", weights_only=True)'
    return fail(
        f"{path} is a pickle, which may run code when it is loaded, so it is never read",
        notes=[
            "import torch; from safetensors.torch import save_file",
            f'save_file({{k: v.contiguous() for k, v in {tensors}.items()}}, "{target}")',
        ],
        help="these two lines of Python write its weights to a safetensors file, where PyTorch is "
        "installed",
    )
