"""What the environment says: NETDSL_* variables, and whether there is memory to load a library."""

from __future__ import annotations

import mmap
import os
import re

from netdsl.errors import fail

_MAX_SHOWN_CHARACTERS = 40
"""Characters of a value that are shown."""


def can_allocate(nbytes: int) -> bool:
    """Whether so many bytes can be had, as far as limits on this process tell (`ulimit -v`). No
    page of them is used."""
    try:
        mmap.mmap(-1, nbytes).close()
    except OSError:
        return False
    return True


def read_variable(name: str) -> str | None:
    """What a variable says; None where it is unset or blank."""
    return os.environ.get(name, "").strip() or None


def format_variable(name: str, value: str) -> str:
    """A variable and the beginning of its value, as a message names them."""
    return f"{name}={value[:_MAX_SHOWN_CHARACTERS]}{'...' * (len(value) > _MAX_SHOWN_CHARACTERS)}"


def read_integer(name: str, maximum: int, description: str) -> int | None:
    """A whole number from 1 to `maximum`; None where the variable is unset. Raises NetError where
    it says something else."""
    text = read_variable(name)
    if text is None:
        return None
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= maximum:
        message = f"{format_variable(name, text)} is no {description} from 1 to {maximum:,}"
        raise fail(message, help=f"without {name} a fitting one is chosen")
    return number
