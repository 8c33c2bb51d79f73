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

from calotype.nn.ladder import Block, Down, Up, first_conv, level_sizes
from calotype.nn.layers import zeroed
from calotype.nn.quantise import FSQ, VQ, Quantised
from calotype.rng import Noise


class CodeStep(NamedTuple):
    """The map of codes of images, and how many codes there are."""

    found: Quantised
    codes: int

    def kl(self) -> Tensor:
        """Of certainty from all codes alike, nats: (B, 1, h, w)."""
        return torch.full_like(self.found.numbers[:, None], math.log(self.codes), dtype=self.found.values.dtype)

    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z), nats: (B,)."""
        return -self.kl().flatten(1).sum(1)

    def loss(self) -> Tensor:
        """What is to be added to the loss of each image, (B,): of a codebook that learns."""
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
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: tuple[int, int],
        widths: Sequence[int],
        blocks: Sequence[int],
        quantiser: FSQ | VQ,
        num_classes: int = 0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.size, self.patch, self.quantiser = size, patch, quantiser
        self.sizes = level_sizes(size, len(widths), patch, point=False)
        scale = (2 * sum(blocks)) ** -0.5
        levels = list(zip(widths, self.sizes, blocks, strict=True))
        pairs = list(zip(self.sizes, self.sizes[1:], widths, widths[1:], strict=False))
        self.stem = first_conv(channels, widths[0], patch)
        self.encoder, self.decoder = (
            nn.ModuleList(nn.Sequential(*(Block(width, at, scale) for _ in range(n))) for width, at, n in levels)
            for _ in range(2)
        )
        self.down = nn.ModuleList(Down(fine, coarse, a, b) for fine, coarse, a, b in pairs)
        self.up = nn.ModuleList(Up(coarse, fine, b, a) for fine, coarse, a, b in pairs)
        self.to_code = nn.Conv2d(widths[-1], quantiser.features, 1)
        self.from_code = nn.Conv2d(quantiser.features, widths[-1], 1)
        self.embed = nn.Embedding(num_classes, widths[-1]) if num_classes else None
        self.head = zeroed(nn.Conv2d(widths[0], outputs * patch**2, 1))

    def encode(self, x: Tensor) -> list[Tensor]:
        """What is to be coded of an image (B, C, H, W), in [-1, 1]: one map of the coarsest level."""
        rows, columns = self.sizes[0]
        h = self.stem(F.pad(x, (0, columns * self.patch - x.shape[3], 0, rows * self.patch - x.shape[2])))
        for k, blocks in enumerate(self.encoder):
            h = blocks(self.down[k - 1](h) if k else h)
        return [h]

    def infer(self, known: Sequence[Tensor], labels: Tensor | None, noise: Noise) -> tuple[Tensor, list[CodeStep]]:
        """Numbers (B, H, W, outputs) of the codes of images, and the codes. There is no chance in it."""
        found = self._code(known[0])
        return self._numbers(found.values, labels), [CodeStep(found, self.quantiser.codes)]

    def generate(self, n: int, labels: Tensor | None, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Numbers of n images of codes at random, all alike: what the autoencoder alone knows of images."""
        uniforms = noise.fork("codes").uniform(*self.sizes[-1])
        numbers = (uniforms * self.quantiser.codes).long().clamp(max=self.quantiser.codes - 1)
        return self._numbers(self.quantiser.values(numbers).to(self.head.weight.dtype), labels)

    def means(self, known: Sequence[Tensor], labels: Tensor | None) -> list[Tensor]:
        """The values of the codes of images, (B, features, h, w)."""
        return [self._code(known[0]).values]

    def decode(self, latents: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The numbers of values, which need not be those of codes."""
        return self._numbers(latents[0], labels)

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """Of the map of values: (features, h, w)."""
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

    def _numbers(self, values: Tensor, labels: Tensor | None) -> Tensor:
        h = self.from_code(values)
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        for k in reversed(range(len(self.decoder))):
            h = self.decoder[k](h)
            if k:
                h = self.up[k - 1](h)
        numbers = self.head(F.silu(h))
        numbers = F.pixel_shuffle(numbers, self.patch) if self.patch > 1 else numbers
        return numbers[:, :, : self.size[0], : self.size[1]].permute(0, 2, 3, 1)
