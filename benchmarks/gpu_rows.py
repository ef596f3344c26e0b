"""The measurements of the GPU benchmark: functions that produce one row of its table each."""

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

from benchmarks.workloads import MOMENTUM, ROOT, WEIGHT_DECAY, draw_parameters, remove_dropout
from netdsl.backends import open_backend
from netdsl.backends.base import Backend
from netdsl.language.elaborate import Settings, elaborate
from netdsl.language.network import Network
from netdsl.language.program import load_program
from netdsl.passes import pass_manager
from netdsl.ranks.communicator import ONE_RANK, Communicator
from netdsl.runtime.executor import Executor, FoldedExecutor
from netdsl.runtime.state import State
from netdsl.signature import CallOf
from netdsl.training.recipe.optimizers import OPTIMIZERS
from netdsl.training.recipe.precision import PRECISIONS
from netdsl.training.recipe.recipe import Recipe, default_recipe
from netdsl.training.run.replicas import check_replicas
from netdsl.training.step.compile import compile_step
from netdsl.types import Graph
from netdsl.values import Call

NETS = {
    "resnet50": ("resnet.net", "resnet50", 256),
    "lenet": ("lenet.net", "lenet5", 1024),
    "vgg16": ("vgg.net", "vgg_d", 128),
    "alexnet": ("alexnet.net", "alexnet_2014", 1024),
    "googlenet": ("googlenet.net", "googlenet_bn", 256),
}
TORCH_NAMES = {"lenet": "lenet5"}
"""Names in torch_nets.py, where they differ."""
LEARNING_RATES, STEPS = {"lenet": 0.1}, 3
"""Learning rates at which the loss changes, 1e-4 for other nets; and the number of steps whose
losses are compared."""
NETS_WITH_DROPOUT = ("vgg16", "alexnet", "googlenet")


@dataclass(frozen=True)
class Tolerance:
    """Relative tolerances between two sides: of scores, of losses, of changes of losses, and of the
    first loss alone if the net has dropout."""

    scores: float
    losses: float
    changes: float
    dropping: float


IN_16_BITS, IN_32_BITS = Tolerance(0.03, 0.01, 0.25, 0.1), Tolerance(1e-3, 2e-3, 0.02, 0.0)


