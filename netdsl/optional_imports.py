"""Packages that not everybody needs: imported when they are asked for, or said why they cannot."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from netdsl.environment import can_allocate
from netdsl.errors import Diagnostic, NetError, fail

_MIN_ADDRESS_SPACE = 400 * 10**6
"""Bytes of addresses that the largest of them takes to load, about. With less SciPy's OpenBLAS
asks for memory without end, or ends the process."""


class NotInstalledError(NetError):
    """A package is missing."""


def import_optional(module: str, requirement: str, help: str) -> Any:
    """A module by its name; `requirement` says what needs it, `help` how it is installed. Raises
    NotInstalled where there is no such module, and NetError with the reason where there is one that
    cannot be loaded."""
    if module not in sys.modules and not can_allocate(_MIN_ADDRESS_SPACE):
        message = f"{requirement}, and there is too little memory to load it"
        raise fail(message, help="`ulimit -v` shows what this shell allows, in kB")
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module}.".startswith(f"{e.name}."):
            raise _make_load_error(
                requirement, e
            ) from None  # another one is missing, which this one imports
        raise NotInstalledError(
            Diagnostic(f"{requirement}, which is not installed", help=help)
        ) from None
    except (ImportError, OSError) as e:
        raise _make_load_error(requirement, e) from None


def _make_load_error(requirement: str, e: Exception) -> NetError:
    message = f"{requirement}, which is installed but cannot be loaded: {_find_root_cause(e)}"
    return fail(message, help="too little memory (`ulimit -v`) or a damaged package can be why")


def _find_root_cause(e: BaseException) -> str:
    """What went wrong first: packages raise errors of their own on top of it, which say less."""
    while (cause := e.__cause__ or e.__context__) is not None:
        e = cause
    return str(e) or type(e).__name__
