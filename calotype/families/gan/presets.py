"""The presets of the family, by network size: the planner matches one to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from calotype.core.model import ImageSpec, Preset
from calotype.families.gan.config import GANConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of presets: networks that adapt to the size of the images."""

    widths: tuple[int, ...]  # of the finest levels; those below are as wide as the last
    batch_size: int
    learning_rate: float
    images_wanted: int
    coarsest: int = 7  # rows or columns of the coarsest map at most

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: as many levels as lead to a small map."""
        levels = _levels(spec, self.coarsest)
        widths = (*self.widths[:levels], *self.widths[-1:] * (levels - len(self.widths)))
        model = GANConfig(network="dcgan", widths=widths, blocks=(1,) * levels)
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted, beta1=0.0)


def _levels(spec: ImageSpec, coarsest: int) -> int:
    """How many there are down to a map of so many rows or columns at most."""
    rows, columns, levels = spec.height, spec.width, 1
    while max(rows, columns) > coarsest:
        rows, columns, levels = -(-rows // 2), -(-columns // 2), levels + 1
    return levels


# After two minutes of MNIST on one core the Fréchet distance in the features of its classifier was 2.5 with these
# strided convolutions and the relativistic loss with both penalties, and 20 with the norm-free network, which is half
# as fast; at half the rate 9.8, and with a tenth of the penalties besides 30.
SIZES: Mapping[str, Size] = {
    "tiny": Size(widths=(32, 64, 128, 256), batch_size=64, learning_rate=1e-3, images_wanted=0),
    "small": Size(widths=(64, 128, 256, 512), batch_size=64, learning_rate=1e-3, images_wanted=1_100_000),
}


def _named(spec: ImageSpec, config: GANConfig, coarsest: int, **more: Any) -> Preset:
    """A published network, of as many levels as images have; its widths are those of the finest levels on."""
    levels = _levels(spec, coarsest)
    widths = (*config.widths[:levels], *config.widths[-1:] * (levels - len(config.widths)))
    model = replace(config, widths=widths, blocks=config.blocks[:1] * levels)
    return Preset(model, images_wanted=0, beta1=more.pop("beta1", 0.0), auto=False, **more)


DCGAN = GANConfig(
    network="dcgan",
    widths=(64, 128, 256, 512),
    blocks=(1,) * 4,
    latents=100,
    loss="non-saturating",
    r1=0.0,
    r2=0.0,
    overfit=0.0,
)
SNGAN = GANConfig(
    network="resnet",
    widths=(256,) * 4,
    blocks=(1,) * 4,
    critic_share=0.5,
    latents=128,
    loss="hinge",
    r1=0.0,
    r2=0.0,
    critic_steps=5,
    spectral=True,
    overfit=0.0,
)
R3GAN = GANConfig(
    widths=(768,) * 4,
    blocks=(2,) * 4,
    r1=0.05,
    r2=0.05,
    augment=0.55,
    overfit=0.0,
    changes=("flip", "shift", "turn", "colour", "cut"),
)


def presets(spec: ImageSpec) -> Mapping[str, Preset]:
    """All sizes for such images, from the smallest to the largest, and published networks by name."""
    named = {
        "dcgan": _named(spec, DCGAN, 7, batch_size=128, learning_rate=2e-4, beta1=0.5),
        "sngan": _named(spec, SNGAN, 7, batch_size=64, learning_rate=2e-4),
        "r3gan": _named(spec, R3GAN, 7, batch_size=512, learning_rate=2e-4),
    }
    return {name: size.preset(spec) for name, size in SIZES.items()} | named
