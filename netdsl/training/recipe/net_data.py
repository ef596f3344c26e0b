"""Which data section of a file says how the images of a net are prepared."""

from __future__ import annotations

from collections.abc import Iterator

from netdsl.errors import NetError
from netdsl.language import syntax as s
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import Program
from netdsl.limits import MAX_CHAIN_LENGTH


def find_data_of_net(program: Program, network: Network) -> s.Section | None:
    """The data section of a recipe for this net, else of the recipes for nets of its image size, if
    they have only one, else the only one that no recipe uses."""
    users: dict[str, list[s.Section]] = {}
    for recipe in program.sections("train"):
        net = program.reference_name(recipe, "net") or program.resolve_net_name()
        section = program.find_section("data", program.reference_name(recipe, "data"))
        if section is not None:
            users.setdefault(net, []).append(section)
    for net in _bases(program, network.name):
        if net in users:
            return users[net][0]
    alike = [x for net, found in users.items() if _takes(program, net, network) for x in found]
    used = {x.name for found in users.values() for x in found}
    alike = alike or [x for x in program.sections("data") if x.name not in used]
    names = {x.name for x in alike}
    return alike[0] if len(names) == 1 else None


def _bases(program: Program, name: str) -> Iterator[str]:
    """A net of the file, the one that it is an instance of, and so on."""
    for _ in range(MAX_CHAIN_LENGTH):
        yield name
        item = program.nets.get(name)
        if not isinstance(item, s.Instance) or item.base == name:
            return
        name = item.base


def _takes(program: Program, net: str, network: Network) -> bool:
    """Whether another net of a file takes images of the same size."""
    try:
        return elaborate(program, net, Settings()).image_shape == network.image_shape
    except NetError:
        return False
