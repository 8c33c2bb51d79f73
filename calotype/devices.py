"""Which device to compute on, for the few places that may choose one, and what a process does for its speed."""

from __future__ import annotations

import ctypes
import gc
import os
import platform

import torch

from calotype.errors import ConfigError


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
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for what it asks for next; on Linux with glibc.

    Else every large array is given back to the system and comes from it again, page by page, filled with zeros. On two
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
        os.environ.setdefault(
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0"
        )  # read at the first kernel; for other processes too
        return
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_MMAP_THRESHOLD, 2**30)  # larger blocks alone have mappings of their own


def _is_limited() -> bool:
    import resource  # of POSIX, as glibc is

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def give_back_memory() -> None:
    """Give what this process has freed, and kept, back to the system and to the device, where memory ran out."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
