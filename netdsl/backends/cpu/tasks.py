"""Small tasks written by hand: zeros around images, and sums folded into what is asked for."""

from __future__ import annotations

import math

from netdsl.backends.cpu.loops import loop
from netdsl.backends.cpu.memory import float_at, long_at, put_float


@loop
def border(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Zeros around images `first` to `last`.

    args: address, bytes of an image and of a row and of a pixel; rows and columns with their
    halo; top, bottom, left, right; channels
    """
    at, image, row, pixel = long_at(args), long_at(args + 8), long_at(args + 16), long_at(args + 24)
    rows, columns = long_at(args + 32), long_at(args + 40)
    top, bottom = long_at(args + 48), long_at(args + 56)
    left, right, channels = long_at(args + 64), long_at(args + 72), long_at(args + 80)
    for n in range(first, last):
        for h in range(rows):
            line = at + n * image + h * row
            outside = h < top or h >= rows - bottom
            for w in range(columns):
                if outside or w < left or w >= columns - right:
                    for c in range(channels):
                        put_float(line + w * pixel + 4 * c, 0.0)


@loop
def fold(args, first, last, _c, _d, _e):  # type: ignore[no-untyped-def]
    """Sums of the parts of groups `first` to `last`: a row of channels each, or one number.

    args: slots, bytes of a slot and of a sum in it; parts of a group; period, repeat, whether all
    becomes one; then for each result of `how`: its first sum, where it is written, bytes to the
    next channel, to the second row and to the next group; elements that were summed; the shift;
    variance and bytes to its next channel and group; 1 / eps
    """
    slots, slot, bytes_sum = long_at(args), long_at(args + 8), long_at(args + 16)
    parts, period, repeat = long_at(args + 24), long_at(args + 32), long_at(args + 40)
    single, results = long_at(args + 48), long_at(args + 56)
    for g in range(first, last):
        for r in range(results):
            one = args + 64 + r * 96
            how, index = long_at(one), long_at(one + 8)
            base = slots + g * parts * slot + index * bytes_sum
            count = long_at(one + 48)
            for c in range(1 if single else period):
                width = period * repeat if single else 1
                a = 0.0
                b = 0.0
                for p in range(parts):
                    for k in range(1 if single else repeat):
                        at = base + p * slot + 4 * (c + k * period)
                        for i in range(width):
                            a += float_at(at + 4 * i)
                            if how >= 2:
                                b += float_at(at + bytes_sum + 4 * i)
                to = long_at(one + 16) + c * long_at(one + 24) + g * long_at(one + 40)
                second = long_at(one + 32)
                if how == 0:
                    put_float(to, a)
                elif how == 1:
                    put_float(to, a / count)
                elif how == 2:
                    mean = a / count
                    put_float(to, float_at(long_at(one + 56) + 4 * c) + mean)
                    put_float(to + second, max(b / count - mean * mean, 0.0))
                else:
                    step = c * long_at(one + 72) + g * long_at(one + 80)
                    variance = float_at(long_at(one + 64) + step)
                    root = 1.0 / math.sqrt(variance + 1.0 / long_at(one + 88))
                    put_float(to, -a * root)
                    put_float(to + second, -0.5 * b * root * root * root)
