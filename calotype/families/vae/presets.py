"""The sizes of network that a budget is matched with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.families.vae.config import VAEConfig
from calotype.model import ImageSpec, Preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of presets: a network that adapts to the size of the images."""

    widths: tuple[int, ...]  # of the finest levels; those below are as wide as the last
    finest: int  # latent maps of the finest level
    latents: int  # of each level below it
    batch_size: int
    learning_rate: float
    images_wanted: int
    coarsest: int = 4  # rows or columns of the map before the single position

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: as many levels as lead to a small map, and a single position."""
        patch = max(1, min(spec.height, spec.width) // 32)
        rows, columns, levels = -(-spec.height // patch), -(-spec.width // patch), 1
        while max(rows, columns) > self.coarsest:
            rows, columns, levels = -(-rows // 2), -(-columns // 2), levels + 1
        levels += rows * columns > 1
        widths = (*self.widths[:levels], *self.widths[-1:] * (levels - len(self.widths)))
        latents = (self.finest, *(self.latents,) * (levels - 2), 1) if levels > 1 else (max(1, self.finest),)
        model = VAEConfig(widths=widths, blocks=(1,) * levels, latents=latents, patch=patch)
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted, "muon")


SIZES: Mapping[str, Size] = {
    "tiny": Size(widths=(32, 64), finest=0, latents=2, batch_size=32, learning_rate=5e-3, images_wanted=0),
    "small": Size(widths=(32, 64), finest=2, latents=3, batch_size=32, learning_rate=4e-3, images_wanted=400_000),
}


def presets(spec: ImageSpec) -> Mapping[str, Preset]:
    """All sizes for such images, from the smallest to the largest."""
    return {name: size.preset(spec) for name, size in SIZES.items()}
