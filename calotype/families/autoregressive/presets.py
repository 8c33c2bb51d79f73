"""The sizes of network that a budget is matched with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.families.autoregressive.config import AutoregressiveConfig
from calotype.model import ImageSpec, Preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of presets: a network that adapts to the size of the images."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    batch_size: int
    learning_rate: float
    images_wanted: int

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: fewer levels for small ones."""
        side = min(spec.height, spec.width)
        levels = max(1, min(len(self.widths), side.bit_length() - 2))
        model = AutoregressiveConfig(widths=self.widths[:levels], blocks=self.blocks[:levels])
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted, "muon")


SIZES: Mapping[str, Size] = {
    "tiny": Size(widths=(16, 32, 64), blocks=(2, 2, 4), batch_size=16, learning_rate=3e-3, images_wanted=0),
    "small": Size(widths=(32, 64, 128), blocks=(2, 2, 4), batch_size=16, learning_rate=3e-3, images_wanted=300_000),
}


def presets(spec: ImageSpec) -> Mapping[str, Preset]:
    """All sizes for such images, from the smallest to the largest."""
    return {name: size.preset(spec) for name, size in SIZES.items()}
