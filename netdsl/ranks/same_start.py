"""The check that all ranks start from the same: program, options, data and version."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping

from netdsl.errors import fail
from netdsl.ranks.communicator import Communicator
from netdsl.ranks.rank_names import name_ranks

_MAX_SHOWN = 60
"""Characters of a value that a message shows; of a longer one, only its hash is compared."""


def check_same(communicator: Communicator, what: Mapping[str, str]) -> None:
    """Compares values, by name, over the ranks. Raises NetError, the same on all of them, that says
    what differs on which ranks."""
    if communicator.is_alone:
        return
    own = json.dumps({name: _abridge(value) for name, value in what.items()})
    found = [json.loads(text) for text in communicator.all_gather(own.encode())]
    names = dict.fromkeys(name for values in found for name in values)
    differing = [n for n in names if len({values.get(n) for values in found}) > 1]
    if not differing:
        return
    notes = []
    for name in differing:
        counts = Counter(values.get(name) for values in found)
        for value in counts:
            ranks = [r for r, values in enumerate(found) if values.get(name) == value]
            notes.append(f"{name} is {value or 'not given'} on {_name(communicator, ranks)}")
    raise fail(
        f"the ranks do not start from the same: {' and '.join(differing)} "
        f"{'differs' if len(differing) == 1 else 'differ'}",
        notes=notes,
        help="give all ranks the same files, options and version of netdsl",
    )


def _abridge(value: str) -> str:
    """A value, or for a long one its hash; empty if there is none."""
    if len(value) <= _MAX_SHOWN and value.isprintable():
        return f"`{value}`" if value else ""
    return f"a text with the hash {hashlib.sha256(value.encode(errors='replace')).hexdigest()[:16]}"


def _name(communicator: Communicator, ranks: list[int]) -> str:
    return name_ranks(communicator.hosts, ranks)
