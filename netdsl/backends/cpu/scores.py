"""Rows of scores: softmax, cross-entropy, targets and hits."""

from __future__ import annotations

import math

from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.memory import float_at, int_at, put_float
from netdsl.backends.cpu.record import Record, Single

SOFTMAX, LOG_SOFTMAX, CROSS_ENTROPY, ONE_HOT, TOP_HIT = range(5)


class ScoresArgs(Record):
    """What is done; scores and bytes of a row; labels; result and bytes of a row; classes; k of the
    best; the share of the label in a target, and that of every class."""

    kind: int
    scores: int
    row: int
    labels: int
    result: int
    result_row: int
    classes: int
    k: int
    label_share: Single
    class_share: Single


@loop
def scores(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last`; args: ScoresArgs."""
    s = ScoresArgs.at(args)
    kind, classes = s.kind, s.classes
    for row in range(first, last):
        a, to = s.scores + row * s.row, s.result + row * s.result_row
        label = int_at(s.labels + 4 * row) if kind >= CROSS_ENTROPY else 0
        if kind == ONE_HOT:
            for c in range(classes):
                own = s.label_share if c == label else 0.0
                put_float(to + 4 * c, own + s.class_share)
            continue
        if kind == TOP_HIT:
            mine = float_at(a + 4 * label)
            better = 0
            for c in range(classes):
                value = float_at(a + 4 * c)
                if value != value:
                    better += s.k
                elif value > mine or (value == mine and c < label):
                    better += 1
            put_float(to, 1.0 if better < s.k else 0.0)
            continue
        most = float_at(a)
        for c in range(1, classes):
            value = float_at(a + 4 * c)
            if value > most or value != value:
                most = value
        total = 0.0
        for c in range(classes):
            total += math.exp(float_at(a + 4 * c) - most)
        log = math.log(total)
        if kind == CROSS_ENTROPY:
            loss = 0.0
            for c in range(classes):
                own = s.label_share if c == label else 0.0
                loss -= (own + s.class_share) * (float_at(a + 4 * c) - most - log)
            put_float(to, loss)
        else:
            for c in range(classes):
                value = float_at(a + 4 * c) - most
                put_float(to + 4 * c, math.exp(value) / total if kind == SOFTMAX else value - log)
