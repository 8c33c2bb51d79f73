"""The compiled loop over pixels: built with the machine's C compiler when it is first wanted, and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from calotype.caches import cache_root
from calotype.distributions import LEVELS, Bernoulli, Categorical, Distribution, Logistics, Taste
from calotype.nn.causal import PixelNetwork, Place, canvas_of
from calotype.nn.native.recorder import OPERAND, Recorder, Vector

SOURCE = Path(__file__).with_name("loop.c")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fPIC", "-c")  # not at linking, where it changes the whole process
BLOCK = 8  # images that are worked on together, as in loop.c
LONGEST_BUILD = 60  # seconds
KINDS: tuple[type[Distribution], ...] = (Categorical, Bernoulli, Logistics)  # as numbered in loop.c

SETUP = np.dtype(
    [(name, "i8") for name in ("width", "channels", "passes", "known", "arena")]
    + [(name, "i8") for name in ("canvas_image", "canvas_row", "features", "margin")]
    + [(name, "i8") for name in ("draws", "kind", "mixtures")]
    + [("canvas", "u8"), ("pixels", "u8"), ("pixels_image", "i8"), ("uniforms", "u8"), ("uniforms_image", "i8")]
    + [("table", "u8"), ("temperature", "f4"), ("unused", "f4"), ("result", OPERAND)]
)


@functools.cache
def built() -> ctypes.CDLL | None:
    """The compiled loop; None where it cannot be built, as without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, FLAGS, _processor())).encode()).hexdigest()[:16]
    path = cache_root(None) / "native" / f"loop-{key}.so"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                compiled, linked = Path(folder) / "loop.o", Path(folder) / "loop.so"
                for command in (
                    [*FLAGS, "-o", str(compiled), str(SOURCE)],
                    ["-shared", "-o", str(linked), str(compiled), "-lm"],
                ):
                    subprocess.run([compiler, *command], check=True, capture_output=True, timeout=LONGEST_BUILD)
                linked.replace(path)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None
    address, integer, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    loaded.draw_row.argtypes = [address, integer, address, number, number, integer, address]
    loaded.draw_row.restype = None
    return loaded


def _processor() -> str:
    """What kind of processor this is, since code for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.platform()}"


def usable(network: PixelNetwork, distribution: Distribution, uniforms: Tensor, taste: Taste) -> bool:
    """Whether the compiled loop can draw this."""
    plain = taste.top_k == 0 and taste.top_p == 1
    suits = uniforms.device.type == "cpu" and uniforms.dtype == torch.float32 and isinstance(distribution, KINDS)
    return network.recordable and plain and suits and distribution.channels <= 8 and built() is not None


class _Class(NamedTuple):
    """What is done for the rows of one parity, at all levels of resolution."""

    program: np.ndarray
    setup: np.ndarray
    recorder: Recorder
    above: Any


def draw(
    network: PixelNetwork,
    distribution: Distribution,
    pixels: Tensor,
    known: int,
    uniforms: Tensor,
    labels: Tensor | None,
    taste: Taste,
) -> None:
    """Fill in the pixels (B, H, W, C) from the `known`-th on. Arguments as in the family's `drawing.draw`."""
    loop = built()
    assert loop is not None
    images, high, wide, channels = pixels.shape
    canvas = canvas_of(network.encode(pixels), network.margin).contiguous()
    uniforms, table = uniforms.contiguous(), _table(network, channels)
    memory: dict[nn.Module, Any] = {}
    classes: dict[int, _Class] = {}
    threads = max(1, min(torch.get_num_threads(), -(-images // BLOCK)))
    bounds = [round(k * -(-images // BLOCK) / threads) * BLOCK for k in range(threads + 1)]
    parts = [(a, min(b, images)) for a, b in pairwise(bounds)]
    with ThreadPoolExecutor(threads) as pool:
        for row in range(high):
            above = network.above(canvas, labels, Place(memory, wide, row), None)
            kind = row % 2**network.halvings
            if kind not in classes:
                recorder = Recorder(images, high)
                kept = _map(above, lambda x: x.clone(memory_format=torch.contiguous_format))
                place = Place(memory, wide, row, 0, recorder=recorder)
                result = cast(Vector, network.beside(canvas, kept, labels, place, None))
                setup = np.zeros((), SETUP)
                for name, value in {
                    "width": wide,
                    "channels": channels,
                    "passes": channels if network.ordered else 1,
                    "known": known,
                    "arena": recorder.floats,
                    "canvas_image": canvas.stride(0),
                    "canvas_row": canvas.stride(1),
                    "features": canvas.shape[3],
                    "margin": network.margin,
                    "draws": uniforms.shape[3],
                    "kind": KINDS.index(type(distribution)),
                    "mixtures": getattr(distribution, "mixtures", 0),
                    "canvas": canvas.data_ptr(),
                    "pixels": pixels.data_ptr(),
                    "pixels_image": pixels.stride(0),
                    "uniforms": uniforms.data_ptr(),
                    "uniforms_image": uniforms.stride(0),
                    "table": table.data_ptr(),
                    "temperature": taste.temperature,
                    "result": result.operand,
                }.items():
                    setup[name] = value
                classes[kind] = _Class(recorder.program(), setup, recorder, kept)
            now = classes[kind]
            _copy(above, now.above)
            for prepare in now.recorder.before_rows:
                prepare(row)

            def run(part: tuple[int, int], now: _Class = now, row: int = row) -> None:
                arena = np.empty(BLOCK * now.recorder.floats, np.float32)
                loop.draw_row(
                    now.program.ctypes.data,
                    len(now.program),
                    now.setup.ctypes.data,
                    *part,
                    row,
                    arena.ctypes.data,
                )

            if threads == 1:
                run(parts[0])
            else:
                list(pool.map(run, parts))


def _table(network: PixelNetwork, channels: int) -> Tensor:
    """What each value of each channel adds to the features of a pixel: float (C, 256, features)."""
    zero = torch.zeros(LEVELS, channels, dtype=torch.uint8)
    base, parts = network.encode(zero), []
    for c in range(channels):
        pixels = zero.clone()
        pixels[:, c] = torch.arange(LEVELS)
        parts.append(network.encode(pixels) - (base if c else 0))
    return torch.stack(parts).contiguous()


def _map(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nest of tensors in tuples and lists, each changed."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_map(part, change) for part in x))
    return [_map(part, change) for part in x] if isinstance(x, (list, tuple)) else x


def _copy(source: Any, target: Any) -> None:
    """Copy the tensors of a nest into those of one like it."""
    if isinstance(source, Tensor):
        target.copy_(source)
    elif isinstance(source, (list, tuple)):
        for a, b in zip(source, target, strict=True):
            _copy(a, b)
