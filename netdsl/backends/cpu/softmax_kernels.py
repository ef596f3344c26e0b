"""Rows of scores: softmax, cross-entropy, targets and hits."""

from __future__ import annotations

import math

from netdsl.backends.cpu.intrinsics import load_f32, load_i32, store_f32
from netdsl.backends.cpu.numba_loops import numba_loop
from netdsl.backends.cpu.record import Float32, Record

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
    label_share: Float32
    class_share: Float32


@numba_loop
def compute_scores(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last`; args: ScoresArgs."""
    s = ScoresArgs.at(args)
    kind, classes = s.kind, s.classes
    for row in range(first, last):
        a, to = s.scores + row * s.row, s.result + row * s.result_row
        label = load_i32(s.labels + 4 * row) if kind >= CROSS_ENTROPY else 0
        if kind == ONE_HOT:
            for c in range(classes):
                own = s.label_share if c == label else 0.0
                store_f32(to + 4 * c, own + s.class_share)
            continue
        if kind == TOP_HIT:
            label_score = load_f32(a + 4 * label)
            better_count = 0
            for c in range(classes):
                value = load_f32(a + 4 * c)
                if value != value:
                    better_count += s.k
                elif value > label_score or (value == label_score and c < label):
                    better_count += 1
            store_f32(to, 1.0 if better_count < s.k else 0.0)
            continue
        maximum = load_f32(a)
        for c in range(1, classes):
            value = load_f32(a + 4 * c)
            if value > maximum or value != value:
                maximum = value
        total = 0.0
        for c in range(classes):
            total += math.exp(load_f32(a + 4 * c) - maximum)
        log = math.log(total)
        if kind == CROSS_ENTROPY:
            loss = 0.0
            for c in range(classes):
                share = s.class_share + (s.label_share if c == label else 0.0)
                if share != 0.0:  # an impossible class, of -inf, would make NaN of it
                    loss -= share * (load_f32(a + 4 * c) - maximum - log)
            store_f32(to, loss)
        else:
            for c in range(classes):
                value = load_f32(a + 4 * c) - maximum
                store_f32(to + 4 * c, math.exp(value) / total if kind == SOFTMAX else value - log)
