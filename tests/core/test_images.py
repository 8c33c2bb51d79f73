from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from calotype.core.files import write_atomic
from calotype.core.images import cells, grid, to_bytes, to_unit, write_png
from calotype.errors import DataError
from tests.conftest import environment


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_byte_comes_back(dtype: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8)
    x = to_unit(values, dtype)
    assert x.dtype == dtype
    assert x[0] == -1
    assert x[255] == 1
    assert bool((x[1:] > x[:-1]).all())
    assert torch.equal(to_bytes(x), values)


def test_bytes_are_the_nearest_and_clipped() -> None:
    level = 1 / 127.5
    x = torch.tensor([-1 + 0.49 * level, -1 + 0.51 * level, 1 - 0.49 * level, -1.001, -50, 1.001, 1e30])
    assert to_bytes(x).tolist() == [0, 1, 255, 0, 0, 255, 255]
    assert to_bytes(torch.tensor([-torch.inf, torch.inf])).tolist() == [0, 255]


def test_grid_layout() -> None:
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 3)
    w = 255
    expected = [
        [w, w, w, w, w, w, w, w, w],
        [w, 0, 0, 0, w, 1, 1, 1, w],
        [w, 0, 0, 0, w, 1, 1, 1, w],
        [w, w, w, w, w, w, w, w, w],
        [w, 2, 2, 2, w, 3, 3, 3, w],
        [w, 2, 2, 2, w, 3, 3, 3, w],
        [w, w, w, w, w, w, w, w, w],
        [w, 4, 4, 4, w, w, w, w, w],
        [w, 4, 4, 4, w, w, w, w, w],
        [w, w, w, w, w, w, w, w, w],
    ]
    assert grid(images, columns=2, gap=1)[0].tolist() == expected


@given(
    n=st.integers(1, 30),
    c=st.sampled_from([1, 3, 4]),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    columns=st.none() | st.integers(1, 40),
    gap=st.integers(0, 3),
)
def test_a_grid_holds_every_image_once(n: int, c: int, h: int, w: int, columns: int | None, gap: int) -> None:
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, c, h, w)
    sheet = grid(images, columns, gap)
    for k in range(n):
        assert int((sheet == k).sum()) == c * h * w
    assert int((sheet == 255).sum()) == sheet.numel() - n * c * h * w


@pytest.mark.parametrize(("h", "w"), [(8, 8), (4, 16), (16, 4)])
def test_a_grid_is_about_square(h: int, w: int) -> None:
    _, height, width = grid(torch.zeros(64, 1, h, w, dtype=torch.uint8), gap=0).shape
    assert 0.5 <= height / width <= 2


def picture(channels: int) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=channels))
    return torch.from_numpy(rng.integers(0, 256, (channels, 5, 7), dtype=np.uint8))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize(
    "layout", [torch.Tensor.contiguous, lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1)]
)
def test_png_round_trip(tmp_path: Path, channels: int, mode: str, layout: Callable[[Tensor], Tensor]) -> None:
    image = picture(channels)
    write_png(tmp_path / "a.png", layout(image))
    with Image.open(tmp_path / "a.png") as read:
        assert (read.format, read.mode) == ("PNG", mode)
        pixels = np.array(read).reshape(5, 7, channels)
    assert torch.equal(torch.from_numpy(pixels).permute(2, 0, 1), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_other_channels_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 channels"):
        write_png(tmp_path / "a.png", picture(2))
    assert list(tmp_path.iterdir()) == []


def test_write_atomic_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        write_atomic(path, lambda file, content=content: file.write(content))
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fails(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise error

    with pytest.raises(error):
        write_atomic(path, fails)
    assert path.read_bytes() == b"old"
    with pytest.raises(error):
        write_atomic(tmp_path / "other", fails)
    assert list(tmp_path.iterdir()) == [path]


def test_the_target_is_whole_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomic(path, write)
    assert path.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    program = "import os, pathlib; from calotype.core.files import write_atomic as write\n"
    program += (
        f"write(pathlib.Path({str(path)!r}), lambda f: (f.write(b'a long half'), f.flush(), os.kill(os.getpid(), 9)))"
    )
    assert subprocess.run([sys.executable, "-c", program], env=environment()).returncode == -signal.SIGKILL
    assert [entry.name for entry in tmp_path.iterdir()] != []
    write_atomic(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([65 + k]) * (1000 + 100_000 * k) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomic(path, lambda file: file.write(content)), contents * 20))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_the_images_of_a_grid_come_back() -> None:
    images = torch.arange(5 * 3 * 4 * 6, dtype=torch.int64).remainder(200).to(torch.uint8).reshape(5, 3, 4, 6)
    assert torch.equal(cells(grid(images, 3), 4, 6), images)
    assert len(cells(grid(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)), 4, 4)) == 0
