"""An autoencoder whose latent is a map of whole codes, at the coarsest of its levels of resolution.

The codes of an image are certain, and before it is seen all are alike, so that a position costs the logarithm of the
number of codes: with it the bound of a VAE holds for this one too. A second model, trained on the maps of numbers of
codes, costs less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.nn.levels import PLAIN, Encoder, Numbers, Size, Style, blocks_of, level_sizes, ups
from calotype.nn.quantise import FSQ, VQ, Quantised


class CodeStep(NamedTuple):
    """The map of codes of images, and how many codes there are."""

    found: Quantised
    codes: int

    def kl(self) -> Tensor:
        """KL divergence of a certain code from a uniform prior over codes, nats: (B, 1, h, w)."""
        return torch.full_like(self.found.numbers[:, None], math.log(self.codes), dtype=self.found.values.dtype)

    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z), nats: (B,)."""
        return -self.kl().flatten(1).sum(1)

    def loss(self) -> Tensor:
        """The codebook loss of each image, (B,)."""
        return self.found.loss


class Coder(nn.Module):
    """Encoder, codes, decoder; with the methods of `Ladder`.

    Args:
        channels: of the image.
        outputs: numbers per pixel.
        size: height and width of the image.
        widths: features per level, finest first.
        blocks: residual blocks per level, of the encoder and again of the decoder.
        quantiser: gives the codes, of as many features as it has.
        num_classes: of the labels; 0: none.
        patch: pixels a side that are one position of the finest level.
        style: of levels, but for its scale, which follows from the depth.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: Size,
        widths: Sequence[int],
        blocks: Sequence[int],
        quantiser: FSQ | VQ,
        num_classes: int = 0,
        patch: int = 1,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        self.quantiser = quantiser
        self.sizes = level_sizes(size, len(widths), patch, point=False)
        style = style._replace(scale=(2 * sum(blocks)) ** -0.5)
        self.encode = Encoder(channels, widths, self.sizes, blocks, patch, style)
        self.decoder = blocks_of(widths, self.sizes, blocks, style)
        self.up = ups(widths, self.sizes, style)
        self.to_code = nn.Conv2d(widths[-1], quantiser.features, 1)
        self.from_code = nn.Conv2d(quantiser.features, widths[-1], 1)
        self.embed = nn.Embedding(num_classes, widths[-1]) if num_classes else None
        self.numbers = Numbers(widths[0], outputs, size, patch)

    def infer(self, known: Sequence[Tensor], labels: Tensor | None, noise: Noise) -> tuple[Tensor, list[CodeStep]]:
        """Numbers (B, H, W, outputs) of the codes of images, and the codes. There is no chance in it."""
        found = self._code(known[-1])
        return self._decoded(found.values, labels), [CodeStep(found, self.quantiser.codes)]

    def generate(self, n: int, labels: Tensor | None, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Numbers of n images of codes at random, all alike: what the autoencoder alone knows of images."""
        uniforms = noise.fork("codes").uniform(*self.sizes[-1])
        numbers = (uniforms * self.quantiser.codes).long().clamp(max=self.quantiser.codes - 1)
        return self._decoded(self.quantiser.values(numbers).to(self.from_code.weight.dtype), labels)

    def means(self, known: Sequence[Tensor], labels: Tensor | None) -> list[Tensor]:
        """The values of the codes of images, (B, features, h, w)."""
        return [self._code(known[-1]).values]

    def codes(self, known: Sequence[Tensor]) -> Tensor:
        """The numbers of the codes of images, int64 (B, h, w)."""
        return self._code(known[-1]).numbers

    def decode(self, latents: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The numbers of values, which need not be those of codes."""
        return self._decoded(latents[0], labels)

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """The shape of the map of values: (features, h, w)."""
        return [(self.quantiser.features, *self.sizes[-1])]

    @staticmethod
    def facts(steps: Sequence[CodeStep]) -> dict[str, Tensor]:
        """For the log: how many codes the batch uses, as a share of all, and as many alike ones that say as much."""
        counts = torch.bincount(steps[0].found.numbers.flatten(), minlength=steps[0].codes).double()
        shares = counts / counts.sum()
        return {
            "codes used": (counts > 0).double().mean(),
            "perplexity": torch.special.entr(shares).sum().exp(),
        }

    def _code(self, known: Tensor) -> Quantised:
        features: Tensor = self.to_code(F.silu(known))
        return self.quantiser(features.to(self.to_code.weight.dtype))

    def _decoded(self, values: Tensor, labels: Tensor | None) -> Tensor:
        h = self.from_code(values)
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        for k in reversed(range(len(self.decoder))):
            h = self.decoder[k](h)
            if k:
                h = self.up[k - 1](h)
        return self.numbers(h)