@dataclass(frozen=True)
class GpuRow:
    """One row of the table."""

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
class BenchContext:
    """Where a benchmark runs. `low` is the 16-bit type of mixed precision; `folder` stores initial
    weights and results. On a CPU it is a rehearsal: two images in 32 bits, without dropout."""

    device: str
    low: str | None
    folder: Path
    communicator: Communicator = ONE_RANK
    """The ranks that train together, each on a batch of its own."""

    def open_backend(self) -> Backend:
        """The backend of this rank."""
        return open_backend(self.device).with_communicator(self.communicator)

    @property
    def rehearsed(self) -> bool:
        return self.device == "cpu"

    def size(self, net: str) -> int:
        return 2 if self.rehearsed else NETS[net][2]

    def network(self, net: str, training: bool) -> Network:
        file, name, _ = NETS[net]
        ranks = self.communicator.size
        settings = Settings(batch=self.size(net), training=training, ranks=ranks)
        return elaborate(load_program(str(ROOT / "models" / file)), name, settings)

    def lr(self, net: str) -> float:
        return LEARNING_RATES.get(net, 1e-4)

    def step(self, network: Network) -> Graph:
        graph = compile_step(network, make_recipe(self.low))
        return remove_dropout(graph) if self.rehearsed else graph

    def data(self, net: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, the same for each side."""
        shape = (28, 28, 1) if net == "lenet" else (224, 224, 3)
        rng = np.random.default_rng(self.communicator.rank)
        images = rng.standard_normal((self.size(net), *shape), dtype=np.float32)
        return images, rng.integers(0, 10, len(images)).astype(np.int32)

    @property
    def side(self) -> str:
        return f"netdsl {self.low or 'float32'}"


def make_recipe(low: str | None) -> Recipe:
    """Cross-entropy, SGD with momentum and weight decay: the same as the PyTorch side."""
    found = default_recipe("any")
    given = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": False, "no_decay": ()}
    given["lr"] = 0.0  # the graph takes it as an input
    sgd = replace(found.optimizer, name="sgd", record=OPTIMIZERS["sgd"], arguments=given)
    found = replace(found, optimizer=sgd)
    if low is None:
        return found
    # the loss is not scaled: the step is timed, not trained
    chosen = CallOf("precision", PRECISIONS).accept(Call("mixed", (), None))
    arguments = {"low": replace(chosen.arguments["low"], name=low)}
    return replace(found, precision=replace(chosen, arguments=arguments))


class InitializedNet:
    """A net with its initial weights, which are saved for the other side. `seconds` measures what a
    user waits for: without saving weights or making images."""

    def __init__(self, bench: BenchContext, net: str, training: bool) -> None:
        self.given = bench.data(net)
        started = time.perf_counter()
        self.network = bench.network(net, training)
        self.backend = bench.open_backend()
        self.state = State(self.backend)
        self.state.initialise(self.network.graph.states, seed=1)
        self._before = time.perf_counter() - started
        weights = draw_parameters(self.state, self.network)
        if bench.communicator.is_root:
            np.savez(bench.folder / f"{net}.npz", **{str(i): w for i, w in enumerate(weights)})
        self._again = time.perf_counter()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._again


def train_row(bench: BenchContext, net: str, side: str = "train") -> tuple[GpuRow, Executor]:
    """A training step of one of the models, timed by replaying its CUDA graph."""
    begun = InitializedNet(bench, net, True)
    network, backend, state = begun.network, begun.backend, begun.state
    graph = bench.step(network)
    state.initialise(graph.states, seed=1)
    executor = Executor(graph, backend, state)
    given = make_inputs(graph, *begun.given, bench.lr(net))
    losses = [float(executor.run(given)["loss"])]
    first = begun.seconds()
    losses += [float(executor.run(given)["loss"]) for _ in range(STEPS - 1)]
    if bench.communicator.is_root:
        np.save(bench.folder / f"{net}-train.npy", np.array(losses))
    ms = time_launch(executor.launch, backend)
    check_replicas(bench.communicator, state, epoch=0)
    assert np.isfinite(losses).all(), losses
    curve = " ".join(f"{v:.3f}" for v in losses)
    parameters = f"{network.params:,} parameters"
    note = f"{format_memory(backend)}{parameters}, loss {curve}{format_fallbacks(backend)}"
    return GpuRow(net, bench.size(net), f"{side} {bench.side}", ms, first, note), executor


def infer_row(bench: BenchContext, net: str) -> GpuRow:
    """Inference of a folded net, in 16 bits if `low` is set, timed by replaying its CUDA graph."""
    begun = InitializedNet(bench, net, False)
    network, backend = begun.network, begun.backend
    folded = pass_manager.prepare_inference(network.graph, low=bench.low)
    executor = FoldedExecutor(folded, backend, begun.state)
    executor.refresh()
    given = make_inputs(folded.main, *begun.given, 0.0)
    scores = backend.download(executor.run(given)["main"]).astype("float32")
    first = begun.seconds()
    np.save(bench.folder / f"{net}-infer.npy", scores)
    ms = time_launch(executor.launch, backend)
    assert np.isfinite(scores).all()
    note = f"{format_memory(backend)}{network.params:,} parameters{format_fallbacks(backend)}"
    return GpuRow(net, bench.size(net), f"infer {bench.side}", ms, first, note)


def warm_row(bench: BenchContext, net: str) -> GpuRow:
    """The first step with a warm disk cache: kernels and tuning choices of the previous run."""
    row, executor = train_row(bench, net, side="warm")
    del executor
    return replace(row, note="kernels and choices from the disk")


def torch_row(bench: BenchContext, net: str, what: str, mode: str) -> GpuRow:
    """One of PyTorch's modes on the same net. Raises RuntimeError if its results differ."""
    from benchmarks import pytorch

    images, labels = bench.data(net)
    peer, weights = TORCH_NAMES.get(net, net), bench.folder / f"{net}.npz"
    given = labels if what == "train" else None
    asked = pytorch.TorchTask(peer, weights, images, given, STEPS, bench.lr(net), bench.low)
    found = pytorch.measure(asked, mode)
    ours = np.load(bench.folder / f"{net}-{what}.npy")
    told = check_results(bench, net, what, ours, found.results)
    note = f"{found.bytes / 1e9:.1f} GB, {told}"
    side = f"{what} PyTorch {mode}"
    return GpuRow(net, bench.size(net), side, found.milliseconds, found.first_seconds, note)


def check_results(
    bench: BenchContext, net: str, what: str, ours: np.ndarray, theirs: np.ndarray
) -> str:
    """Describes the differences between two sides. Raises RuntimeError if one exceeds its
    tolerance."""
    most = IN_32_BITS if bench.rehearsed else IN_16_BITS
    if what == "infer":
        off = {"scores": (_relative_error(ours, theirs), most.scores)}
    elif net in NETS_WITH_DROPOUT and not bench.rehearsed:
        off = {"first loss": (_relative_error(ours[:1], theirs[:1]), most.dropping)}
    else:
        changes = _relative_error(np.diff(ours), np.diff(theirs))
        off = {
            "losses": (_relative_error(ours, theirs), most.losses),
            "changes": (changes, most.changes),
        }
    told = ", ".join(f"{name} off {found:.2%}" for name, (found, _) in off.items())
    if not all(found < limit for found, limit in off.values()):
        raise RuntimeError(f"{net} is not the same on both sides: {ours} and {theirs}, {told}")
    return told


def _relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def make_inputs(
    graph: Graph, images: np.ndarray, labels: np.ndarray, lr: float
) -> dict[str, np.ndarray]:
    known = {"labels": labels, "lr": np.asarray(lr), "weights": np.ones(len(labels))}
    given: dict[str, np.ndarray] = {}
    for node in graph.inputs:
        kind = node.type
        value = known.get(node.name, images if kind.rank == 4 else np.zeros(kind.shape))
        given[node.name] = value.astype(kind.dtype)
    return given


def time_launch(launch: Callable[[], None], backend: Any, steps: int = 20) -> float:
    """Milliseconds per launch: the median of five means over `steps` launches; a single one without
    a GPU."""
    if backend.name != "cuda":
        return 1e3 * float(backend.measure_seconds([launch])[0])
    run = lambda: _launch_repeatedly(steps, launch)
    found = [backend.device.elapsed_milliseconds(run) / steps for _ in range(5)]
    return float(np.median(found))


def _launch_repeatedly(count: int, launch: Callable[[], None]) -> None:
    for _ in range(count):
        launch()


def format_memory(backend: Any) -> str:
    """The memory allocated on a GPU."""
    if backend.name != "cuda":
        return ""
    return f"{backend.xp.get_default_memory_pool().used_bytes() / 1e9:.1f} GB, "


def format_fallbacks(backend: Any) -> str:
    fallbacks = backend.fallbacks if backend.name == "cuda" else []
    return f", by reference: {fallbacks}" if fallbacks else ""


@contextmanager
def use_cache(folder: Path) -> Iterator[None]:
    """Puts the disk cache into `folder`, so that first steps start cold."""
    before = os.environ.get("NETDSL_CACHE")
    os.environ["NETDSL_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("NETDSL_CACHE")
        if before is not None:
            os.environ["NETDSL_CACHE"] = before


def mnist_line(precision: str, device: str = "cuda", epochs: int = 4) -> str:
    """Trains LeNet-5 on MNIST from the command line, in its own process."""
    folder = Path(os.environ.get("NETDSL_DATA", ROOT.parent / "shared" / "data")) / "mnist"
    if not folder.is_dir():
        return f"left out, no MNIST below NETDSL_DATA: lenet5, {precision}"
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
    """Runs the tests on the device. Raises RuntimeError if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_device.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:])
    return f"tests/test_device.py: {done.stdout.strip().splitlines()[-1]}"
