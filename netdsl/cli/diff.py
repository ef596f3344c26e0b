"""The command that compares two nets: diff."""

from __future__ import annotations

from netdsl.cli.app import OK, JsonOption, NetArgument, app, print_json
from netdsl.cli.display import show_diff
from netdsl.cli.file_arguments import load_net


@app.command()
def diff(a: NetArgument, b: NetArgument, as_json: JsonOption = False) -> int:
    """Show what differs between two nets, and which weights of one fit the other.

    Example: netdsl diff models/lenet.net:lenet5 models/lenet.net:caffe_lenet
    """
    from netdsl.insight.network_diff import compare_networks

    found = compare_networks(load_net(a).elaborate(), load_net(b).elaborate())
    if as_json:
        print_json(found.as_json())
    else:
        show_diff(found)
    return OK
