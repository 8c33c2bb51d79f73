"""What several tests share: tiny data sets, tiny models, and a fixed number of threads."""

from __future__ import annotations

import functools
import hashlib
import locale
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from calotype.core.model import Batch
from calotype.data.packs.batches import Batches
from tests.faults import FAULTS, Measured, in_the_suite, write_table

collect_ignore = [] if torch.cuda.is_available() else ["optimization/test_cuda.py"]


def pytest_runtest_setup() -> None:
    """One thread for each test, whatever the one before has chosen: tests run in parallel processes."""
    torch.set_num_threads(1)


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


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """A command of Calotype in a process of its own, in a folder that has its cache as well."""
    return subprocess.Popen(
        [sys.executable, "-m", "calotype.cli", *words],
        cwd=folder,
        env=environment(CALOTYPE_CACHE=str(folder / "cache")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@functools.cache
def mounts_allowed() -> bool:
    """Whether a test may have disks of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def unprivileged() -> list[str]:
    """What to put before a command so that permissions hold for it as well where root runs the tests."""
    if os.geteuid():
        return []
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("root reads and writes everything here, and cannot give that up")
    return prefix


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", metavar="SEED", help="run modules, and the tests of each, in an order of this seed")


def pytest_configure(config: pytest.Config) -> None:
    if not sys.flags.utf8_mode and locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        raise pytest.UsageError("the tests write names and texts of all languages: run them with PYTHONUTF8=1")
    os.environ["PYTHONUTF8"] = "1"  # for the processes that tests start, whatever the locale
    config.addinivalue_line("markers", "hosts: needs several hosts, made of namespaces; `make test-hosts` runs them")
    config.addinivalue_line("markers", "slow: takes long, and is left out by `make test`; `make test-all` runs it")
    config.addinivalue_line("markers", "fault(kind, outcome): the test breaks something, and says what happens then")
    config.stash[MEASURED] = {}


def pytest_report_header(config: pytest.Config) -> list[str]:
    seed = config.getoption("--shuffle")
    return [] if seed is None else [f"shuffled: --shuffle {seed}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle by a hash, alike in all processes of pytest-xdist; modules stay together for their fixtures."""
    seed = config.getoption("--shuffle")

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    if seed is not None:
        items.sort(key=lambda item: (place(item.path.name), place(item.nodeid)))


# -- faults that are survived, see tests/faults.py

MEASURED = pytest.StashKey[dict[str, Measured]]()
Survived = Callable[[int], None]
"""Told how often a test has broken something."""


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Survived:
    """Say how often a test with the mark `fault` has broken something; once, where nothing is said."""
    counted = request.config.stash[MEASURED]
    name = f"{request.path.stem}.{request.function.__name__}"

    def tell(times: int) -> None:
        known = counted.get(name, Measured(0, 0.0))
        counted[name] = known._replace(times=known.times + times)

    return tell


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Measure the tests of faults that pass."""
    if item.get_closest_marker("fault") is None:
        return (yield)
    counted, name = item.config.stash[MEASURED], f"{item.path.stem}.{item.function.__name__}"
    before, started = counted.get(name, Measured(0, 0.0)), time.monotonic()
    result = yield
    told = counted.get(name, before)
    counted[name] = Measured(max(told.times, before.times + 1), before.seconds + time.monotonic() - started)
    return result


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the table, where all faults have been tried and survived."""
    measured, faults = session.config.stash[MEASURED], in_the_suite()
    if FAULTS and exitstatus == pytest.ExitCode.OK and {fault.test for fault in faults} <= measured.keys():
        write_table(measured, faults)
