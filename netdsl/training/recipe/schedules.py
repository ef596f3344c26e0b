"""The table of schedules: the factor of the learning rate at each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from netdsl.parameter_types import Float, Integer, ListOf
from netdsl.signature import BoundCall, Param, Signature


@dataclass(frozen=True)
class Moment:
    """A point in a run: `epoch` of `epochs` are done, with `steps` steps in each. `losses` are the
    selection losses of the finished epochs (smaller is better)."""

    epoch: float
    epochs: int
    steps: float
    losses: Sequence[float] = ()

    @property
    def step(self) -> float:
        return self.epoch * self.steps

    @property
    def total_steps(self) -> float:
        """The number of steps in the whole run."""
        return self.epochs * self.steps

    def share(self, begin: float) -> float:
        """The fraction of the run that is done, from 0 to 1, counted from epoch `begin`."""
        whole = max(self.epochs - begin, 1e-12)
        return min(1.0, max(0.0, (self.epoch - begin) / whole))


@dataclass(frozen=True)
class Schedule:
    """`factor(moment, **arguments)` multiplies the optimizer's learning rate. The moment has the
    losses of past epochs only if `needs_losses`."""

    signature: Signature
    factor: Callable[..., float]
    doc: str = ""
    needs_losses: bool = False


def _constant(m: Moment, warmup: float) -> float:
    return 1.0


def _step(m: Moment, warmup: float, at: tuple[float, ...], gamma: float) -> float:
    return gamma ** sum(m.epoch >= epoch for epoch in at)


def _cosine(m: Moment, warmup: float, end: float) -> float:
    """Loshchilov & Hutter 2017, one period."""
    return end + (1 - end) * _half_wave(m.share(warmup))


def _half_wave(share: float) -> float:
    """Falls from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * share)) / 2


def _onecycle(m: Moment, rise: float, start: float, end: float) -> float:
    """Smith & Topin 2018: up during the fraction `rise` of the steps, then down; both along
    cosines."""
    top, last = rise * m.total_steps - 1, m.total_steps - 1
    if 0 < top >= m.step:
        return 1 + (start - 1) * _half_wave(m.step / top)
    share = min(1.0, (m.step - top) / max(last - top, 1e-12))
    return end + (1 - end) * _half_wave(share)


def _inverse(m: Moment, warmup: float, gamma: float, power: float) -> float:
    return float((1 + gamma * m.step) ** -power)


def _poly(m: Moment, warmup: float, power: float) -> float:
    return float((1 - m.share(warmup)) ** power)


def _plateau(
    m: Moment, warmup: float, factor: float, patience: int, threshold: float, end: float
) -> float:
    """A fold over the past epochs, so that a run stores no state beyond its history."""
    best, waited, scale = math.inf, 0, 1.0
    for value in m.losses:
        if value < best - abs(best) * threshold or best == math.inf:
            best, waited = value, 0
        else:
            waited += 1
        if waited > patience:
            scale, waited = max(end, scale * factor), 0
    return scale


_WARMUP = Param(
    "warmup", Float(0), 0.0, "epochs during which the rate rises from 0 to its full value"
)
_END = Param("end", Float(0, 1), 0.0, "fraction of the rate that is left at the end")


def _entry(
    name: str, factor: Any, doc: str, *params: Param, needs_losses: bool = False
) -> Schedule:
    return Schedule(Signature(name, params), factor, doc, needs_losses)


SCHEDULES: dict[str, Schedule] = {
    s.signature.name: s
    for s in (
        _entry("constant", _constant, "the learning rate stays constant", _WARMUP),
        _entry(
            "step",
            _step,
            "multiplied by `gamma` after each of the epochs `at`",
            Param("at", ListOf(Float(0)), doc="epochs"),
            Param("gamma", Float(above=0), 0.1),
            _WARMUP,
        ),
        _entry(
            "cosine",
            _cosine,
            "falls along half a cosine to `end` (Loshchilov & Hutter 2017)",
            _END,
            _WARMUP,
        ),
        _entry(
            "onecycle",
            _onecycle,
            "rises from `start` during the fraction `rise` of the run, then falls to `end` "
            "(Smith & Topin 2018)",
            Param("rise", Float(above=0, below=1), 0.3),
            Param("start", Float(0, 1), 0.04),
            Param("end", Float(0, 1), 4e-6),
        ),
        _entry(
            "inverse",
            _inverse,
            "(1 + gamma * step) ^ -power, Caffe's inv",
            Param("gamma", Float(0), 0.0001),
            Param("power", Float(0), 0.75),
            _WARMUP,
        ),
        _entry(
            "poly",
            _poly,
            "(1 - fraction of the run) ^ power",
            Param("power", Float(0), 1.0),
            _WARMUP,
        ),
        _entry(
            "plateau",
            _plateau,
            "multiplied by `factor` when the validation loss (or else the training loss) has not "
            "fallen for more than `patience` epochs",
            Param("factor", Float(0, below=1), 0.1),
            Param("patience", Integer(0), 10),
            Param("threshold", Float(0), 0.0001, "fraction by which it must fall to count"),
            _END,
            _WARMUP,
            needs_losses=True,
        ),
    )
}


def rate_factor(chosen: BoundCall, m: Moment) -> float:
    """The factor of the learning rate at a step. During warm-up it rises linearly and reaches its
    full value at the last warm-up step (Goyal et al. 2017)."""
    factor: float = chosen.record.factor(m, **chosen.arguments)
    warmup = chosen.arguments.get("warmup", 0.0)
    ramp = (m.step + 1) / max(warmup * m.steps, 1.0)
    return factor * min(1.0, ramp) if m.epoch < warmup else factor
