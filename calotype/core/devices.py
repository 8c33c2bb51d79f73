"""The choice of a device, for the few places that may choose one, and settings of the process for speed."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from calotype.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


def choose(name: str = "auto") -> torch.device:
    """The torch device of a name; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: for a device that torch does not know or that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown: give auto, cpu, cuda, cuda:1 or mps") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise ConfigError(f"device {name!r} is not available here: this machine has {here}")
    return device


def make_repeatable() -> None:
    """Let CUDA's convolutions choose the same kernels every time; the CPU does so by itself."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


# Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_memory() -> None:
    """Let this process keep freed memory for its next allocations; on Linux with glibc.

    Otherwise every large array is returned to the system and allocated again, page by page, filled with zeros. On two
    CPU cores training gained up to a third by this, without a larger peak (benchmarks/memory.py). Where the process has
    a limit of its own, as by `ulimit -v`, every large array is given back: what is kept is not there for anything else.
    Neither are the kernels kept that oneDNN compiles for every shape it meets. For a small U-Net those of one batch
    size take 30 MB of addresses, and oneDNN gives none of them back: after the batch sizes that did not fit, one image
    no longer did. Compiling them at each call costs a seventh of the time with 8 images of 64 x 64, and half with one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if _is_limited():
        mallopt(_MMAP_THRESHOLD, 2**17)  # and stay there, as it does not by itself
        mallopt(_ARENA_MAX, 1)  # a heap for each thread takes 64 MB of addresses
        # Read at the first kernel. It is for the processes that this one starts as well, which have the same limit.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")
        return
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_MMAP_THRESHOLD, 2**30)  # larger blocks alone have mappings of their own


def _is_limited() -> bool:
    if not hasattr(os, "fork"):
        return False
    import resource  # of POSIX

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def give_back_memory() -> None:
    """Return freed memory that this process has kept to the system and the device, after memory ran out."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class OwnThread:
    """Calls functions in a thread of its own where the memory of this process has a limit; else in the caller's.

    Where oneDNN finds no room for the code of a kernel, it compiles none in that thread any more: its assembler, Xbyak,
    keeps the error in a variable of the thread and never clears it, so that every later kernel "could not create a
    primitive", whatever room there is. After such an error another thread has to go on; the main one, which draws and
    measures, stays sound.
    """

    def __init__(self, device: torch.device) -> None:
        self._threads = ThreadPoolExecutor(1) if device.type == "cpu" and _is_limited() else None

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function; returns or raises what it does."""
        if self._threads is None:
            return function(*args, **kwargs)
        return self._threads.submit(function, *args, **kwargs).result()

    def renew(self) -> None:
        """Continue in a new thread."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = ThreadPoolExecutor(1)
