"""Good plans, damaged in every way that fits: the verifier refuses each that goes wrong.

Whether one goes wrong is found out by running it on numbers that name elements (dataflow.py), which
knows nothing of lifetimes; what that cannot see (a kernel that reads an element again when it has
written others) is damaged by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from netdsl.ir.builder import Builder
from netdsl.plan.fusion import FULL_FUSION, NO_FUSION, FusionOptions
from netdsl.plan.kernel import Kernel
from netdsl.plan.layout import Layout
from netdsl.plan.placement import ARENA, ImagePadding, Placement
from netdsl.plan.plan import Plan, make_plan
from netdsl.plan.plan_verifier import verify_plan
from netdsl.types import Graph, Node, TensorType
from tests.dataflow import DataflowChecker

IMAGE = (1, 2, 2, 2)
BOTH = ((1, 1), (1, 1))


def of_image(build: Callable[[Builder, Node], dict[str, Node]]) -> Graph:
    b = Builder(dtype="float64")
    return b.build(build(b, b.input("x", TensorType(IMAGE, "float64"))))


def conv(b: Builder, x: Node, name: str) -> Node:
    w = b.state(name, TensorType((2, 3, 3, x.type.shape[3]), "float64"), ("normal", 1.0))
    return b.conv2d(x, w, pad=BOTH)


def _chain(b: Builder, x: Node) -> dict[str, Node]:
    first = b.relu(conv(b, b.exp(x), "w1"))
    second = b.add(conv(b, first, "w2"), first)
    return {"y": b.softmax(second), "z": b.exp(second)}


def _joined(b: Builder, x: Node) -> dict[str, Node]:
    both = b.concat(b.exp(x), b.tanh(x), axis=3)
    return {"y": conv(b, both, "w1"), "z": b.softmax(b.concat(b.relu(both), x, axis=3))}


def _normal(b: Builder, x: Node) -> dict[str, Node]:
    y = conv(b, x, "w1")
    m = b.moments(y, axes=(0, 1, 2))
    z = b.normalize(y, m, axes=(0, 1, 2), eps=0.1)
    return {"y": b.softmax(b.mul(z, y)), "m": m}


def _updated() -> Graph:
    b = Builder(dtype="float64")
    kind = TensorType((2, 3), "float64")
    w, u = (b.state(n, kind, ("normal", 1.0)) for n in "wu")
    x = b.input("x", kind)
    y = b.softmax(b.mul(w, b.tanh(x)))
    return b.build({"y": b.reduce_sum(y, axes=(0,))}, {"w": b.sub(w, y), "u": b.add(u, y)})


GRAPHS = {
    "a chain with a residual": of_image(_chain),
    "branches that are joined": of_image(_joined),
    "moments and what they normalise": of_image(_normal),
    "states that are updated": _updated(),
}
PLANS = {
    f"{name}, {how}": make_plan(graph, fusion)
    for name, graph in GRAPHS.items()
    for how, fusion in (("fused", FULL_FUSION), ("alone", NO_FUSION))
}
every_plan = pytest.mark.parametrize("name", PLANS)


def is_refused(plan: Plan) -> bool:
    try:
        verify_plan(plan)
    except AssertionError:
        return True
    return False


def goes_wrong(plan: Plan) -> bool:
    try:
        DataflowChecker(plan).run()
    except (AssertionError, IndexError):
        return True
    return False


def refused_where_wrong(damaged: Iterator[tuple[str, Plan]], least: int) -> None:
    """No plan that goes wrong is let through, and of the damaged ones enough do go wrong."""
    wrong = 0
    for what, plan in damaged:
        if goes_wrong(plan):
            wrong += 1
            assert is_refused(plan), what
    assert wrong >= least


def moved(plan: Plan, name: str, offset: int) -> Plan:
    """A plan in which a value, its zeros and its views lie elsewhere; the arena grows with it."""
    by = offset - plan.placements[name].layout.offset
    shown = {name} | {v for v in plan.placements if name in _shows(plan.graph, v)}
    places = {
        v: replace(p, layout=replace(p.layout, offset=p.layout.offset + by)) if v in shown else p
        for v, p in plan.placements.items()
    }
    return replace(plan, placements=places)


def _shows(graph: Graph, name: str) -> Iterator[str]:
    """What a value is a view of."""
    while graph[name].op in ("reshape", "transpose", "broadcast", "slice"):
        name = graph[name].args[0]
        yield name


def values(plan: Plan) -> list[str]:
    """The values with a place of their own in the arena."""
    written = [o for k in plan.kernels for o in k.outputs]
    return [v for v in written if plan.placements[v].buffer == ARENA]


def roomy(plan: Plan) -> Plan:
    return replace(plan, arena_bytes=2 * plan.arena_bytes + 1024)


@every_plan
def test_a_good_plan_is_accepted_wherever_it_lies(name: str) -> None:
    plan = roomy(PLANS[name])
    places = {
        n: replace(p, layout=replace(p.layout, offset=p.layout.offset + 8))
        if p.buffer == ARENA
        else p
        for n, p in plan.placements.items()
    }
    shifted = replace(plan, placements=places)
    assert not goes_wrong(shifted)
    assert verify_plan(shifted) is shifted


@every_plan
def test_a_value_over_another_is_refused(name: str) -> None:
    """Each value moved onto each other one, so that all of it, its first or its last element does
    lie there."""
    plan = roomy(PLANS[name])

    def damaged() -> Iterator[tuple[str, Plan]]:
        for one in values(plan):
            own = plan.placements[one]
            for other in (v for v in values(plan) if v != one):
                there = plan.placements[other]
                first, last = (s // there.itemsize for s in there.byte_range())
                begin, end = (s // own.itemsize for s in own.byte_range())
                for start in (first, last - 1, first - (end - begin) + 1):
                    at = start + own.layout.offset - begin
                    if start >= 0:
                        yield f"{one} over {other} at {at}", moved(plan, one, at)

    refused_where_wrong(damaged(), least=6)


@every_plan
def test_a_value_outside_its_buffer_is_refused(name: str) -> None:
    plan = PLANS[name]

    def damaged() -> Iterator[tuple[str, Plan]]:
        for one in values(plan):
            place = plan.placements[one]
            first, last = (s // place.itemsize for s in place.byte_range())
            for by in (-first - 1, plan.arena_bytes // place.itemsize - last + 1):
                yield f"{one} moved by {by}", moved(plan, one, place.layout.offset + by)
        for buffer, size in plan.buffers.items():
            yield f"{buffer} cut", replace(plan, buffers={**plan.buffers, buffer: size - 1})

    refused_where_wrong(damaged(), least=2 * len(values(plan)))


@every_plan
def test_kernels_in_another_order_are_refused(name: str) -> None:
    """Each kernel moved to each place, left out, or run a second time."""
    plan = PLANS[name]

    def damaged() -> Iterator[tuple[str, Plan]]:
        for i, kernel in enumerate(plan.kernels):
            rest = [*plan.kernels[:i], *plan.kernels[i + 1 :]]
            yield f"without {kernel.name}", replace(plan, kernels=tuple(rest))
            for at in range(len(plan.kernels)):
                order = (*rest[:at], kernel, *rest[at:])
                yield f"{kernel.name} as number {at}", replace(plan, kernels=order)

    refused_where_wrong(damaged(), least=4)


@every_plan
def test_layouts_that_are_not_those_of_their_values_are_refused(name: str) -> None:
    """Views elsewhere than what they show, and zeros around an image that nobody writes."""
    plan = roomy(PLANS[name])

    def damaged() -> Iterator[tuple[str, Plan]]:
        for one, place in plan.placements.items():
            changes = []
            if next(_shows(plan.graph, one), None):
                changes = [_turned(place.layout), replace(place.layout, offset=1 << 3)]
            for layout in changes:
                yield one, _placed(plan, one, replace(place, layout=layout))
            if place.padding is not None:
                for halo in (((0, 0), (0, 0)), ((1, 1), (1, 0)), ((1, 1), (1, 2))):
                    geometry = ImagePadding(halo, place.padding.channels)
                    yield one, _placed(plan, one, replace(place, padding=geometry))

    refused_where_wrong(damaged(), least=0)


def _turned(layout: Layout) -> Layout:
    return replace(layout, strides=layout.strides[::-1])


def _placed(plan: Plan, name: str, place: Placement) -> Plan:
    return replace(plan, placements={**plan.placements, name: place})


# ---- what running a plan on numbers does not see


@every_plan
def test_an_operand_that_a_kernel_does_not_speak_of_is_refused(name: str) -> None:
    plan = PLANS[name]
    for i, kernel in enumerate(plan.kernels):
        for left_out in kernel.inputs if kernel.nodes else ():
            inputs = tuple(a for a in kernel.inputs if a != left_out)
            kernels = [*plan.kernels]
            kernels[i] = replace(kernel, inputs=inputs)
            refused(
                replace(plan, kernels=tuple(kernels)), f"does not declare that it reads {left_out}"
            )


def planned(graph: Graph, fusion: FusionOptions = NO_FUSION) -> Plan:
    return verify_plan(roomy(make_plan(graph, fusion)))


def onto(plan: Plan, one: str, other: str) -> Plan:
    """A plan in which one value has the very place of another one."""
    return _placed(plan, one, plan.placements[other])


def vector(b: Builder, name: str = "x", n: int = 4, dtype: str = "float64") -> Node:
    return b.input(name, TensorType((n,), dtype))


def refused(plan: Plan, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        verify_plan(plan)


def test_a_sweep_may_write_over_what_it_reads_and_nothing_else_may() -> None:
    b = Builder(dtype="float64")
    first = b.exp(vector(b))
    plan = planned(b.build({"y": b.tanh(first)}))
    assert verify_plan(onto(plan, "tanh", "exp"))
    b = Builder(dtype="float64")
    x = b.input("x", TensorType((2, 4), "float64"))
    plan = planned(b.build({"y": b.softmax(b.exp(x))}))
    refused(onto(plan, "softmax", "exp"), "share memory")
    b = Builder(dtype="float64")
    both = b.exp(b.input("x", TensorType((2, 4), "float64")))
    plan = planned(
        b.build({"y": b.add(both, b.transpose(b.reshape(both, shape=(4, 2)), perm=(1, 0)))})
    )
    refused(onto(plan, "add", "exp"), "share memory")


def test_an_operand_of_another_type_is_not_written_over() -> None:
    """Element 2 of the narrow result lies where element 1 of the wide operand does."""
    b = Builder(dtype="float64")
    plan = planned(b.build({"y": b.cast(b.exp(vector(b)), dtype="float32")}))
    at = replace(plan.placements["exp"].layout, offset=0)
    plan = _placed(plan, "exp", replace(plan.placements["exp"], layout=at))
    narrow = replace(plan.placements["cast"], layout=at)
    refused(_placed(plan, "cast", narrow), "exp and cast share memory")


def test_a_kernel_that_sums_what_it_reads_does_not_write_over_it() -> None:
    """Moments are taken around the first element, which is read again behind the others."""
    b = Builder(dtype="float64")
    y = b.softmax(b.input("x", TensorType((4, 4), "float64")))
    outputs = {"m": b.moments(y, axes=(0,)), "z": b.exp(y)}
    plan = planned(b.build(outputs), FULL_FUSION)
    (kernel,) = (k for k in plan.kernels if set(k.outputs) == {"moments", "exp"})
    assert kernel.kind == "map"
    refused(onto(plan, "exp", "softmax"), "softmax and exp share memory")


@pytest.mark.parametrize("first", ["tanh", "exp"])
def test_two_results_of_a_kernel_lie_apart_though_one_is_never_read(first: str) -> None:
    b = Builder(dtype="float64")
    y = b.softmax(b.input("x", TensorType((4, 4), "float64")))
    made = {op: b.emit(op, y) for op in (first, "tanh", "exp")}
    plan = planned(b.build({"a": made["exp"], "b": b.softmax(made["tanh"])}), FULL_FUSION)
    assert {"exp", "tanh"} in [set(k.outputs) for k in plan.kernels]
    again = Kernel("softmax~2", "opaque", ("tanh", "softmax~2"), ("softmax",), ("softmax~2",))
    kernels = tuple(again if k.name == again.name else k for k in plan.kernels)
    plan = moved(moved(replace(plan, kernels=kernels), "exp", 64), "tanh", 80)
    verify_plan(plan)
    refused(onto(plan, "exp", "tanh"), "share memory")
    refused(onto(plan, "tanh", "exp"), "share memory")


def test_what_is_given_out_is_needed_until_the_end() -> None:
    b = Builder(dtype="float64")
    first = b.exp(vector(b))
    plan = planned(b.build({"first": first, "last": b.tanh(b.neg(first))}))
    refused(onto(plan, "tanh", "exp"), "share memory")
    refused(onto(plan, "neg", "exp"), "share memory")
    assert verify_plan(onto(plan, "tanh", "neg"))


def test_a_branch_is_needed_as_long_as_its_concatenation() -> None:
    b = Builder(dtype="float64")
    x = vector(b)
    branches = [b.exp(x), b.tanh(x)]
    whole = b.concat(*branches, axis=0)
    plan = planned(b.build({"y": b.softmax(whole), "z": b.neg(b.relu(x))}))
    assert not plan.find_concat_copies("concat")
    order = {k.outputs[0]: k for k in plan.kernels}
    late = tuple(order[n] for n in ("exp", "tanh", "relu", "neg", "softmax"))
    plan = moved(moved(replace(plan, kernels=late), "relu", 50), "neg", 60)
    verify_plan(plan)
    for name in ("relu", "neg"):
        for branch in ("exp", "tanh"):
            refused(onto(plan, name, branch), "share memory")


def test_a_state_is_not_written_over_before_its_last_reader() -> None:
    """The reader right behind the update, and one further behind."""
    b = Builder(dtype="float64")
    w = b.state("w", TensorType((3,), "float64"), ("normal", 1.0))
    x = vector(b, n=3)
    graph = b.build({"y": b.mul(w, x), "z": b.neg(x)}, {"w": b.add(w, x)})
    kernels = {k.outputs[0]: k for k in planned(graph).kernels}
    for order in (("add", "mul", "neg"), ("add", "neg", "mul"), ("neg", "add", "mul")):
        plan = replace(planned(graph), kernels=tuple(kernels[n] for n in order))
        refused(plan, "mul reads w after it was overwritten")


def test_parts_of_a_launch_do_not_write_over_each_other_s_states() -> None:
    """Parts of one launch run in any order, so a state that one writes over no other reads; a
    kernel that computes both is done with an element of it when it writes that."""
    b = Builder(dtype="float64")
    w, u = (b.state(n, TensorType((3,), "float64"), ("normal", 1.0)) for n in "wu")
    plan = planned(b.build({}, {"w": b.add(w, u), "u": b.neg(u)}), FULL_FUSION)
    (launch,) = plan.kernels
    assert [plan.placements[o].buffer for o in launch.outputs] == ["w", "u"]
    add = Kernel("add", "map", ("add",), ("w", "u"), ("add",))
    neg = Kernel("neg", "map", ("neg",), ("u",), ("neg",))
    in_parts = replace(launch, parts=(add, neg))
    refused(replace(plan, kernels=(in_parts,)), "overwrites u while reading it")


def test_a_state_is_written_over_by_what_reads_it_element_by_element() -> None:
    b = Builder(dtype="float64")
    w = b.state("w", TensorType((2, 2), "float64"), ("normal", 1.0))
    plan = planned(b.build({}, {"w": b.add(w, b.transpose(w, perm=(1, 0)))}))
    assert [k.kind for k in plan.kernels] == ["map", "copy"]
    place = replace(plan.placements["add"], buffer="w", layout=plan.placements["w"].layout)
    refused(replace(_placed(plan, "add", place), kernels=plan.kernels[:1]), "while reading it")
    refused(replace(plan, kernels=plan.kernels[:1]), "w is never updated")
    refused(replace(plan, kernels=(*plan.kernels, plan.kernels[1])), "writes")


def test_zeros_around_a_branch_are_those_around_its_concatenation() -> None:
    plan = roomy(make_plan(GRAPHS["branches that are joined"], FULL_FUSION))
    whole = plan.placements["concat"].padding
    inside = [n for n in ("exp", "tanh") if plan.placements[n].padding is not None]
    assert whole is not None
    assert whole.halo == BOTH
    assert inside
    for name in inside:
        place = plan.placements[name]
        for halo in (((1, 1), (1, 0)), ((2, 1), (1, 1)), ((0, 0), (0, 0))):
            other = replace(place, padding=ImagePadding(halo, 2))
            refused(_placed(plan, name, other), "no kernel writes the zeros|share memory|outside")
        refused(_placed(plan, name, replace(place, padding=None)), "no kernel writes the zeros")
