"""Listing of generated code: kernel by kernel, each function once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from netdsl.plan.kernel import Kernel
from netdsl.plan.memory_traffic import find_kernel_label
from netdsl.plan.plan import Plan


@dataclass(frozen=True)
class CalledFunction:
    """A function that a kernel calls: its name, its text (empty for a library function) and a note
    on the call."""

    name: str
    text: str = ""
    note: str = ""


def format_listing(
    plan: Plan,
    find_calls: Callable[[Kernel], Sequence[CalledFunction]],
    comment: str,
    preamble: str = "",
) -> str:
    """Formats a comment line per kernel with its calls, followed by the functions that no earlier
    kernel calls. `preamble` comes first."""
    labels, counts = dict[str, str](), Counter[str]()
    parts = [preamble] if preamble else []
    for kernel in plan.kernels:
        calls = find_calls(kernel)
        new = dict.fromkeys(c for c in calls if c.text and c.text not in labels)
        for call in new:
            if call.text not in labels:
                counts[call.name] += 1
                labels[call.text] = f"{call.name} {counts[call.name]}"
        parts.append(f"{comment} kernel {kernel.name} ({find_kernel_label(plan.graph, kernel)})\n")
        parts += [f"{comment}   {_format_call(c, labels)}\n" for c in calls]
        if not calls:
            parts.append(f"{comment}   runs the operators' references\n")
        for text in dict.fromkeys(c.text for c in new):
            parts.append(f"\n{comment} function {labels[text]}\n{text.strip()}\n\n")
    return "".join(parts)


def _format_call(call: CalledFunction, labels: dict[str, str]) -> str:
    label = labels.get(call.text, call.name)
    return f"{label}: {call.note}" if call.note else label
