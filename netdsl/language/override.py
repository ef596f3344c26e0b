"""Changes from the command line, `--set train.epochs=5`, made to the syntax tree itself.

What is printed, saved and run is then one and the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from netdsl.errors import fail, nearest
from netdsl.language import syntax as s
from netdsl.language.parse import parse_expression


def override(file: s.File, settings: Sequence[str], net: str | None = None) -> s.File:
    """`file` with each `key=value` applied.

    `train.KEY` and `data.KEY` set an entry of every such section, `train.optimizer.lr` an argument
    within it; any other key is a parameter of the net, or of `net` where there are several.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise fail(f"`{setting}` is no setting", help="write `--set train.epochs=5`")
        value = parse_expression(text, f"--set {key}")
        kind, *path = key.split(".")
        if kind in ("train", "data") and path:
            file = _set_entry(file, kind, path, value, key)
        else:
            name = path[-1] if kind == "net" and len(path) == 1 else key
            file = _set_param(file, name, value, net)
    return file


def _set_entry(file: s.File, kind: str, path: Sequence[str], value: s.Expr, key: str) -> s.File:
    sections = [i for i in file.items if isinstance(i, s.Section) and i.kind == kind]
    if not sections:
        raise fail(f"there is no `{kind}` section to set `{key}` in")
    changed = {id(x): _changed(x, path, value, key) for x in sections}
    return replace(file, items=tuple(changed.get(id(i), i) for i in file.items))


def _changed(section: s.Section, path: Sequence[str], value: s.Expr, key: str) -> s.Section:
    name, *inner = path
    old = next((e for e in section.entries if isinstance(e, s.Entry) and e.name == name), None)
    if inner:
        if len(inner) > 1 or old is None or not isinstance(old.value, s.CallExpr | s.Name):
            raise fail(f"there is no `{name}` with arguments in the file to set `{key}` in")
        value = _with_argument(old.value, inner[0], value)
    entry = s.Entry(value.span, name, value)
    kept = tuple(e for e in section.entries if e is not old)
    return replace(section, entries=(*kept, entry))


def _with_argument(call: s.CallExpr | s.Name, name: str, value: s.Expr) -> s.CallExpr:
    args = call.args if isinstance(call, s.CallExpr) else ()
    kept = tuple(a for a in args if a.name != name)
    return s.CallExpr(call.span, call.name, (*kept, s.Arg(value.span, name, value)))


def _set_param(file: s.File, name: str, value: s.Expr, net: str | None) -> s.File:
    """A parameter of a net gets a new default; an instance a new argument."""
    nets = {i.name: i for i in file.items if isinstance(i, s.Net | s.Instance)}
    if not nets:
        raise fail(f"there is no net to set `{name}` of")
    chosen = nets.get(net or next(iter(nets)))
    known = _params(chosen, nets)
    if chosen is None or name not in known:
        keys = [*known, "train.epochs", "data.batch"]
        raise fail(f"nothing is called `{name}`", help=nearest(name, keys, "settings are"))
    new: s.Net | s.Instance
    if isinstance(chosen, s.Instance):
        kept = tuple(a for a in chosen.args if a.name != name)
        new = replace(chosen, args=(*kept, s.Arg(value.span, name, value)))
    else:
        params = (replace(p, default=value) if p.name == name else p for p in chosen.params)
        new = replace(chosen, params=tuple(params))
    return replace(file, items=tuple(new if i is chosen else i for i in file.items))


def _params(
    item: s.Net | s.Instance | None, nets: dict[str, s.Net | s.Instance]
) -> tuple[str, ...]:
    for _ in nets:
        if not isinstance(item, s.Instance):
            break
        item = nets.get(item.base)
    return tuple(p.name for p in item.params) if isinstance(item, s.Net) else ()
