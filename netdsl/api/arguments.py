"""What the functions of Python are given besides images: paths, devices, settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from netdsl.backends import check_device, open_backend
from netdsl.errors import fail
from netdsl.language.override import PythonSetting

_SETTINGS_HELP = '`set` takes a dict: {"train.epochs": 5, "train.optimizer": "adam(lr=0.01)"}'


def read_path(given: Any, name: str, help: str | None = None) -> str:
    """A path that was given for the argument `name`. Raises NetError if it is none."""
    if not isinstance(given, str | os.PathLike):
        raise fail(f"`{name}` is of type {type(given).__name__}, which is not a path", help=help)
    return str(os.fspath(given))


def read_place(given: Any) -> str:
    """The path of a place in a net. Raises NetError if it is not one text."""
    if not isinstance(given, str):
        help = '`at` is the path of one place, as in `net.places`: net(images, at="conv1")'
        raise fail(f"`at` is of type {type(given).__name__}", help=help)
    return given


def read_places(given: Any) -> tuple[str, ...]:
    """The paths of places in a net, each once. Raises NetError if they are not texts, or if there
    are none."""
    help = 'give paths, as in `net.places`: net.values(images, ["conv1", "head"])'
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise fail(f"`places` is of type {type(given).__name__}", help=help)
    if not given:
        raise fail("`places` names no place", help=help)
    return tuple(dict.fromkeys(map(read_place, given)))


def require_device(device: str) -> None:
    """Raises NetError if there is no device of that name, or if the one that is asked for cannot be
    used here: before any work, not when the first image comes."""
    check_device(device)
    if device == "cuda":
        open_backend(device)


def format_settings(given: Any) -> list[PythonSetting]:
    """`set` as settings `key=value` of .net text. Raises NetError if it is no mapping of names to
    numbers, lists and texts."""
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise fail(f"`set` is of type {type(given).__name__}", help=_SETTINGS_HELP)
    for key in given:
        if not isinstance(key, str) or "=" in key or not key.strip():
            raise fail(f"`{key}` in `set` is not the name of a setting", help=_SETTINGS_HELP)
    return [PythonSetting(f"{key}={format_setting(value)}") for key, value in given.items()]


def format_setting(value: Any) -> str:
    """A value as .net text. Raises NetError if it is none."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_setting, value))}]"
    if isinstance(value, Real):
        return repr(float(value)) if not isinstance(value, Integral) else str(int(value))
    kind = type(value).__name__
    message = f"`set` takes numbers, yes or no, lists and .net text, not a {kind}"
    raise fail(message, help=_SETTINGS_HELP)
