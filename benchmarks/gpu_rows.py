"""What the GPU benchmark measures: rows of its table, each by itself, equal to their rivals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.works import ROOT, first_values, without_dropout
from netdsl.backends import open_backend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import load
from netdsl.passes import pipeline
from netdsl.plan.backend import Backend
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.runtime.state import State
from netdsl.signature import OneFrom
from netdsl.train.compile import compile_step
from netdsl.train.optimizers import OPTIMIZERS
from netdsl.train.precision import PRECISIONS
from netdsl.train.recipe import Recipe, plain
from netdsl.types import Graph
from netdsl.values import Call

NETS = {
    "resnet50": ("resnet.net", "resnet50", 256),
    "lenet": ("lenet.net", "lenet5", 1024),
    "vgg16": ("vgg.net", "vgg_d", 128),
    "alexnet": ("alexnet.net", "alexnet_2014", 1024),
    "googlenet": ("googlenet.net", "googlenet_bn", 256),
}
PEERS = {"lenet": "lenet5"}
"""What a net is called in peers.py, where it is not its own name."""
LR, STEPS = 1e-4, 3
DROPPING = ("vgg16", "alexnet", "googlenet")
OFF, OFF_DROPPING = 0.03, 0.1
"""How far losses and scores in 16 bits may be off those of PyTorch; the first loss alone where
values are dropped at random."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    net: str
    batch: int
    side: str
    milliseconds: float
    first_seconds: float
    note: str = ""

    def __str__(self) -> str:
        rate = self.batch / self.milliseconds * 1e3
        return (
            f"{self.net:10} {self.batch:5}  {self.side:22} {self.milliseconds:8.3f} ms "
            f"{rate:11,.0f} img/s  first step {self.first_seconds:5.1f} s  {self.note}"
        )


@dataclass(frozen=True)
class Bench:
    """Where a benchmark runs. `low` is the 16-bit type that is mixed in; `folder` keeps first
    weights and results. On a processor it is rehearsed: two images in 32 bits, none of whose
    values are dropped."""

    device: str
    low: str | None
    folder: Path

    @property
    def rehearsed(self) -> bool:
        return self.device == "cpu"

    def size(self, net: str) -> int:
        return 2 if self.rehearsed else NETS[net][2]

    def network(self, net: str, training: bool) -> Network:
        file, name, _ = NETS[net]
        settings = Settings(batch=self.size(net), training=training)
        return elaborate(load(str(ROOT / "models" / file)), name, settings)

    def step(self, network: Network) -> Graph:
        graph = compile_step(network, recipe(self.low))
        return without_dropout(graph) if self.rehearsed else graph

    def data(self, net: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, the same for each side."""
        shape = (28, 28, 1) if net == "lenet" else (224, 224, 3)
        rng = np.random.default_rng(0)
        images = rng.standard_normal((self.size(net), *shape), dtype=np.float32)
        return images, rng.integers(0, 10, len(images)).astype(np.int32)

    @property
    def side(self) -> str:
        return f"netdsl {self.low or 'float32'}"


def recipe(low: str | None) -> Recipe:
    """Cross-entropy, SGD with momentum and weight decay: what PyTorch's side does."""
    found = plain("any")
    given = {"lr": LR, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "no_decay": ()}
    sgd = replace(found.optimizer, name="sgd", record=OPTIMIZERS["sgd"], arguments=given)
    found = replace(found, optimizer=sgd)
    if low is None:
        return found
    # no loss is scaled: the step is timed, not trained
    chosen = OneFrom("precision", PRECISIONS).accept(Call("mixed", (), None))
    arguments = {"low": replace(chosen.arguments["low"], name=low)}
    return replace(found, precision=replace(chosen, arguments=arguments))


def begun(bench: Bench, net: str, training: bool) -> tuple[Network, Backend, State, float]:
    """A net with its first weights, which are kept for the other side, and when this began."""
    started = time.perf_counter()
    network, backend = bench.network(net, training), open_backend(bench.device)
    state = State(backend)
    weights = first_values(state, network)
    np.savez(bench.folder / f"{net}.npz", **{str(i): w for i, w in enumerate(weights)})
    return network, backend, state, started


def train_row(bench: Bench, net: str, side: str = "train") -> tuple[Row, Executor]:
    """A training step of one of the models, timed by replays of its graph."""
    network, backend, state, started = begun(bench, net, True)
    graph = bench.step(network)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, backend, state)
    given = inputs(graph, *bench.data(net))
    losses = [float(executor.run(given)["loss"])]
    first = time.perf_counter() - started
    losses += [float(executor.run(given)["loss"]) for _ in range(STEPS - 1)]
    np.save(bench.folder / f"{net}-train.npy", np.array(losses))
    ms = timed(executor.launch, backend)
    assert np.isfinite(losses).all(), losses
    curve = " ".join(f"{v:.3f}" for v in losses)
    note = f"{used(backend)}{network.params:,} parameters, loss {curve}{by_reference(backend)}"
    return Row(net, bench.size(net), f"{side} {bench.side}", ms, first, note), executor


