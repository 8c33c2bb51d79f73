"""The presets of the family, by network size: the planner matches one to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.core.model import ImageSpec, Preset
from calotype.families.diffusion.config import DiffusionConfig

# After ten minutes of CIFAR-10 the Fréchet distance of `small` in a classifier's features was 1.9 with it and 4.6 with
# AdamW, that of `medium` 4.2 and 8.8 (benchmarks/networks.py --table sizes).
OPTIMIZER = "muon"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of presets: a network that adapts to the size of the images."""

    widths: tuple[int, ...]
    blocks: int
    batch_size: int
    learning_rate: float
    images_wanted: int
    # Of ln sigma in training. At EDM's -1.2 and 1.2 most of a short training goes to fine detail, and shapes stay
    # broken: of MNIST samples after 68,000 images a classifier read 60 % (at twice the learning rate, with about the
    # same loss), at -0.7 and 1.4 it read 89 %, at 0 and 1.6 92 %. But the higher, the grainier: the small sizes stand
    # in between.
    noise_mean: float
    noise_std: float
    patch: int = 2
    coarsest: int = 64  # positions of a map that is not halved any more: that costs time and brings little
    attends: bool = True  # to the lowest map, whole; over more positions it costs more than it brings

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: fewer levels for small ones, larger patches for large ones."""
        side = min(spec.height, spec.width)
        doublings = max(0, (side // 48).bit_length() - 1)  # keeps the finest map at 24 to 48 positions a side
        patch = max(1, min(self.patch * 2**doublings, side // 8))  # 8: a finest map smaller than this blurs
        patch = 1 if spec.encoded else patch
        rows, columns = -(-spec.height // patch), -(-spec.width // patch)
        positions = [-(-rows // 2**k) * -(-columns // 2**k) for k in range(len(self.widths))]
        levels = [0]
        while len(levels) < len(self.widths) and positions[levels[-1]] > self.coarsest:
            if min(rows, columns) >> len(levels) == 0:
                break
            levels.append(len(levels))
        attends = self.attends or spec.encoded  # of maps whose positions are patches far apart depend on each other
        attention = [k for k in levels if attends and positions[k] <= self.coarsest]
        model = DiffusionConfig(
            widths=self.widths[: len(levels)],
            blocks=self.blocks,
            attention=tuple(attention),
            patch=patch,
            noise_mean=self.noise_mean,
            noise_std=self.noise_std,
        )
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted, OPTIMIZER)


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        widths=(32, 64, 64),
        blocks=1,
        batch_size=32,
        learning_rate=3e-3,
        images_wanted=0,
        noise_mean=-0.4,
        noise_std=1.5,
        attends=False,
    ),
    "small": Size(
        widths=(32, 64, 64),
        blocks=2,
        batch_size=64,
        learning_rate=3e-3,
        images_wanted=150_000,
        noise_mean=-0.6,
        noise_std=1.4,
    ),
    "medium": Size(
        widths=(64, 128, 128),
        blocks=2,
        batch_size=64,
        learning_rate=2e-3,
        images_wanted=500_000,
        noise_mean=-0.9,
        noise_std=1.3,
    ),
    "large": Size(
        widths=(128, 256, 256),
        blocks=3,
        batch_size=128,
        learning_rate=1e-3,
        images_wanted=20_000_000,
        noise_mean=-1.2,
        noise_std=1.2,
    ),
}


def ddpmpp(spec: ImageSpec) -> Preset:
    """DDPM++ as retrained for CIFAR-10 by EDM: 56 M parameters, for a GPU.

    Larger images get more levels, so that the lowest map stays at 8 to 15 positions a side. Published at FID 1.97,
    without classes and with an augmentation that is not here.
    Source: Karras et al. 2022, arXiv:2206.00364, tables 2 and 7.
    """
    side = min(spec.height, spec.width)
    levels = max(1, min(3 + max(0, (side // 32).bit_length() - 1), side.bit_length()))
    model = DiffusionConfig(
        widths=(256,) * levels,
        blocks=4,
        attention=(levels - 2,) if levels > 1 else (),
        patch=1,
        base=128,
        design="ddpm++",
        dropout=0.13,
    )
    return Preset(model, batch_size=512, learning_rate=1e-3, images_wanted=100_000_000)


def presets(spec: ImageSpec) -> Mapping[str, Preset]:
    """All sizes for such images, from the smallest to the largest."""
    return {name: size.preset(spec) for name, size in SIZES.items()} | {"ddpm++": ddpmpp(spec)}
