"""What several tests share: tiny data sets, tiny models, and a fixed number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from calotype.data.batches import Batches
from calotype.model import Batch

collect_ignore = [] if torch.cuda.is_available() else ["test_cuda.py"]


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)  # tests run in parallel processes


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no fixture of a module, reads or fills the cache of the person who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALOTYPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


class Stripes:
    """Synthetic data: `n` images of waves, with two classes by their direction."""

    def __init__(self, n: int = 64, channels: int = 1, height: int = 8, width: int = 8, labels: bool = True) -> None:
        phase = 2 * np.pi * np.arange(n)[:, None, None] / n
        across = np.sin(np.arange(width)[None, None, :] + phase) + np.zeros((1, height, 1))
        down = np.sin(np.arange(height)[None, :, None] + phase) + np.zeros((1, 1, width))
        label = np.arange(n) % 2
        wave = np.where(label[:, None, None] == 0, across, down)
        images = ((wave + 1) * 110 + 10).astype(np.uint8)[:, None].repeat(channels, axis=1)
        self.images, self.label = torch.from_numpy(images), torch.from_numpy(label) if labels else None

    def read(self, indices: np.ndarray) -> Batch:
        return Batch(self.images[indices], None if self.label is None else self.label[indices])

    def batches(self, size: int, seed: int = 0) -> Batches:
        return Batches(self, np.arange(len(self.images)), size, seed)


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Forty small RGB pictures in two class folders."""
    from PIL import Image

    rng = np.random.Generator(np.random.Philox(key=1))
    for k in range(40):
        folder = tmp_path / "photos" / ("dots", "bars")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "photos"


def environment(**values: str) -> dict[str, str]:
    """The environment for a child process of a test."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **values}
