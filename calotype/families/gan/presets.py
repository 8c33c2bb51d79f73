"""The sizes of network that a budget is matched with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.families.gan.config import GANConfig
from calotype.model import ImageSpec, Preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of presets: networks that adapt to the size of the images."""

    widths: tuple[int, ...]  # of the finest levels; those below are as wide as the last
    blocks: int
    batch_size: int
    learning_rate: float
    images_wanted: int
    coarsest: int = 7  # rows or columns of the coarsest map at most

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: as many levels as lead to a small map."""
        rows, columns, levels = spec.height, spec.width, 1
        while max(rows, columns) > self.coarsest:
            rows, columns, levels = -(-rows // 2), -(-columns // 2), levels + 1
        widths = (*self.widths[:levels], *self.widths[-1:] * (levels - len(self.widths)))
        model = GANConfig(widths=widths, blocks=(self.blocks,) * levels)
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted, beta1=0.0)


SIZES: Mapping[str, Size] = {
    "tiny": Size(widths=(32, 64, 128), blocks=1, batch_size=64, learning_rate=5e-4, images_wanted=0),
}


def presets(spec: ImageSpec) -> Mapping[str, Preset]:
    """All sizes for such images, from the smallest to the largest."""
    return {name: size.preset(spec) for name, size in SIZES.items()}
