"""A model of data-parallel training: what an update takes on many GPUs, with its all-reduce.

All times are in seconds, all bandwidths in bytes per second each way. Sources: Thakur, Rabenseifner
and Gropp 2005, "Optimization of collective communication operations in MPICH", for the cost of an
all-reduce by latency and bandwidth; NCCL's doc/PERFORMANCE.md (in nccl-tests) for the factor
2 (n - 1) / n; NCCL's src/graph/tuning.cc for its latency: a chain in each node and a tree across
nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Any

from netdsl.training.step.buckets import partition_buckets

NODE_LATENCY = 4e-6
"""Seconds of one message over NVLink, in NCCL's src/graph/tuning.cc (tree, protocol Simple)."""
NETWORK_LATENCY = 14e-6
"""Seconds of one message over a network, in the same table."""


@dataclass(frozen=True)
class AllReduceSeconds:
    """The parts of an all-reduce: in each node, and across nodes."""

    in_node: float
    across_nodes: float

    @property
    def total(self) -> float:
        return self.in_node + self.across_nodes

    def __add__(self, other: AllReduceSeconds) -> AllReduceSeconds:
        return AllReduceSeconds(
            self.in_node + other.in_node, self.across_nodes + other.across_nodes
        )


@dataclass(frozen=True)
class Interconnect:
    """Nodes of `per_node` GPUs. A GPU sends and receives `node_bandwidth` within its node, and
    `network_bandwidth`, its share of the node's ports, to others; the latencies are seconds of one
    message."""

    per_node: int
    node_bandwidth: float
    network_bandwidth: float
    node_latency: float = NODE_LATENCY
    network_latency: float = NETWORK_LATENCY

    def as_json(self) -> dict[str, float]:
        return {
            "gpus_per_node": self.per_node,
            "gbytes_in_node": self.node_bandwidth / 1e9,
            "gbytes_between_nodes": self.network_bandwidth / 1e9,
            "us_in_node": 1e6 * self.node_latency,
            "us_between_nodes": 1e6 * self.network_latency,
        }

    def gpus_in_node(self, gpus: int) -> int:
        return min(gpus, self.per_node)

    def nodes(self, gpus: int) -> int:
        return gpus // self.gpus_in_node(gpus)

    def all_reduce(self, size: int, gpus: int) -> AllReduceSeconds:
        """An all-reduce of `size` bytes. In a node of g GPUs, each sends and receives
        2 (g - 1) / g of the bytes; then the m GPUs with the same part, one in each node, reduce a
        g-th of them: 2 (m - 1) / m of that."""
        g, m = self.gpus_in_node(gpus), self.nodes(gpus)
        chain, tree = 2 * (g - 1), 2 * math.ceil(math.log2(m))
        return AllReduceSeconds(
            chain / g * size / self.node_bandwidth + chain * self.node_latency,
            2 * (m - 1) / m * (size / g) / self.network_bandwidth + tree * self.network_latency,
        )


@dataclass(frozen=True)
class ReadyGradient:
    """A weight's gradient: its bytes, and the seconds after which the last kernel that it needs
    has finished, from the start of the batch."""

    weight: str
    size: int
    ready: float


@dataclass(frozen=True)
class GradientBucket:
    """Gradients that are reduced together: how many, the weight of the one that is ready last,
    their bytes, and when all of them are ready, in seconds from the start of the update."""

    count: int
    last_weight: str
    size: int
    ready: float


@dataclass(frozen=True)
class StepTimeline:
    """An update on one GPU: `batches` times forward and backward of `images`, which take
    `batch_seconds` each, then the update of the weights. `gradients` are in the order in which they
    fill buckets."""

    images: int
    batch_seconds: float
    update_seconds: float
    gradients: tuple[ReadyGradient, ...]
    batches: int = 1

    @property
    def images_per_update(self) -> int:
        return self.images * self.batches

    @property
    def step_seconds(self) -> float:
        """What a step is measured to take: one batch and the update."""
        return self.batch_seconds + self.update_seconds

    @property
    def seconds(self) -> float:
        """What an update takes on one GPU, which has nothing to reduce."""
        return self.backward_end + self.update_seconds

    @property
    def backward_end(self) -> float:
        return self.batches * self.batch_seconds

    @cached_property
    def size(self) -> int:
        """The bytes of all gradients."""
        return sum(g.size for g in self.gradients)

    @cached_property
    def buckets(self) -> tuple[GradientBucket, ...]:
        """The buckets, in the order in which they are reduced; only the gradients of the last batch
        are."""
        start = self.backward_end - self.batch_seconds
        parts = partition_buckets([g.size for g in self.gradients])
        return tuple(_join_gradients([self.gradients[i] for i in p], start) for p in parts)

    def scaled(self, factor: float) -> StepTimeline:
        """The same update with all kernels slower by this factor."""
        slower = (replace(g, ready=g.ready * factor) for g in self.gradients)
        return replace(
            self,
            batch_seconds=self.batch_seconds * factor,
            update_seconds=self.update_seconds * factor,
            gradients=tuple(slower),
        )

    def scaled_to(self, step_seconds: float) -> StepTimeline:
        """The same update with kernels such that one batch and the update take these seconds."""
        return self.scaled(step_seconds / self.step_seconds)


def _join_gradients(gradients: Sequence[ReadyGradient], start: float) -> GradientBucket:
    last = max(gradients, key=lambda g: g.ready)
    size = sum(g.size for g in gradients)
    return GradientBucket(len(gradients), last.weight, size, start + last.ready)


