"""A mirror of the log for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from calotype.errors import ConfigError

Mirror = Callable[[Mapping[str, float], int], None]
"""(figures by name, images seen) -> None"""


@contextmanager
def tensorboard_mirror(folder: Path) -> Iterator[Mirror]:
    """Yield a function that writes log values into `folder`. Raises ConfigError if tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--tensorboard needs tensorboard: pip install tensorboard") from error
    writer = SummaryWriter(str(folder))

    def write(figures: Mapping[str, float], images_seen: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, images_seen)

    try:
        yield write
    finally:
        writer.close()
