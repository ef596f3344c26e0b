"""The machine and the versions of what runs on it."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from netdsl import __version__

_PACKAGES = ("numpy", "numba", "llvmlite", "pillow", "scikit-learn", "cupy-cuda12x", "cupy-cuda13x")


def describe_machine() -> str:
    """The processor, its cores, and the system of this machine."""
    cores = os.cpu_count() or 1
    name = _find_processor() or platform.processor() or platform.machine()
    return f"{name}, {cores} {'core' if cores == 1 else 'cores'}, {platform.system()}"


def _find_processor() -> str | None:
    """The name of the processor, as Linux says it."""
    with suppress(OSError, UnicodeDecodeError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1].strip() if found else None
    return None


def list_versions() -> dict[str, str]:
    """The versions of netdsl, Python and the packages that compute or read the data."""
    found = {"netdsl": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
