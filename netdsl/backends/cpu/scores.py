"""Rows of scores: softmax, cross-entropy, targets and hits."""

from __future__ import annotations

import math

from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.memory import float_at, int_at, long_at, put_float

SOFTMAX, LOG_SOFTMAX, CROSS_ENTROPY, ONE_HOT, TOP_HIT = range(5)


@loop
def scores(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Rows `first` to `last`.

    args: what is done; scores and bytes of a row; labels; result and bytes of a row; classes; k;
    where the share of the label and that of every class lie
    """
    how, x, step, labels = long_at(args), long_at(args + 8), long_at(args + 16), long_at(args + 24)
    y, out, classes, k = (
        long_at(args + 32),
        long_at(args + 40),
        long_at(args + 48),
        long_at(args + 56),
    )
    shares = long_at(args + 64)
    for row in range(first, last):
        a, to = x + row * step, y + row * out
        label = int_at(labels + 4 * row) if how >= CROSS_ENTROPY else 0
        if how == ONE_HOT:
            for c in range(classes):
                own = float_at(shares) if c == label else 0.0
                put_float(to + 4 * c, own + float_at(shares + 4))
            continue
        if how == TOP_HIT:
            mine = float_at(a + 4 * label)
            rivals = -1
            for c in range(classes):
                if not mine > float_at(a + 4 * c):
                    rivals += 1
            put_float(to, 1.0 if rivals < k else 0.0)
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
        if how == CROSS_ENTROPY:
            loss = 0.0
            for c in range(classes):
                own = float_at(shares) if c == label else 0.0
                loss -= (own + float_at(shares + 4)) * (float_at(a + 4 * c) - most - log)
            put_float(to, loss)
        else:
            for c in range(classes):
                value = float_at(a + 4 * c) - most
                put_float(to + 4 * c, math.exp(value) / total if how == SOFTMAX else value - log)
