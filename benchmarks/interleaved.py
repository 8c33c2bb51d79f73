"""What the benchmarks beside peers share: steps of several sides timed in turn, and what the processor can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

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


def operations(step: Step) -> int:
    """Floating-point operations of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


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
