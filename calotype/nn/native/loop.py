"""The compiled loop over pixels: built with the machine's C compiler at first use, and cached."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from calotype.core import environment
from calotype.core.caches import cache_folder, weakness
from calotype.core.files import write_atomic
from calotype.core.untrusted import NotPlain, open_regular
from calotype.nn.causal import PixelNetwork, Place, canvas_of, lag_of
from calotype.nn.distributions import LEVELS, Bernoulli, Categorical, Distribution, Logistics, Taste
from calotype.nn.native.recorder import FURTHEST, OPERAND, Recorder, Vector

SOURCE = Path(__file__).with_name("loop.c")
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fPIC", "-c")  # not at linking, where it changes the whole process
BLOCK = 8  # images that are worked on together, as in loop.c
LONGEST_BUILD = 60  # seconds
OWN = 0o700  # the rights to a library
KINDS: tuple[type[Distribution], ...] = (Categorical, Bernoulli, Logistics)  # as numbered in loop.c

SETUP = np.dtype(
    [(name, "i8") for name in ("width", "channels", "passes", "known", "arena")]
    + [(name, "i8") for name in ("canvas_image", "canvas_row", "features", "margin")]
    + [(name, "i8") for name in ("draws", "kind", "mixtures", "numbers")]
    + [("canvas", "u8"), ("pixels", "u8"), ("pixels_image", "i8"), ("uniforms", "u8"), ("uniforms_image", "i8")]
    + [("table", "u8"), ("temperature", "f4"), ("guidance", "f4"), ("result", OPERAND)]
)


@functools.cache
def built() -> ctypes.CDLL | None:
    """The compiled loop; None where it cannot be built, as without a C compiler, which is said once."""
    compiler = shutil.which(environment.text("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        if environment.text("RANK", "0") == "0":
            print(
                "calotype: there is no C compiler here (cc, gcc or clang): images are drawn without the compiled loop, "
                "many times more slowly. Install one, or name yours by the variable CC",
                file=sys.stderr,
            )
        return None
    key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, FLAGS, _processor())).encode()).hexdigest()[:16]
    path = cache_folder("native") / f"loop-{key}.so"
    loaded = _loaded(path)
    if loaded is None:
        with tempfile.TemporaryDirectory(prefix="calotype-") as folder:  # which this user alone can enter
            new = Path(folder) / "loop.so"
            if not _compiled(compiler, new):
                return None
            with suppress(OSError):  # a cache that is full, or cannot be written, costs time alone
                write_atomic(path, lambda file: _copy_program(new, file))
            loaded = _loaded(path) or _loaded(new)  # of which one may lie where no programs may be run
    if loaded is None:
        return None
    address, integer, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    loaded.draw_row.argtypes = [address, integer, address, number, number, integer, address]
    loaded.draw_row.restype = None
    loaded.draw_wave.argtypes = [
        address,
        integer,
        address,
        integer,
        address,
        number,
        number,
        integer,
        integer,
        integer,
        address,
    ]
    loaded.draw_wave.restype = None
    return loaded


def _compiled(compiler: str, target: Path) -> bool:
    """Whether the loop could be compiled."""
    half = target.with_suffix(".o")
    try:
        for command in ([*FLAGS, "-o", str(half), str(SOURCE)], ["-shared", "-o", str(target), str(half), "-lm"]):
            subprocess.run([compiler, *command], check=True, capture_output=True, timeout=LONGEST_BUILD)
    except (OSError, subprocess.SubprocessError):
        return False
    target.chmod(OWN)
    return True


def _copy_program(source: Path, file: BinaryIO) -> None:
    os.fchmod(file.fileno(), OWN)
    file.write(source.read_bytes())


def _loaded(path: Path) -> ctypes.CDLL | None:
    """A library, where this user alone could have put it there; it is the file that was looked at that is loaded."""
    try:
        if weakness(path.parent) or weakness(path):
            return None
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                return None
            # The descriptor stays open: another file of its number would have its name, which means this library.
            opened = Path(f"/proc/self/fd/{os.dup(file.fileno())}")
            return ctypes.CDLL(str(opened if opened.exists() else path))
    except (OSError, NotPlain):
        return None


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


class _Asked(NamedTuple):
    """What is to be drawn."""

    network: PixelNetwork
    distribution: Distribution
    pixels: Tensor  # (B, H, W, C), filled in
    known: int
    uniforms: Tensor
    labels: Tensor | None
    taste: Taste
    guidance: float | None  # of pairs of images, one after the other: of a class and of none


def draw(
    network: PixelNetwork,
    distribution: Distribution,
    pixels: Tensor,
    known: int,
    uniforms: Tensor,
    labels: Tensor | None,
    taste: Taste,
    wave: bool | None = None,
    guidance: float | None = None,
) -> None:
    """Fill in the pixels (B, H, W, C) from the `known`-th on. Arguments as in the family's `drawing.draw`.

    Args:
        wave: whether all rows are drawn together, each so far behind the one above it that what it sees is there; for
            networks that have a reach. None: where it is the faster. The images are the same to rounding.
        guidance: the weight, where images are pairs that are to come out the same, of a class and of none: drawn from
            logits_none + guidance (logits_class - logits_none), row by row.
    """
    lag = wave_lag(network) if guidance is None else None
    if wave is None:
        wave = lag is not None and gains_from_wave(len(pixels), pixels.shape[2], lag)
    asked = _Asked(network, distribution, pixels, known, uniforms.contiguous(), labels, taste, guidance)
    if wave and lag is not None:
        _draw_wave(asked, lag)
    else:
        _draw_rows(asked)


def wave_lag(network: PixelNetwork) -> int | None:
    """By how many columns a row has to be behind the one above it; None where it has to wait for all of it."""
    reach = network.reach()
    return None if reach is None else lag_of(reach)


def gains_from_wave(images: int, width: int, lag: int) -> bool:
    """Whether it is the faster to draw rows together: for so many images as do not keep convolutions of rows busy.

    Of networks with a lag of 4 to 12 columns, 16 images of 28x28 came 1.1 to 2.2 times as fast, and 64 0.7 to 1.3 times
    (benchmarks/drawing.py).
    """
    return images <= 2 * BLOCK and width >= 2 * lag


class _Class(NamedTuple):
    """What is done for the rows of one parity, at all levels of resolution."""

    program: np.ndarray
    setup: np.ndarray
    recorder: Recorder
    above: Any


def _draw_rows(asked: _Asked) -> None:
    """Row after row, what all pixels of a row need of those above computed at once."""
    loop = built()
    assert loop is not None
    network, pixels, labels = asked.network, asked.pixels, asked.labels
    images, high, wide, channels = pixels.shape
    canvas, table = _canvas(network, pixels), _table(network, channels)
    memory: dict[nn.Module, Any] = {}
    classes: dict[int, _Class] = {}
    parts = _parts(images, BLOCK)
    with ThreadPoolExecutor(len(parts)) as pool:
        for row in range(high):
            above = network.above(canvas, labels, Place(memory, wide, row), None)
            kind = row % 2**network.halvings
            if kind not in classes:
                recorder = Recorder(images, high)
                kept = _map(above, lambda x: x.clone(memory_format=torch.contiguous_format))
                place = Place(memory, wide, row, 0, recorder=recorder)
                result = cast(Vector, network.beside(canvas, kept, labels, place, None))
                setup = _setup(asked, canvas, table, recorder.floats, result)
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

            if len(parts) == 1:
                run(parts[0])
            else:
                list(pool.map(run, parts))


def _draw_wave(asked: _Asked, lag: int) -> None:
    """All rows together: two programs, for what is seen of the rows above, and for the pixels themselves."""
    loop = built()
    assert loop is not None
    network, pixels, labels = asked.network, asked.pixels, asked.labels
    images, high, wide, channels = pixels.shape
    first, second = Recorder(images, high, wave=True), Recorder(images, high, wave=True)
    seen, table = _canvas(network, pixels), _table(network, channels)
    canvas = first.room(*seen.shape).copy_(seen)
    place = Place({}, wide, 0, 0, recorder=first)
    behind = 0

    def kept(x: Any) -> Any:
        """What the second program reads of the first: for each vector the map that it is stored in."""
        nonlocal behind
        if not isinstance(x, Vector):
            return x
        assert x.behind is not None
        behind = max(behind, x.behind)
        whole = first.room(images, high, wide, x.size)
        first.store(x, first.map(whole, place, -x.behind), columns=wide)
        return second.map(whole, place)

    above = _map(network.above(canvas, labels, place, None), kept)
    if behind > FURTHEST:
        raise ValueError(f"what is seen of the rows above is known {behind} columns later, and {FURTHEST} are allowed")
    result = cast(Vector, network.beside(canvas, above, labels, replace(place, recorder=second), None))
    floats = max(first.floats, second.floats)
    setup = _setup(asked, canvas, table, floats, result)
    programs = first.program(), second.program()

    def run(part: tuple[int, int]) -> None:
        arena = np.empty(BLOCK * floats, np.float32)
        loop.draw_wave(
            programs[0].ctypes.data,
            len(programs[0]),
            programs[1].ctypes.data,
            len(programs[1]),
            setup.ctypes.data,
            *part,
            high,
            lag,
            behind,
            arena.ctypes.data,
        )

    parts = _parts(images, 1)
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(run, parts))


def _canvas(network: PixelNetwork, pixels: Tensor) -> Tensor:
    return canvas_of(network.encode(pixels), network.margin).contiguous()


def _parts(images: int, block: int) -> list[tuple[int, int]]:
    """The images of each thread, in whole blocks: first and one behind the last."""
    blocks = -(-images // block)
    threads = max(1, min(torch.get_num_threads(), blocks))
    bounds = [round(k * blocks / threads) * block for k in range(threads + 1)]
    return [(a, min(b, images)) for a, b in pairwise(bounds)]


def _setup(asked: _Asked, canvas: Tensor, table: Tensor, floats: int, result: Vector) -> np.ndarray:
    """What loop.c needs to know of images, canvas and distribution."""
    network, distribution, pixels, uniforms = asked.network, asked.distribution, asked.pixels, asked.uniforms
    setup = np.zeros((), SETUP)
    for name, value in {
        "width": pixels.shape[2],
        "channels": pixels.shape[3],
        "passes": pixels.shape[3] if network.ordered else 1,
        "known": asked.known,
        "arena": floats,
        "canvas_image": canvas.stride(0),
        "canvas_row": canvas.stride(1),
        "features": canvas.shape[3],
        "margin": network.margin,
        "draws": uniforms.shape[3],
        "kind": KINDS.index(type(distribution)),
        "mixtures": getattr(distribution, "mixtures", 0),
        "numbers": distribution.parameters,
        "canvas": canvas.data_ptr(),
        "pixels": pixels.data_ptr(),
        "pixels_image": pixels.stride(0),
        "uniforms": uniforms.data_ptr(),
        "uniforms_image": uniforms.stride(0),
        "table": table.data_ptr(),
        "temperature": asked.taste.temperature,
        "guidance": 1.0 if asked.guidance is None else asked.guidance,
        "result": result.operand,
    }.items():
        setup[name] = value
    return setup


def _table(network: PixelNetwork, channels: int) -> Tensor:
    """What each value of each channel adds to the features of a pixel: float (C, 256, features)."""
    zero = torch.zeros(LEVELS, channels, dtype=torch.uint8)
    base, parts = network.encode(zero), []
    for c in range(channels):
        pixels = zero.clone()
        pixels[:, c] = torch.arange(LEVELS)
        parts.append(network.encode(pixels) - (base if c else 0))
    return torch.stack(parts).contiguous()


def _map(x: Any, change: Callable[[Any], Any]) -> Any:
    """A nest of tensors, or vectors, in tuples and lists, each changed."""
    if isinstance(x, (Tensor, Vector)):
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
