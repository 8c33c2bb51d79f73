"""A small model of the cost of training on other machines, and on many: time, memory and communication of a step.

A step is a sequence of operations. The time of an operation is the largest of its arithmetic at the speed that matrix
products reach on the device, the transfer of its tensors to and from memory, and its launch:

    t = sum over operations of max(flops / (reached * peak), bytes / bandwidth, launch)

for the images of a step per device. Then gradients are summed over devices, first within each node:

    2 (g - 1)/g S / link + 2 (m - 1)/m (S / g) / network        S bytes, g devices in each of m nodes

after the step, as training does it, and 2 log2(g m) stages with a latency each for any sum, of which batch
normalisation needs two in each pass. Where n devices shard the weights, the weights are gathered for the forward and
the backward pass and gradients are scattered, (n - 1)/n S / link each, and the sum is of S / n over the groups.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FLOAT = 4  # bytes of a weight, of its gradient, of each moment and of the average


class Device(NamedTuple):
    """The capabilities of a device. All rates are per second."""

    flops32: float  # operations of float32 products, as torch does them by default
    flops16: float  # of bfloat16 products
    bandwidth: float  # bytes of memory
    memory: float  # bytes
    launch: float  # seconds to start an operation
    link: float  # bytes to another device of the node, one way
    network: float  # bytes to another node, for each device
    latency: float = 5e-6  # seconds of each stage of a sum over devices
    reached: float = 0.4  # share of the peak that products of such networks come to


# Data sheets, without sparsity; convolutions in float32 are done in TF32, as torch has it. Launches of 6 microseconds
# are those of torch run operation by operation. Of none but the CPU has what comes out been compared with a run.
DEVICES: Mapping[str, Device] = {
    "a100": Device(156e12, 312e12, 2.04e12, 80e9, 6e-6, 300e9, 25e9),
    "h100": Device(494e12, 989e12, 3.35e12, 80e9, 6e-6, 450e9, 50e9),
    "h200": Device(494e12, 989e12, 4.8e12, 141e9, 6e-6, 450e9, 50e9),
    "l4": Device(60e12, 121e12, 0.3e12, 24e9, 6e-6, 16e9, 3e9),
    "rtx4090": Device(82e12, 165e12, 1.01e12, 24e9, 6e-6, 16e9, 1.2e9),
}


class Operation(NamedTuple):
    """An operation of a step."""

    flops: float
    bytes: float  # of what it reads and writes


class _Recorder(TorchDispatchMode):
    """Records operations, without views, which cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            flops = 0.0
            if func._overloadpacket in flop_registry:
                flops = float(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found))
            moved = sum(x.numel() * x.element_size() for x in _tensors([args, kwargs, found]))
            self.seen.append(Operation(flops, moved))
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors([*values.values()])
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


class Recorded(NamedTuple):
    """The recorded operations of a step, with its number of images."""

    operations: list[Operation]
    kept: int  # bytes of activations that wait for the gradients, at the most


