"""The outline of a network: its parameters and buffers on the meta device, to check its size before allocation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from calotype.errors import ConfigError

MOST_PARTS = 20_000  # modules, parameters and buffers; the largest preset has not a tenth of it
BYTES_EACH = 4  # of a parameter: float32


def memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_RULES = [name for name in dir(nn.init) if name.endswith("_") and name[0] != "_"]
_DRAWS = {Tensor.normal_, Tensor.uniform_, *(getattr(nn.init, name) for name in _RULES)}


class _Valueless(TorchFunctionMode):
    """Random initial values are not drawn: there is no memory for them.

    Without it torch imports its compiler for a normal distribution on the device "meta", which takes a second or more
    of every command that opens a run.
    """

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def outlined() -> Iterator[None]:
    """Build a network on the device "meta", as far as it is none too large for this machine. Raises as `bounded`."""
    with torch.device("meta"), _Valueless(), bounded():
        yield


@contextmanager
def bounded() -> Iterator[None]:
    """Refuse a network that is built in this block as soon as it is too large. For one on the device "meta".

    Raises:
        ConfigError: its parameters do not fit in the memory of this machine, its parts are too many to be meant, or its
            numbers too large for torch.
    """
    parts, values, room = 0, 0, memory()

    def count(_: nn.Module, name: str, part: object) -> None:
        nonlocal parts, values
        parts += 1
        values += part.numel() if isinstance(part, Tensor) else 0
        if parts > MOST_PARTS:
            raise ConfigError(f"the network has more than {MOST_PARTS:,} parts: give fewer blocks or levels in [model]")
        if values * BYTES_EACH > room:
            raise ConfigError(
                f"the network has more than {values:,} parameters, which take {values * BYTES_EACH / 1e9:,.0f} GB, but "
                f"this machine has {room / 1e9:,.0f} GB: give smaller widths or fewer blocks in [model]"
            )

    hooks = [
        registration.register_module_module_registration_hook(count),
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:  # all are said of too large numbers
        first = str(error).partition("\n")[0]
        raise ConfigError(f"the network of [model] cannot be built ({first}): give smaller numbers") from error
    finally:
        for hook in hooks:
            hook.remove()
