"""What the environment says: NETDSL_* variables, and whether there is memory to load a library."""

from __future__ import annotations

import mmap
import os
import re

from netdsl.errors import fail

_SHOWN = 40
"""Characters of a value that are shown."""


def has_room(nbytes: int) -> bool:
    """Whether so many bytes can be had, as far as limits on this process tell (`ulimit -v`). No
    page of them is used."""
    try:
        mmap.mmap(-1, nbytes).close()
    except OSError:
        return False
    return True


def setting(name: str) -> str | None:
    """What a variable says; None where it is unset or blank."""
    return os.environ.get(name, "").strip() or None


def shown(name: str, value: str) -> str:
    """A variable and the beginning of its value, as a message names them."""
    return f"{name}={value[:_SHOWN]}{'...' * (len(value) > _SHOWN)}"


def whole_number(name: str, most: int, what: str) -> int | None:
    """A whole number from 1 to `most`; None where the variable is unset. Raises NetError where it
    says something else."""
    text = setting(name)
    if text is None:
        return None
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not 1 <= number <= most:
        message = f"{shown(name, text)} is no {what} from 1 to {most:,}"
        raise fail(message, help=f"without {name} a fitting one is chosen")
    return number