def infer_row(bench: Bench, net: str) -> Row:
    """A folded net, in 16 bits where they are asked for, timed by replays of its graph."""
    network, backend, state, started = begun(bench, net, False)
    state.initialise(network.graph.states, seed=1)
    folded = pipeline.inference(network.graph, low=bench.low)
    executor = FoldedExecutor(folded, backend, state)
    executor.refresh()
    given = inputs(folded.main, *bench.data(net))
    scores = backend.download(executor.run(given)["main"]).astype("float32")
    first = time.perf_counter() - started
    np.save(bench.folder / f"{net}-infer.npy", scores)
    ms = timed(executor.launch, backend)
    assert np.isfinite(scores).all()
    note = f"{used(backend)}{network.params:,} parameters{by_reference(backend)}"
    return Row(net, bench.size(net), f"infer {bench.side}", ms, first, note)


def warm_row(bench: Bench, net: str) -> Row:
    """The first step where the disk holds what the one before has built and chosen."""
    row, executor = train_row(bench, net, side="warm")
    del executor
    return replace(row, note="kernels and choices from the disk")


def torch_row(bench: Bench, net: str, what: str, mode: str) -> Row:
    """One of PyTorch's modes on the same net. Raises RuntimeError where it gives something else."""
    from benchmarks import pytorch

    images, labels = bench.data(net)
    peer, weights = PEERS.get(net, net), bench.folder / f"{net}.npz"
    given = labels if what == "train" else None
    found = pytorch.measured(peer, mode, images, given, weights, bench.rehearsed)
    ours = np.load(bench.folder / f"{net}-{what}.npy")
    dropping = what == "train" and net in DROPPING and not bench.rehearsed
    first = slice(0, 1 if dropping else None)
    theirs, ours = found.results[first], ours[first]
    error = float(np.linalg.norm(theirs - ours) / np.linalg.norm(theirs))
    note = (
        f"{found.bytes / 1e9:.1f} GB, {'loss' if given is not None else 'scores'} off {error:.2%}"
    )
    if not error < (OFF_DROPPING if dropping else OFF):
        raise RuntimeError(f"{net} is not the same net: {theirs} and {ours}, {note}")
    side = f"{what} PyTorch {mode}"
    return Row(net, bench.size(net), side, found.milliseconds, found.first_seconds, note)


def inputs(graph: Graph, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    known = {"labels": labels, "lr": np.asarray(LR), "weights": np.ones(len(labels))}
    given: dict[str, np.ndarray] = {}
    for node in graph.inputs:
        kind = node.type
        value = known.get(node.name, images if kind.rank == 4 else np.zeros(kind.shape))
        given[node.name] = value.astype(kind.dtype)
    return given


def timed(launch: Callable[[], None], backend: Any, steps: int = 20) -> float:
    """Milliseconds of one launch: the median of five times the mean of so many; without a GPU a
    single one."""
    if backend.name != "cuda":
        return 1e3 * float(backend.seconds([launch])[0])
    found = [backend.device.elapsed(lambda: _times(steps, launch)) / steps for _ in range(5)]
    return float(np.median(found))


def _times(count: int, launch: Callable[[], None]) -> None:
    for _ in range(count):
        launch()


def used(backend: Any) -> str:
    """What was allocated on a GPU."""
    if backend.name != "cuda":
        return ""
    return f"{backend.xp.get_default_memory_pool().used_bytes() / 1e9:.1f} GB, "


def by_reference(backend: Any) -> str:
    fallbacks = getattr(backend, "fallbacks", [])
    return f", by reference: {fallbacks}" if fallbacks else ""


@contextmanager
def caches(folder: Path) -> Iterator[None]:
    """What is kept lies in `folder`, so that first steps are first ones."""
    before = os.environ.get("NETDSL_CACHE")
    os.environ["NETDSL_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("NETDSL_CACHE")
        if before is not None:
            os.environ["NETDSL_CACHE"] = before


def mnist_line(precision: str, device: str = "cuda", epochs: int = 4) -> str:
    """LeNet-5 trained on MNIST from the command line, in a process of its own."""
    folder = Path(os.environ.get("NETDSL_DATA", ROOT.parent / "shared" / "data")) / "mnist"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "netdsl", "train", str(ROOT / "models" / "lenet.net")]
        command += ["--device", device, "--data", str(folder), "--out", f"{out}/run", "--json"]
        command += ["--set", f"train.epochs={epochs}", "--set", f"train.precision={precision}"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    if not done.stdout:
        raise RuntimeError(done.stderr[-500:])
    found = json.loads(done.stdout)
    return (
        f"lenet5 on MNIST, {precision}, {epochs} epochs: test accuracy "
        f"{found['test_accuracy']:.2%}, {found['images_per_second']:,.0f} img/s, {seconds:.1f} s"
    )


def test_line() -> str:
    """The tests on the device. Raises RuntimeError where one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_device.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:])
    return f"tests/test_device.py: {done.stdout.strip().splitlines()[-1]}"