class _Kept:
    """Bytes kept for the backward pass; tensors that share memory count once."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = {w.untyped_storage().data_ptr() for w in weights}
        self.holders: Counter[int] = Counter()  # by the place of the memory
        self.now = self.most = 0

    def change(self, x: Tensor, by: int) -> None:
        """Add or remove a reference to a tensor."""
        storage = x.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self.weights:
            return
        before = self.holders[place] > 0
        self.holders[place] += by
        self.now += size * ((self.holders[place] > 0) - before)
        self.most = max(self.most, self.now)


class _Holder:
    """A reference to a tensor for as long as the backward pass needs it."""

    def __init__(self, x: Tensor, kept: _Kept) -> None:
        self.x, self.kept = x, kept
        kept.change(x, 1)

    def __del__(self) -> None:
        self.kept.change(self.x, -1)


@contextmanager
def recording(weights: Sequence[Tensor]) -> Iterator[list[Recorded]]:
    """Record the operations of a block; `weights` do not count as kept for the backward pass."""
    kept, recorder, found = _Kept(weights), _Recorder(), list[Recorded]()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: _Holder(x, kept), lambda holder: holder.x), recorder:
        yield found
    found.append(Recorded(recorder.seen, kept.most))


class Turn(NamedTuple):
    """The cost of a turn of a player; a step has one or more turns."""

    weights: int  # numbers that it trains
    repeats: int


class Work(NamedTuple):
    """The work of a training step, as a function of the images per device."""

    few: Recorded  # of `batch` images
    more: Recorded  # of twice as many
    batch: int
    turns: tuple[Turn, ...]
    moments: int  # numbers that optimizers remember
    sums: int  # over devices within a step, of statistics
    half: bool  # whether products are in bfloat16

    @property
    def weights(self) -> int:
        """The number of trained parameters."""
        return sum(turn.weights for turn in self.turns)

    def seconds(self, device: Device, images: int) -> float:
        """Seconds of forward and backward passes, optimizers and weight averages."""
        rate = device.reached * (device.flops16 if self.half else device.flops32)
        steps = images / self.batch - 1
        total = 0.0
        for a, b in zip(self.few.operations, self.more.operations, strict=True):
            flops, moved = (x + steps * (y - x) for x, y in zip(a, b, strict=True))
            width = 0.5 if self.half and flops else 1.0
            total += max(flops / rate, width * moved / device.bandwidth, device.launch)
        return total

    def activations(self, images: int) -> float:
        """Bytes of activations."""
        each = (self.more.kept - self.few.kept) / self.batch
        return max(0.0, self.few.kept + each * (images - self.batch)) * (0.75 if self.half else 1.0)


class Cluster(NamedTuple):
    """Devices in nodes; groups of `shard` devices shard the weights."""

    nodes: int
    devices: int
    shard: int = 1

    @property
    def size(self) -> int:
        """The total number of devices."""
        return self.nodes * self.devices


def stages(device: Device, cluster: Cluster) -> float:
    """Seconds of latency of a sum over devices, independent of its size."""
    return 2 * math.ceil(math.log2(cluster.size)) * device.latency


def summing(device: Device, cluster: Cluster, numbers: int) -> float:
    """Seconds of one turn for summing gradients and, if sharded, gathering weights."""
    g, m, n = cluster.devices, cluster.nodes, cluster.shard
    size = FLOAT * numbers
    total = stages(device, cluster)
    if n > 1:
        rate = device.link if n <= g else device.network
        total += 3 * ((n - 1) / n * size / rate + stages(device, cluster))
        size, g, m = size // n, max(1, g // n), m if n <= g else max(1, m * g // n)
    return total + 2 * (g - 1) / g * size / device.link + 2 * (m - 1) / m * (size / g) / device.network


def volume(cluster: Cluster, numbers: int) -> float:
    """Bytes sent by a device in one turn."""
    size, n, groups = FLOAT * numbers, cluster.shard, cluster.size // cluster.shard
    return 3 * (n - 1) / n * size + 2 * (groups - 1) / groups * size / n


class Cost(NamedTuple):
    """The cost of a step on a cluster."""

    images: int  # of a step that a device gets, at most
    micro_batch: int  # images at a time, less where memory is short
    computing: float  # seconds
    summing: float  # seconds
    sent: float  # bytes of a device
    memory: Mapping[str, float]  # bytes of a device

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.computing + self.summing


def cost(work: Work, device: Device, cluster: Cluster, batch: int, seconds: float | None = None) -> Cost:
    """Estimate the cost of a step.

    Args:
        batch: images of a turn, of all devices together.
        seconds: compute time for the images of a device, if measured; by default estimated.
    """
    images = -(-batch // cluster.size)
    held = {
        "weights": FLOAT * work.weights / cluster.shard,
        "gradients": FLOAT * work.weights / cluster.shard,
        "moments": FLOAT * work.moments / cluster.shard,
        "averages": FLOAT * work.weights * (1 / cluster.shard if cluster.shard > 1 else 1.0),
    }
    if cluster.shard > 1:
        held["fetched and drawn with"] = 2.0 * FLOAT * work.weights  # at the most, in the first process
    micro_batch, room = images, device.memory - sum(held.values())
    while micro_batch > 1 and work.activations(micro_batch) > room:
        micro_batch = -(-micro_batch // 2)
    held["activations"] = work.activations(micro_batch)
    calls = -(-images // micro_batch)
    computing = seconds if seconds is not None else calls * work.seconds(device, micro_batch)
    total = sum(turn.repeats * summing(device, cluster, turn.weights) for turn in work.turns)
    total += work.sums * stages(device, cluster)
    sent = sum(turn.repeats * volume(cluster, turn.weights) for turn in work.turns)
    return Cost(images, micro_batch, computing, total, sent, held)