@dataclass(frozen=True)
class ReducedBucket:
    """A bucket with the seconds, from the start of the update, at which its all-reduce starts and
    ends."""

    bucket: GradientBucket
    start: float
    end: float

    def as_json(self) -> dict[str, Any]:
        return {
            "gradients": self.bucket.count,
            "last_weight": self.bucket.last_weight,
            "bytes": self.bucket.size,
            "ready_ms": 1e3 * self.bucket.ready,
            "start_ms": 1e3 * self.start,
            "end_ms": 1e3 * self.end,
        }


def reduce_buckets(
    buckets: Iterable[GradientBucket], interconnect: Interconnect, gpus: int
) -> Iterator[ReducedBucket]:
    """Simulates a stream beside that of the kernels: a bucket starts when its gradients are ready
    and the bucket before it is reduced."""
    free = 0.0
    for bucket in buckets:
        start = max(free, bucket.ready)
        free = start + interconnect.all_reduce(bucket.size, gpus).total
        yield ReducedBucket(bucket, start, free)


@lru_cache(maxsize=256)
def expected_maximum(count: int) -> float:
    """The expected largest of `count` independent draws from the standard normal distribution: the
    integral of [x > 0] - F(x)^count (David and Nagaraja 2003, "Order statistics", section 3.1)."""
    width, cdf = 1 / 256, NormalDist().cdf
    centres = ((i + 0.5) * width for i in range(-9 * 256, 9 * 256))
    return max(0.0, width * math.fsum((x > 0) - cdf(x) ** count for x in centres))


@dataclass(frozen=True)
class ScalingEstimate:
    """An update on `gpus` GPUs. Efficiencies compare with one GPU that computes as many images and
    reduces nothing: they are what is left after communication and waiting.

    `timeline` is that of one GPU; `variation` the standard deviation of its time as a share of the
    mean."""

    timeline: StepTimeline
    interconnect: Interconnect
    gpus: int
    variation: float

    @property
    def nodes(self) -> int:
        return self.interconnect.nodes(self.gpus)

    @property
    def whole(self) -> AllReduceSeconds:
        """An all-reduce of all gradients at once."""
        return self.interconnect.all_reduce(self.timeline.size, self.gpus)

    @property
    def bucketed(self) -> float:
        """The sum of the all-reduces of the buckets: each has the latency of one."""
        sizes = (b.size for b in self.timeline.buckets)
        return math.fsum(self.interconnect.all_reduce(size, self.gpus).total for size in sizes)

    @cached_property
    def reduced(self) -> tuple[ReducedBucket, ...]:
        return tuple(reduce_buckets(self.timeline.buckets, self.interconnect, self.gpus))

    @property
    def serial_seconds(self) -> float:
        """An update without overlap: all gradients are reduced at once after the backward pass."""
        return self.timeline.seconds + self.whole.total

    @property
    def overlapped_seconds(self) -> float:
        """An update whose buckets are reduced beside the backward pass; weights are updated after
        the last one."""
        return self._overlap(self.timeline)

    @property
    def straggling_seconds(self) -> float:
        """An update with overlap that waits for the slowest of all GPUs."""
        slowest = 1 + self.variation * expected_maximum(self.gpus)
        return self._overlap(self.timeline.scaled(slowest))

    def _overlap(self, timeline: StepTimeline) -> float:
        reduced = reduce_buckets(timeline.buckets, self.interconnect, self.gpus)
        end = max((x.end for x in reduced), default=0.0)
        return max(end, timeline.backward_end) + timeline.update_seconds

    @property
    def hidden_share(self) -> float:
        """The share of the buckets' all-reduces for which the update does not wait; 1 if there are
        none."""
        waited = self.overlapped_seconds - self.timeline.seconds
        return min(1.0, max(0.0, 1 - waited / self.bucketed)) if self.bucketed else 1.0

    @property
    def serial_efficiency(self) -> float:
        return self.timeline.seconds / self.serial_seconds

    @property
    def overlapped_efficiency(self) -> float:
        return self.timeline.seconds / self.overlapped_seconds

    @property
    def straggling_efficiency(self) -> float:
        return self.timeline.seconds / self.straggling_seconds

    @property
    def global_batch(self) -> int:
        return self.gpus * self.timeline.images_per_update

    @property
    def images_per_second(self) -> float:
        """The throughput of all GPUs, with overlap and stragglers."""
        return self.global_batch / self.straggling_seconds

    @property
    def images_per_second_per_node(self) -> float:
        """What the data must deliver to a node so that no GPU waits: without stragglers."""
        return self.global_batch / self.nodes / self.overlapped_seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "gpus": self.gpus,
            "nodes": self.nodes,
            "images_per_gpu": self.timeline.images_per_update,
            "batch": self.global_batch,
            "ms_alone": 1e3 * self.timeline.seconds,
            "all_reduce_in_node_ms": 1e3 * self.whole.in_node,
            "all_reduce_across_nodes_ms": 1e3 * self.whole.across_nodes,
            "all_reduce_ms": 1e3 * self.whole.total,
            "all_reduce_in_buckets_ms": 1e3 * self.bucketed,
            "hidden_share": self.hidden_share,
            "ms_without_overlap": 1e3 * self.serial_seconds,
            "ms_with_overlap": 1e3 * self.overlapped_seconds,
            "ms_with_stragglers": 1e3 * self.straggling_seconds,
            "efficiency_without_overlap": self.serial_efficiency,
            "efficiency_with_overlap": self.overlapped_efficiency,
            "efficiency_with_stragglers": self.straggling_efficiency,
            "images_per_second": self.images_per_second,
            "images_per_second_per_node": self.images_per_second_per_node,
            "buckets": [x.as_json() for x in self.reduced],
        }
