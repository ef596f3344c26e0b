"""Optional packages: imported on demand, with an error that says why one cannot be loaded."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from netdsl.environment import can_allocate
from netdsl.errors import Diagnostic, NetError, fail

_MIN_ADDRESS_SPACE = 400 * 10**6
"""Bytes of address space that the largest of them needs to load, roughly. With less, SciPy's
OpenBLAS requests memory endlessly or ends the process."""


class NotInstalledError(NetError):
    """A package is missing."""


def import_optional(module: str, requirement: str, help: str) -> Any:
    """Imports a module by name; `requirement` says what needs it, `help` how to install it. Raises
    NotInstalledError if there is no such module, and NetError with the reason if it exists but
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
            ) from None  # a dependency of this module is missing
        raise NotInstalledError(
            Diagnostic(f"{requirement}, which is not installed", help=help)
        ) from None
    except (ImportError, OSError) as e:
        raise _make_load_error(requirement, e) from None


def _make_load_error(requirement: str, e: Exception) -> NetError:
    message = f"{requirement}, which is installed but cannot be loaded: {_find_root_cause(e)}"
    return fail(message, help="too little memory (`ulimit -v`) or a damaged package can be why")


def _find_root_cause(e: BaseException) -> str:
    """Returns the original error: packages wrap it in errors of their own that say less."""
    while (cause := e.__cause__ or e.__context__) is not None:
        e = cause
    return str(e) or type(e).__name__
