"""What an import or an export has done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TransferReport:
    """Lines for people, and the same as JSON."""

    lines: tuple[str, ...]
    values: Mapping[str, Any]
