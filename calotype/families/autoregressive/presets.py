"""The presets of the family, by network size: the planner matches one to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.core.model import ImageSpec, Preset
from calotype.families.autoregressive.config import AutoregressiveConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of presets: a network that adapts to the size of the images."""

    widths: tuple[int, ...]  # of the finest levels; those below are as wide as the last
    blocks: tuple[int, ...]  # per level; those below have as many as the last
    lowest: int  # blocks of the lowest level, where they cost least
    batch_size: int
    learning_rate: float
    images_wanted: int
    coarsest: int = 64  # positions of a map that is not halved any more

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: as many levels as lead to a map that attention sees whole at little cost."""
        rows, columns, levels = spec.height, spec.width, 1
        while rows * columns > self.coarsest and min(rows, columns) > 1:
            rows, columns, levels = -(-rows // 2), -(-columns // 2), levels + 1
        model = AutoregressiveConfig(
            widths=_extended(self.widths, levels),
            blocks=(*_extended(self.blocks, levels - 1), self.lowest),
            attention=(levels - 1,),
        )
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted, "muon")


def _extended(values: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """The values of so many levels, the last again for those that have none."""
    return (*values[:levels], *values[-1:] * (levels - len(values)))


SIZES: Mapping[str, Size] = {
    # By bits/dim after equal images (benchmarks/likelihoods.py --images N): 8-bit MNIST after 20,000 images took 0.900
    # at a rate of 1e-2 and 0.894 at 5e-3; binarised, after 60,000, it took 82.7 nats at 1e-2 and 81.4 at 4e-3, and in
    # the size small 80.9 at 4e-3, in 1.4 times the time. CIFAR-10 after 20,000 took 3.10 at 1e-2 and 3.16 at 5e-3.
    "tiny": Size(widths=(32, 64, 64), blocks=(1, 2), lowest=2, batch_size=16, learning_rate=5e-3, images_wanted=0),
    "small": Size(
        widths=(32, 64, 64), blocks=(2, 3), lowest=6, batch_size=16, learning_rate=4e-3, images_wanted=30_000
    ),
}


def pixelcnnpp(spec: ImageSpec) -> Preset:
    """PixelCNN++ as published for CIFAR-10: 53.5 M parameters, for a GPU. Published at 2.92 bits/dim.

    Source: Salimans et al. 2017, arXiv:1701.05517, section 3.
    """
    levels = max(1, min(3, min(spec.height, spec.width).bit_length() - 1))
    model = AutoregressiveConfig(
        network="pixelcnn++", widths=(160,) * levels, blocks=(5,) * levels, attention=(), dropout=0.5
    )
    return Preset(model, batch_size=128, learning_rate=1e-3, images_wanted=100_000_000)


def presets(spec: ImageSpec) -> Mapping[str, Preset]:
    """All sizes for such images, from the smallest to the largest."""
    return {name: size.preset(spec) for name, size in SIZES.items()} | {"pixelcnn++": pixelcnnpp(spec)}
