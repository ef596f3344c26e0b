"""The process environment: NETDSL_* variables, and whether there is enough memory to load a
library."""

from __future__ import annotations

import mmap
import os
import re

from netdsl.errors import fail

_MAX_SHOWN_CHARACTERS = 40
"""Characters of a value that a message shows."""


def can_allocate(nbytes: int) -> bool:
    """Returns whether this many bytes can be allocated under the limits on this process (`ulimit
    -v`). No page is touched."""
    try:
        mmap.mmap(-1, nbytes).close()
    except OSError:
        return False
    return True


def read_variable(name: str) -> str | None:
    """Returns a variable's value, or None if it is unset or blank."""
    return os.environ.get(name, "").strip() or None


def format_variable(name: str, value: str) -> str:
    """Formats a variable and the beginning of its value for a message."""
    return f"{name}={value[:_MAX_SHOWN_CHARACTERS]}{'...' * (len(value) > _MAX_SHOWN_CHARACTERS)}"


def read_integer(name: str, maximum: int, description: str) -> int | None:
    """Returns a variable's value as an integer from 1 to `maximum`, or None if it is unset. Raises
    NetError for any other value."""
    text = read_variable(name)
    if text is None:
        return None
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= maximum:
        message = f"{format_variable(name, text)} is not a {description} from 1 to {maximum:,}"
        raise fail(message, help=f"without {name}, a suitable value is chosen")
    return number
