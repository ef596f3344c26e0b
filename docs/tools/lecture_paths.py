"""Paths that name figures in what a command prints with `--json`.

A path is a chain of keys and list positions: `test_accuracy`, `params.0`, `layers.3.macs`. A key
may itself hold dots, as `train.epochs` in `rows.0.set.train.epochs`.

`[key=value, ...]` after a list keeps the items with these values, so that a row is named by what it
holds and not by its position: `rows[recipe=with].metrics.test_accuracy.mean`,
`layers[name=stack].params`, `rows[recipe=whole, set.data.limit=40].metrics.test_accuracy.mean`. A
value with a comma, a bracket or a quotation mark stands in single quotation marks:
`tests[name=deep].expectations[text='gradient("first") < 1e-6'].value`. If several items are left,
the figure is the mean over them: `runs[recipe=with].metrics.train_loss` is the mean over the seeds
of a sweep. `count nodes[op=conv2d]` is how many are left, possibly none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from netdsl.errors import NetError, fail

_STEP = re.compile(r"\.?([^.\[\]]+)|\[((?:'[^']*'|[^'\[\]])*)\]")
_CONDITION = re.compile(r"\s*([\w.]+)\s*=\s*(?:'([^']*)'|([^',\s]+))\s*(?:,|$)")
_COUNT = "count "
_MAX_SHOWN_KEYS = 12


def read_figure(value: Any, path: str) -> float:
    """Returns the number at a path; the mean if it selects several. Raises NetError if there is
    none, naming the step that fails."""
    found = [value]
    done = ""
    steps = split_path(path)
    for i, step in enumerate(steps):
        selected = [x for v in found for x in _take(v, step)]
        if path.startswith(_COUNT) and i == len(steps) - 1 and step.startswith("["):
            return float(len(selected))
        if not selected:
            raise _nothing_at(path, done, step, found)
        found, done = selected, _join(done, step)
    numbers = [float(x) for x in found if isinstance(x, int | float)]
    if len(numbers) < len(found):
        raise fail(f"no number at `{path}`: it is {_describe(found)}")
    return fmean(numbers)


def split_path(path: str) -> list[str]:
    """Returns the steps of a path; conditions keep their brackets. Raises NetError if it is not a
    path."""
    steps: list[str] = []
    path = path.removeprefix(_COUNT)
    at = 0
    while at < len(path):
        found = _STEP.match(path, at)
        if not found or (at == 0 and path.startswith(".")):
            raise _no_path(path)
        if found[2] is not None:
            _read_conditions(found[2], path)
        steps.append(found[1] if found[2] is None else f"[{found[2]}]")
        at = found.end()
    if not steps:
        raise _no_path(path)
    return _join_dotted(steps)


def _no_path(path: str) -> NetError:
    return fail(
        f"`{path}` is not a path",
        help="write keys with dots between them and conditions in brackets, such as "
        "`rows[recipe=with].metrics.test_accuracy.mean`",
    )


def _join_dotted(steps: list[str]) -> list[str]:
    """Chains of keys become one step, because a key may hold dots."""
    joined: list[str] = []
    for step in steps:
        if joined and not step.startswith("[") and not joined[-1].startswith("["):
            joined[-1] += f".{step}"
        else:
            joined.append(step)
    return joined


def _join(done: str, step: str) -> str:
    return f"{done}{'.' if done and not step.startswith('[') else ''}{step}"


def _read_conditions(text: str, path: str) -> dict[str, str]:
    conditions: dict[str, str] = {}
    at = 0
    while at < len(text) or not conditions:
        found = _CONDITION.match(text, at)
        if not found:
            raise _no_path(path)
        conditions[found[1]] = found[3] if found[2] is None else found[2]
        at = found.end()
    return conditions


def _take(value: Any, step: str) -> Iterator[Any]:
    if not step.startswith("["):
        yield from _look_up(value, step)
    elif isinstance(value, list):
        conditions = _read_conditions(step[1:-1], step)
        for item in value:
            if all(wanted in _texts(item, key) for key, wanted in conditions.items()):
                yield item


def _texts(item: Any, key: str) -> list[str]:
    return [_text(x) for x in _look_up(item, key)]


def _text(value: Any) -> str:
    """A value as the command line writes it: `yes` for true."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _look_up(value: Any, key: str) -> Iterator[Any]:
    """Yields what a dotted chain of keys leads to: the longest key first."""
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:n]), ".".join(parts[n:])
        for found in _get(value, head):
            yield from _look_up(found, rest) if rest else [found]
            return


def _get(value: Any, key: str) -> list[Any]:
    if isinstance(value, dict):
        return [value[key]] if key in value else []
    if isinstance(value, list) and key.isdecimal():
        return value[int(key) : int(key) + 1]
    return []


def _nothing_at(path: str, done: str, step: str, found: list[Any]) -> NetError:
    place = f" in `{done}`" if done else ""
    return fail(f"no `{step}`{place}, so nothing at `{path}`", help=_describe(found))


def _describe(found: list[Any]) -> str:
    first = found[0]
    if isinstance(first, dict):
        keys = list(first)
        more = f" and {len(keys) - _MAX_SHOWN_KEYS} more" if len(keys) > _MAX_SHOWN_KEYS else ""
        return f"an object with the keys {', '.join(keys[:_MAX_SHOWN_KEYS])}{more}"
    if isinstance(first, list):
        inner = f"; the first is {_describe(first[:1])}" if first else ""
        return f"a list of {len(first)}{inner}"
    return repr(first)
