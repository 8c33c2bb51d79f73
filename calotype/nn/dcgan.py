"""Generator and discriminator of strided convolutions, 4 x 4, with batch normalisation: DCGAN.

Weights begin at a standard deviation of 0.02, scales of norms at 1 with that deviation. The discriminator has leaky
ReLUs, and no norm in its first and its last layer.

Source: Radford et al. 2016, arXiv:1511.06434.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.nn.layers import BatchNorm2d
from calotype.nn.levels import Size, level_sizes

SLOPE = 0.2
DEVIATION = 0.02


def _begun(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=DEVIATION)
        elif isinstance(module, BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, DEVIATION)


class Generator(nn.Module):
    """From latents, and classes, to an image.

    Args:
        channels: of the image.
        size: its height and width.
        latents: of an image.
        widths: features per level of resolution, finest first; at the finest there is the image alone.
        num_classes: of the labels; 0: none.
    """

    def __init__(self, channels: int, size: Size, latents: int, widths: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        self.sizes = level_sizes(size, len(widths), 1, point=False)
        self.embed = nn.Embedding(num_classes, latents) if num_classes else None
        self.width, (high, wide) = widths[-1], self.sizes[-1]
        self.start = nn.Linear(latents * (2 if num_classes else 1), self.width * high * wide, bias=False)
        inner = [*reversed(widths[1:])] if len(widths) > 1 else [widths[0]]
        self.norms = nn.ModuleList(BatchNorm2d(width) for width in inner)
        outputs = [*inner[1:], channels]
        if len(widths) > 1:
            self.convs = nn.ModuleList(
                nn.ConvTranspose2d(a, b, 4, 2, 1, bias=b == channels) for a, b in zip(inner, outputs, strict=True)
            )
        else:
            self.convs = nn.ModuleList([nn.Conv2d(widths[0], channels, 3, padding=1)])
        _begun(self)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """(B, latents) to (B, C, H, W) in [-1, 1]."""
        if self.embed is not None:
            z = torch.cat([z, self.embed(labels)], 1)
        x = self.start(z).view(len(z), self.width, *self.sizes[-1])
        for k, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            high, wide = self.sizes[max(0, len(self.sizes) - 2 - k)]
            x = conv(F.relu(norm(x)))[:, :, :high, :wide]
        return x.tanh()


class Discriminator(nn.Module):
    """From an image, and its class, to a logit; the mirror image of the generator.

    Args:
        norms: whether there is batch normalisation; with it an image's logit depends on the others of its batch.
    """

    def __init__(
        self, channels: int, size: Size, widths: Sequence[int], num_classes: int = 0, norms: bool = True
    ) -> None:
        super().__init__()
        sizes = level_sizes(size, len(widths), 1, point=False)
        inner = [channels, *(widths[1:] if len(widths) > 1 else widths)]
        kernel, stride = (4, 2) if len(widths) > 1 else (3, 1)
        self.sizes = sizes
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride, 1, bias=k == 0 or not norms) for k, (a, b) in enumerate(pairwise(inner))
        )
        self.norms = nn.ModuleList(
            BatchNorm2d(width) if norms and k else nn.Identity() for k, width in enumerate(inner[1:])
        )
        positions = sizes[-1][0] * sizes[-1][1]
        self.last = nn.Linear(inner[-1] * positions, 1, bias=False)
        self.embed = nn.Embedding(num_classes, inner[-1] * positions) if num_classes else None
        _begun(self)
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=DEVIATION)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, C, H, W) to logits (B,)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if len(self.sizes) > 1:  # an odd side is padded, so that no pixel is left out
                x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            x = F.leaky_relu(norm(conv(x)), SLOPE)
        h = x.flatten(1)
        found: Tensor = self.last(h)[:, 0]
        return found if self.embed is None else found + (h * self.embed(labels)).sum(1)
