"""The presets of the family: the sizes that the planner matches to a budget, and others chosen by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calotype.core.model import ImageSpec, Preset
from calotype.families.vae.config import VAEConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of ladders: a network that adapts to the size of the images."""

    widths: tuple[int, ...]  # of the finest levels; those below are as wide as the last
    finest: int  # latent maps of the finest level
    latents: int  # of each level below it
    batch_size: int
    learning_rate: float
    images_wanted: int
    coarsest: int = 4  # rows or columns of the map before the single position

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: as many levels as lead to a small map, and a single position."""
        patch, levels, point = _levels(spec, self.coarsest)
        levels += point
        widths = (*self.widths[:levels], *self.widths[-1:] * (levels - len(self.widths)))
        latents = (self.finest, *(self.latents,) * (levels - 2), 1) if levels > 1 else (max(1, self.finest),)
        model = VAEConfig(widths=widths, blocks=(1,) * levels, latents=latents, patch=patch)
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted, "muon")


SIZES: Mapping[str, Size] = {
    "tiny": Size(widths=(32, 64), finest=0, latents=2, batch_size=32, learning_rate=2e-3, images_wanted=0),
    "small": Size(widths=(32, 64), finest=0, latents=4, batch_size=32, learning_rate=2e-3, images_wanted=600_000),
}

FINEST = 32  # positions of the finest level, at most of the shorter side: larger images are taken in patches
MAP = 16  # positions of the latent map of a first stage
FEATURES = 4  # of a position, where they are real numbers
COARSE = 5.0  # weight of their divergence: at 1 they keep pictures to 1 of 255, and twice as much to learn of them


def _levels(spec: ImageSpec, coarsest: int) -> tuple[int, int, bool]:
    """Pixels a side of a patch, levels down to a map of so many rows or columns, and whether that is no point yet."""
    patch = max(1, min(spec.height, spec.width) // FINEST)
    rows, columns, levels = -(-spec.height // patch), -(-spec.width // patch), 1
    while max(rows, columns) > coarsest:
        rows, columns, levels = -(-rows // 2), -(-columns // 2), levels + 1
    return patch, levels, rows * columns > 1


def _plain(spec: ImageSpec) -> Preset:
    """The VAE of the textbook: one latent vector, with a standard normal prior."""
    patch, levels, point = _levels(spec, 8)
    levels += point
    widths = (32, 64, 64, 64, 64, 64)[:levels]
    latents = (0,) * (levels - 1) + (1,)
    model = VAEConfig(widths=widths, blocks=(1,) * levels, latents=latents, latent_width=32, patch=patch)
    return Preset(model, 32, 2e-3, 0, "muon", auto=False)


def _map(spec: ImageSpec, code: str) -> Preset:
    """A first stage: one map of latents, a quarter of the image's size or less."""
    patch, levels, _ = _levels(spec, MAP if min(spec.height, spec.width) > FINEST else MAP // 2)
    widths = (64, 128, 128, 128, 128, 128)[:levels]
    model = VAEConfig(
        widths=widths,
        blocks=(1, *(2,) * (levels - 1)),
        latents=(0,) * (levels - 1) + (1,),
        latent_width=FEATURES,
        patch=patch,
        point=False,
        code=code,
        mixtures=1,  # what is left is little, and ten take half of the time of training
        beta=1.0 if code == "fsq" else COARSE,
    )
    return Preset(model, 16, 2e-3, 0, "muon", auto=False)


def _vdvae(spec: ImageSpec) -> Preset:
    """The published network for CIFAR-10, of 43 latent maps and 39 M parameters, with as many levels as images have.

    Source: Child 2021, arXiv:2011.10650.
    """
    patch, levels, point = _levels(spec, 4)
    levels += point
    blocks, latents = (
        (*counts[:1] * (levels - 5), *counts[-levels:]) for counts in ((12, 7, 7, 4, 3), (22, 11, 6, 3, 1))
    )
    model = VAEConfig(
        widths=(384,) * levels, blocks=blocks, latents=latents, bottleneck=4, resample="pooled", patch=patch
    )
    return Preset(model, 32, 2e-4, 0, auto=False)


def presets(spec: ImageSpec) -> Mapping[str, Preset]:
    """All sizes for such images, from the smallest to the largest, and further networks by name."""
    further = {"plain": _plain(spec), "map": _map(spec, "gaussian"), "codes": _map(spec, "fsq"), "vdvae": _vdvae(spec)}
    return {name: size.preset(spec) for name, size in SIZES.items()} | further
