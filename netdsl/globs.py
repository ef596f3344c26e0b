"""Globs over weight paths: what they match, and the error for one that matches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from netdsl.errors import Span, fail, suggest_spelling


def matches_glob(path: str, pattern: str) -> bool:
    """Returns whether a glob matches a path; `*` crosses dots."""
    return fnmatchcase(path, pattern)


def matches_any_glob(path: str, patterns: Iterable[str]) -> bool:
    """Returns whether any of the globs matches a path."""
    return any(matches_glob(path, p) for p in patterns)


def match_globs(
    patterns: Sequence[str],
    names: Sequence[str],
    key: str,
    span: Span | None = None,
    noun: str = "weight",
) -> dict[str, tuple[str, ...]]:
    """Returns what each glob matches. Raises NetError if one matches nothing."""
    found = {p: tuple(n for n in names if matches_glob(n, p)) for p in patterns}
    for pattern, matching_names in found.items():
        if not matching_names:
            message = f'no {noun} matches "{pattern}", given in `{key}`'
            raise fail(message, span, help=suggest_globs(pattern, names))
    return found


def suggest_globs(pattern: str, names: Sequence[str]) -> str:
    """A help line for a glob that matches nothing: the one that it resembles, else what would match
    the first parts of the names."""
    near = suggest_spelling(pattern, make_glob_candidates(names))
    if near is not None:
        return near
    first = list(dict.fromkeys(n.partition(".")[0] + (".*" if "." in n else "") for n in names))
    more = f", and {len(first) - _MAX_SHOWN:,} more" if len(first) > _MAX_SHOWN else ""
    return f"globs that match: {', '.join(first[:_MAX_SHOWN])}{more}"


_MAX_SHOWN = 12


def make_glob_candidates(names: Iterable[str]) -> set[str]:
    """Returns the names, and for each of their scopes a glob for everything under it."""
    scopes = {n[:i] for n in names for i, c in enumerate(n) if c == "."}
    return set(names) | {f"{s}.*" for s in scopes}
