"""What the benchmarks beside peers share: steps of several sides timed in turn, and what the processor can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

GEMM = 1024

Step = Callable[[], object]


def yardsticks() -> tuple[dict[str, Step], dict[str, int]]:
    """A matrix product and a 3 x 3 convolution, by name, and their floating-point operations.

    On some processors the convolution is the faster.
    """
    matrix = torch.randn(GEMM, GEMM)
    maps = torch.randn(64, 64, 16, 16).to(memory_format=torch.channels_last)
    kernel = torch.randn(64, 64, 3, 3).to(memory_format=torch.channels_last)
    steps: dict[str, Step] = {
        "gemm": lambda: [matrix @ matrix for _ in range(10)],
        "convolution": lambda: [torch.conv2d(maps, kernel, padding=1) for _ in range(10)],
    }
    return steps, {"gemm": 10 * 2 * GEMM**3, "convolution": 10 * 2 * maps.numel() * 64 * 9}


class _Counter(TorchDispatchMode):
    """Adds up floating-point operations; torch's own counter follows modules too, which fails in double backward."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found)
        return found


def operations(step: Step) -> int:
    """Floating-point operations of a step."""
    with _Counter() as counter:
        step()
    return counter.total


def timed(
    sides: Mapping[str, Step], rounds: int, warm_up: int = 1, before: Callable[[str], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each side's step in each round, sides taking turns.

    Args:
        warm_up: rounds that do not count.
        before: told whose step comes next, which is then done once more than is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds + warm_up):
        for name, step in sides.items():
            if before is not None:
                before(name)
                step()
            started = time.perf_counter()
            step()
            if k >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds
