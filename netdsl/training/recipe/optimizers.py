"""The table of optimizers: chains of small updates, emitted as IR for each parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from netdsl.globs import matches_any_glob
from netdsl.ir.builder import Builder
from netdsl.parameter_types import GLOB_LIST, Boolean, Float
from netdsl.signature import Param, Signature
from netdsl.types import Node, TensorType


@dataclass
class Update:
    """One parameter's update under construction: takes its gradient, produces its new value; slots
    are states.

    `scale` multiplies the learning rate. `counter` names the input that counts updates, and
    `skipped` is how many of those were skipped.
    """

    b: Builder
    weight: Node
    gradient: Node
    updates: dict[str, Node]
    scale: float = 1.0
    counter: str = "step"
    skipped: Node | None = None

    @property
    def lr(self) -> Node:
        rate = self.b.input("lr", TensorType((), self.b.dtype))
        return rate if self.scale == 1 else self.b.mul(rate, self.b.const(self.scale))

    @property
    def step(self) -> Node:
        count = self.b.input(self.counter, TensorType((), "int32"))
        if self.skipped is None:
            return count
        return self.b.sub(self.b.cast(count, dtype=self.skipped.type.dtype), self.skipped)

    def slot(self, name: str) -> Node:
        """A state of the weight's shape, initially zero: `conv1.weight.velocity`."""
        path = f"{self.weight.name}.{name}"
        return self.b.state(path, self.weight.type, ("constant", 0.0), trainable=False)

    def assign(self, slot: Node, value: Node) -> Node:
        self.updates[slot.name] = value
        return value

    def ema(self, op: str, name: str, decay: float) -> Node:
        """A slot that holds a moving average of the gradient (or its square)."""
        slot = self.slot(name)
        return self.assign(slot, self.b.emit(op, slot, self.gradient, decay=decay))

    def descend(self, direction: Node) -> Node:
        return self.b.descend(self.weight, direction, self.lr)


@dataclass(frozen=True)
class Optimizer:
    """`build(update, **arguments)` returns the new weight."""

    signature: Signature
    build: Callable[..., Node]
    doc: str = ""


def _add_weight_decay(u: Update, rate: float) -> Node:
    """The gradient of loss + rate/2 |w|^2."""
    return u.b.add(u.gradient, u.b.mul(u.weight, u.b.const(rate))) if rate else u.gradient


def _sgd(u: Update, momentum: float, nesterov: bool, weight_decay: float) -> Node:
    """Sutskever et al. 2013: v = m v + g; w = w - lr v, or with Nesterov w - lr (g + m v)."""
    g = _add_weight_decay(u, weight_decay)
    if momentum == 0:
        return u.descend(g)
    slot = u.slot("velocity")
    v = u.assign(slot, u.b.momentum(slot, g, momentum=momentum))
    return u.descend(u.b.momentum(v, g, momentum=momentum) if nesterov else v)


def _adam_direction(u: Update, beta1: float, beta2: float, eps: float) -> Node:
    m = u.ema("ema", "mean", beta1)
    v = u.ema("ema_square", "square", beta2)
    return u.b.adam_direction(m, v, u.step, beta1=beta1, beta2=beta2, eps=eps)


def _adam(u: Update, weight_decay: float, **betas: float) -> Node:
    """Kingma & Ba 2015, weight decay added to the gradient."""
    u.gradient = _add_weight_decay(u, weight_decay)
    return u.descend(_adam_direction(u, **betas))


def _adamw(u: Update, weight_decay: float, **betas: float) -> Node:
    """Loshchilov & Hutter 2019: w = w - lr (direction + decay * w)."""
    direction = _adam_direction(u, **betas)
    if weight_decay:
        direction = u.b.add(direction, u.b.mul(u.weight, u.b.const(weight_decay)))
    return u.descend(direction)


def _rmsprop(u: Update, decay: float, momentum: float, eps: float, weight_decay: float) -> Node:
    """Tieleman & Hinton 2012: g divided by the root of the running mean square."""
    u.gradient = _add_weight_decay(u, weight_decay)
    v = u.ema("ema_square", "square", decay)
    direction = u.b.rms_direction(u.gradient, v, eps=eps)
    if momentum:
        slot = u.slot("velocity")
        direction = u.assign(slot, u.b.momentum(slot, direction, momentum=momentum))
    return u.descend(direction)


def _lars(u: Update, momentum: float, trust: float, weight_decay: float, eps: float) -> Node:
    """You et al. 2017: v = m v + lr * ratio * (g + decay w); w = w - v. Vectors (biases, norms) use
    the plain rate."""
    b = u.b
    step = b.mul(_add_weight_decay(u, weight_decay), u.lr)
    if u.weight.type.rank > 1:
        ratio = b.trust_ratio(u.weight, u.gradient, trust=trust, weight_decay=weight_decay, eps=eps)
        step = b.mul(step, ratio)
    slot = u.slot("velocity")
    v = u.assign(slot, b.momentum(slot, step, momentum=momentum))
    return b.sub(u.weight, v)


def _lr(default: float) -> Param:
    return Param("lr", Float(0), default, "learning rate")


def _momentum(default: float) -> Param:
    return Param("momentum", Float(0, below=1), default)


def _eps(default: float) -> Param:
    return Param("eps", Float(above=0), default)


def _decay(default: float) -> tuple[Param, Param]:
    return (
        Param("weight_decay", Float(0), default),
        Param("no_decay", GLOB_LIST, (), "globs of parameters without weight decay"),
    )


_BETAS = (
    Param("beta1", Float(0, below=1), 0.9),
    Param("beta2", Float(0, below=1), 0.999),
    _eps(1e-8),
)


def _entry(name: str, build: Any, doc: str, *params: Param) -> Optimizer:
    return Optimizer(Signature(name, params), build, doc)


OPTIMIZERS: dict[str, Optimizer] = {
    o.signature.name: o
    for o in (
        _entry(
            "sgd",
            _sgd,
            "stochastic gradient descent with momentum",
            _lr(0.01),
            _momentum(0.0),
            Param("nesterov", Boolean(), False),
            *_decay(0.0),
        ),
        _entry("adam", _adam, "adaptive moments", _lr(0.001), *_BETAS, *_decay(0.0)),
        _entry(
            "adamw", _adamw, "Adam with decoupled weight decay", _lr(0.001), *_BETAS, *_decay(0.01)
        ),
        _entry(
            "rmsprop",
            _rmsprop,
            "root mean square scaling",
            _lr(0.001),
            Param("decay", Float(0, below=1), 0.9),
            _momentum(0.0),
            _eps(1e-8),
            *_decay(0.0),
        ),
        _entry(
            "lars",
            _lars,
            "layer-wise adaptive rates, for large batches",
            _lr(0.1),
            _momentum(0.9),
            Param("trust", Float(above=0), 0.001, "trust coefficient"),
            _eps(1e-9),
            *_decay(0.0),
        ),
    )
}


def emit_update(u: Update, chosen: Any) -> Node:
    """Emits the update of a weight and returns its new value. The learning rate is the input
    `lr`."""
    given = {k: v for k, v in chosen.arguments.items() if k not in ("lr", "no_decay")}
    if matches_any_glob(u.weight.name, chosen.arguments["no_decay"]):
        given["weight_decay"] = 0.0
    new: Node = chosen.record.build(u, **given)
    return new
