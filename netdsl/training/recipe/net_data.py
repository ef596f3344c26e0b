"""Which data section of a file says how the images of a net are prepared."""

from __future__ import annotations

from collections.abc import Iterator

from netdsl.errors import NetError
from netdsl.language import syntax as s
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.program import Program
from netdsl.limits import MAX_CHAIN_LENGTH


def find_data_of_net(program: Program, net: str) -> s.Section | None:
    """The data section of a recipe for a net, else for one that it is an instance of, else of the
    recipes for nets of its image size, if they have only one, else the only one that no recipe
    uses."""
    users: dict[str, list[s.Section]] = {}
    for recipe in program.sections("train"):
        name = program.find_trained_net(recipe.name)
        whole = program.find_section("train", recipe.name)
        data = program.reference_name(whole, "data") if whole else None
        section = program.find_section("data", data)
        if section is not None and name is not None:
            users.setdefault(name, []).append(section)
    for name in _bases(program, net):
        if name in users:
            return users[name][0]
    shape = _image_shape(program, net) if users else None
    alike = [
        x
        for name, found in users.items()
        if shape is not None and _image_shape(program, name) == shape
        for x in found
    ]
    used = {x.name for found in users.values() for x in found}
    alike = alike or [x for x in program.sections("data") if x.name not in used]
    names = {x.name for x in alike}
    return program.find_section("data", *names) if len(names) == 1 else None


def _bases(program: Program, name: str) -> Iterator[str]:
    """A net of the file, the one that it is an instance of, and so on."""
    for _ in range(MAX_CHAIN_LENGTH):
        yield name
        item = program.nets.get(name)
        if not isinstance(item, s.Instance) or item.base == name:
            return
        name = item.base


def _image_shape(program: Program, net: str) -> tuple[int, ...] | None:
    """The shape of one image that a net takes; None if it has errors or several inputs."""
    try:
        return elaborate(program, net, Settings()).image_shape
    except NetError:
        return None
