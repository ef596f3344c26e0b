"""Uploads ahead of the step, on streams that run whenever they like: every step reads its batch."""

from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from netdsl.backends.array_backend import ArrayBackend, reference_backend
from netdsl.backends.cuda.async_upload import PendingUpload, Uploader
from netdsl.backends.cuda.readback import ReadbackPool
from netdsl.language.parse import parse
from netdsl.language.program import build_program
from netdsl.training.run.trainer import Trainer


class Machine:
    """CUDA's order of things: each stream is a queue, and what it does may happen at any time that
    its events allow."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.queues: list[deque[tuple[Callable[[], bool], Callable[[], None]]]] = []
        self.current: _Stream | None = None
        """The stream of whoever allocates; none where that has done all it had to."""

    def Stream(self, non_blocking: bool) -> Any:
        return _Stream(self)

    def Event(self, disable_timing: bool) -> Any:
        return _Event(self)

    def alloc_pinned_memory(self, nbytes: int) -> Any:
        return bytearray(nbytes + 16)

    def step(self) -> bool:
        """Does one thing that may be done now, if there is one."""
        able = [q for q in self.queues if q and q[0][0]()]
        if able:
            self.rng.choice(able).popleft()[1]()
        return bool(able)

    def some(self) -> None:
        for _ in range(self.rng.randrange(4)):
            self.step()

    def all(self) -> None:
        while self.step():
            pass
        assert not any(self.queues)


class _Stream:
    def __init__(self, machine: Machine) -> None:
        self.queue: deque[Any] = deque()
        machine.queues.append(self.queue)

    def put(self, does: Callable[[], None], may: Callable[[], bool] = lambda: True) -> None:
        self.queue.append((may, does))

    def wait_event(self, event: _Event) -> None:
        wanted = event.recorded
        self.put(lambda: None, lambda: event.reached >= wanted)


class _Event:
    def __init__(self, machine: Machine) -> None:
        self.machine, self.recorded, self.reached = machine, 0, 0

    def record(self, stream: _Stream | None = None) -> None:
        self.recorded += 1
        number = self.recorded
        stream = stream or self.machine.current
        if stream is None:
            self.reached = number
            return
        stream.put(lambda: setattr(self, "reached", number))

    def synchronize(self) -> None:
        while not self.done:
            assert self.machine.step()

    @property
    def done(self) -> bool:
        return self.reached >= self.recorded


@dataclass
class There:
    """An array on the device: copies happen when their stream comes to them."""

    array: Any

    @property
    def data(self) -> There:
        return self

    def set(self, host: Any, stream: _Stream) -> None:
        stream.put(lambda: np.copyto(self.array, host))

    def copy_from_host_async(self, pointer: int, nbytes: int, stream: _Stream) -> None:
        assert nbytes == self.array.nbytes
        stream.put(lambda: ctypes.memmove(self.array.ctypes.data, pointer, nbytes))

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def copy_to_host_async(self, pointer: int, nbytes: int, stream: _Stream) -> None:
        assert nbytes == self.array.nbytes
        stream.put(lambda: ctypes.memmove(pointer, self.array.ctypes.data, nbytes))


def copied(source: There, target: There, stream: _Stream) -> None:
    stream.put(lambda: np.copyto(target.array, source.array))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("group", [1, 3])
def test_every_step_reads_its_own_batch(seed: int, group: int) -> None:
    machine = Machine(seed)
    uploads = Uploader(machine, lambda shape, dtype: There(np.zeros(shape, dtype)))
    stream, target = machine.Stream(True), There(np.zeros((2, 3), np.uint8))
    seen: list[int] = []
    batches = [np.full((2, 3), i % 251, np.uint8) for i in range(30)]
    groups = [batches[i : i + group] for i in range(0, len(batches), group)]
    coming = [uploads.send(b) for b in groups[0]]
    for after in [*groups[1:], []]:
        now, coming = coming, [uploads.send(b) for b in after]
        for one in now:
            for _ in range(machine.rng.choice((1, 2))):  # a look at it, and the step
                uploads.consume(one, lambda there: copied(there, target, stream), stream)
                stream.put(lambda: seen.append(int(target.array[0, 0])))
                machine.some()
    machine.all()
    assert list(dict.fromkeys(seen)) == [i % 251 for i in range(30)]
    slots = uploads._free[2, 3, "|u1"]
    assert len(slots) <= 2 * group + 1


@pytest.mark.parametrize("seed", range(20))
def test_memory_that_is_still_read_is_not_written(seed: int) -> None:
    """An allocator gives memory again as soon as nothing in Python holds it: what the stream of
    whoever allocates has still to do with it comes first."""
    machine = Machine(seed)
    machine.current = machine.Stream(True)
    used = [np.full((2, 3), i, np.uint8) for i in range(4)]
    seen: list[int] = []
    for block in used:
        machine.current.put(lambda block=block: seen.append(int(block[0, 0])))
    uploads = Uploader(machine, lambda shape, dtype: There(used.pop(0)))
    for _ in range(4):
        uploads.send(np.full((2, 3), 99, np.uint8))
        machine.some()
    machine.all()
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_copied_may_change_at_once(seed: int) -> None:
    machine = Machine(seed)
    uploads = Uploader(machine, lambda shape, dtype: There(np.zeros(shape, dtype)))
    stream, target = machine.Stream(True), There(np.zeros(5, np.int32))
    seen: list[int] = []
    values = np.zeros(5, np.int32)
    for i in range(30):
        values[...] = i
        uploads.copy(values, target, stream)
        stream.put(lambda: seen.append(int(target.array.sum())))
        machine.some()
    machine.all()
    assert seen == [5 * i for i in range(30)]


@pytest.mark.parametrize("seed", range(20))
def test_outputs_come_back_as_they_were_when_they_were_asked_for(seed: int) -> None:
    machine = Machine(seed)
    readings, stream = ReadbackPool(machine), machine.Stream(True)
    step, loss = There(np.zeros((), np.int32)), There(np.zeros((), np.float32))
    scores = There(np.zeros((3, 5), np.float32))
    outputs = {"step": step, "scores": scores, "loss": loss}
    waiting: deque[Any] = deque()
    for i in range(40):
        stream.put(lambda i=i: (step.array.fill(i), scores.array.fill(-i), loss.array.fill(i / 4)))
        waiting.append(readings.start(outputs, stream))
        machine.some()
        while waiting and (len(waiting) > 3 or waiting[0].is_ready()):
            number = i + 1 - len(waiting)
            found = waiting.popleft().result()
            assert found["scores"].shape == (3, 5)
            assert (found["scores"] == -number).all()
            assert (int(found["step"]), float(found["loss"])) == (number, number / 4)
    ((size, free),) = readings._free.items()
    assert (size, len(free) <= 4) == (8 + 64 + 8, True)


@dataclass(frozen=True)
class Sending(ArrayBackend):
    """The reference, which is sent every batch ahead as a GPU is."""

    log: list[str] = field(default_factory=list)

    def start_upload(self, values: Any) -> PendingUpload:
        self.log.append("sent")
        return PendingUpload(values, None)  # type: ignore[arg-type]

    def write(self, target: Any, values: Any) -> None:
        if isinstance(values, PendingUpload):
            self.log.append("taken")
            values = values.values
        super().write(target, values)


def test_training_sends_the_next_batch_before_it_runs_the_step() -> None:
    text = "net n { input(8x8x1); fc(10) }\ndata { source = digits, batch = 128 }\ntrain { }"
    backend = Sending("sending", np)
    sending = Trainer(build_program(parse(text)), None, backend)
    plain = Trainer(build_program(parse(text)), None, reference_backend())
    for groups, trainer in (
        (sending.stepper.prefetch_groups(), sending),
        (plain.stepper.batch_groups(), plain),
    ):
        for group in groups:
            trainer.stepper.update(group)
    steps = plain.job.steps_per_epoch
    assert backend.log == ["sent", *["sent", "taken"] * (steps - 1), "taken"]
    a, b = sending.state.snapshot(), plain.state.snapshot()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert sending.progress == plain.progress
