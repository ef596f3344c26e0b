"""Training of two nets by netdsl and by Keras, in turns: seconds of an epoch as a user sees them.

    python benchmarks/keras_speed.py --keras-python /path/to/a/venv/bin/python [--rounds 5]

Each round starts one process for each side: `netdsl.train` and, with the Python of an environment
that has Keras, torch and jax, `Model.fit` on either backend. All train the same net on the same
random images, in float32 with SGD, and print the epochs after the first. The numbers of parameters
must agree. The ratio is that of the medians over all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NETS = {
    "lenet": ("benchmarks/lenet.net", (28, 28, 1), 64, 3200),
    "resnet20": ("models/resnet.net", (32, 32, 3), 128, 512),
}
"""Name of the net: its file, input, batch, images."""
EPOCHS = 3
SIDES = ("netdsl", "torch", "jax")


def images(net: str) -> tuple[Any, Any]:
    _, shape, _, number = NETS[net]
    random = np.random.default_rng(0)
    x = random.standard_normal((number, *shape)).astype(np.float32)
    return x, random.integers(0, 10, number)


def epochs_of_netdsl(net: str) -> tuple[int, list[float]]:
    sys.path.insert(0, str(ROOT))
    import netdsl

    file, _, batch, _ = NETS[net]
    text = f"""use "{ROOT / file}"
data {{ source = arrays("none.npz"), batch = {batch} }}
train {{ net = {net}, optimizer = sgd(lr=0.001, momentum=0.9), epochs = {EPOCHS} }}
"""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.net"
        path.write_text(text)
        result = netdsl.train(
            str(path),
            data=images(net),
            out=str(Path(folder) / "run"),
            on_epoch=lambda _: ends.append(time.perf_counter()),
            device="cpu",
        )
        return result.net.params, [b - a for a, b in pairwise(ends)]


def keras_lenet(keras: Any) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(10),
        ]
    )


def keras_resnet20(keras: Any) -> Any:
    layers, ops = keras.layers, keras.ops

    def cb(x: Any, c: int, stride: int) -> Any:
        x = layers.Conv2D(c, 3, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    x = inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(cb(x, 16, 1))
    for c in (16, 32, 64):
        for i in range(3):
            stride = 2 if c > 16 and i == 0 else 1
            short = x
            if stride == 2:
                short = ops.pad(x[:, ::2, ::2, :], [[0, 0], [0, 0], [0, 0], [0, c // 2]])
            y = cb(layers.ReLU()(cb(x, c, stride)), c, 1)
            x = layers.ReLU()(layers.Add()([y, short]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def epochs_of_keras(net: str) -> tuple[int, list[float]]:
    import keras

    model = {"lenet": keras_lenet, "resnet20": keras_resnet20}[net](keras)
    model.compile(
        optimizer=keras.optimizers.SGD(0.001, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ends: list[float] = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    )
    x, y = images(net)
    model.fit(x, y, batch_size=NETS[net][2], epochs=EPOCHS, verbose=0, callbacks=[watch])
    parameters = sum(int(np.prod(w.shape)) for w in model.trainable_variables)
    return parameters, [b - a for a, b in pairwise(ends)]


def run_side(side: str, net: str, python: str) -> tuple[int, list[float]]:
    command = [sys.executable if side == "netdsl" else python, __file__, "--side", side, net]
    environment = {**os.environ, "KERAS_BACKEND": side, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} of {net} failed:\n{done.stderr[-2000:]}")
    parameters, seconds = json.loads(done.stdout.splitlines()[-1])
    return parameters, seconds


def compare(net: str, rounds: int, python: str) -> None:
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        found = {side: run_side(side, net, python) for side in SIDES}
        if len({parameters for parameters, _ in found.values()}) > 1:
            raise SystemExit(f"{net}: parameters differ: {found}")
        for side, (_, new) in found.items():
            seconds[side] += new
    medians = {side: statistics.median(x) for side, x in seconds.items()}
    steps = NETS[net][3] // NETS[net][2]
    for side, median in medians.items():
        spread = f"{min(seconds[side]) / steps * 1e3:.2f} to {max(seconds[side]) / steps * 1e3:.2f}"
        ratio = median / medians["netdsl"]
        print(f"{net:10} {side:8} {median / steps * 1e3:8.2f} ms/step ({spread})  {ratio:5.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keras-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "NET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, net = arguments.side
        print(json.dumps((epochs_of_netdsl if side == "netdsl" else epochs_of_keras)(net)))
        return
    for net in NETS:
        compare(net, arguments.rounds, arguments.keras_python)


if __name__ == "__main__":
    main()
