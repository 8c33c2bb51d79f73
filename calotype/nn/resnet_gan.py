"""Generator and discriminator of residual blocks of two 3 x 3 convolutions, with batch normalisation in the generator.

    generator:      x + c2(a(n(c1(up(a(n(x)))))))       n batch normalisation, with scales and shifts of a class
    discriminator:  x + down(c2(a(c1(a(x)))))           without activation before the first block, which sees the image

with a ReLU, bilinear enlargement, means of 2 x 2, and 1 x 1 convolutions on the way around where sizes or widths
differ. The generator begins with a linear map of the latents to the coarsest level. The discriminator ends with two
blocks at the level before that, the sum over positions, and a linear map, with classes the product with a vector of the
class as well.

Source: Miyato et al. 2018, arXiv:1802.05957; Miyato and Koyama 2018, arXiv:1802.05637 (classes).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from calotype.nn.layers import BatchNorm2d
from calotype.nn.levels import Size, level_sizes


def _conv(inputs: int, outputs: int, kernel: int = 3, gain: float = 2**0.5) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _up(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")[:, :, : size[0], : size[1]]


class Norm(nn.Module):
    """Batch normalisation; with classes each has its own scale and shift."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = BatchNorm2d(width, affine=num_classes == 0)
        self.embed = nn.Embedding(num_classes, 2 * width) if num_classes else None
        if self.embed is not None:
            nn.init.zeros_(self.embed.weight)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Normalise x, then scale and shift it by its class: (B, width, h, w) to the same shape."""
        x = self.norm(x)
        if self.embed is None:
            return x
        scale, shift = self.embed(labels)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift


class UpBlock(nn.Module):
    """A block of the generator, to a level twice as fine."""

    def __init__(self, inputs: int, outputs: int, size: Size, num_classes: int) -> None:
        super().__init__()
        self.size = size
        self.norms = nn.ModuleList((Norm(inputs, num_classes), Norm(outputs, num_classes)))
        self.first, self.second = _conv(inputs, outputs), _conv(outputs, outputs)
        self.around = _conv(inputs, outputs, 1, 1.0)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Double the resolution, cropped to `size`: (B, inputs, h, w) to (B, outputs, *size)."""
        h = self.first(_up(F.relu(self.norms[0](x, labels)), self.size))
        h = self.second(F.relu(self.norms[1](h, labels)))
        return h + _up(self.around(x), self.size)  # a 1 x 1 convolution and bilinear enlargement can change places


class DownBlock(nn.Module):
    """A block of the discriminator.

    Args:
        down: whether to a level half as fine.
        first: whether it sees the image.
    """

    def __init__(self, inputs: int, outputs: int, down: bool, first: bool) -> None:
        super().__init__()
        self.down, self.begins = down, first
        self.first, self.second = _conv(inputs, outputs), _conv(outputs, outputs)
        self.around = _conv(inputs, outputs, 1, 1.0) if down or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w); with `down` at half the resolution, rounded up."""
        h = self.second(F.relu(self.first(x if self.begins else F.relu(x))))
        if self.down:
            h, x = (F.avg_pool2d(t, 2, ceil_mode=True) for t in (h, x))
        return h + (x if self.around is None else self.around(x))


class Generator(nn.Module):
    """From latents, and classes, to an image.

    Args:
        channels: of the image.
        size: its height and width.
        latents: of an image.
        widths: features per level of resolution, finest first.
        num_classes: of the labels; 0: none.
    """

    def __init__(self, channels: int, size: Size, latents: int, widths: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        self.sizes = level_sizes(size, len(widths), 1, point=False)
        self.width, (high, wide) = widths[-1], self.sizes[-1]
        self.start = nn.Linear(latents, self.width * high * wide)
        nn.init.xavier_uniform_(self.start.weight)
        nn.init.zeros_(self.start.bias)
        self.blocks = nn.ModuleList(
            UpBlock(widths[k + 1], widths[k], self.sizes[k], num_classes) for k in reversed(range(len(widths) - 1))
        )
        self.norm = BatchNorm2d(widths[0])
        self.last = _conv(widths[0], channels, gain=1.0)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """(B, latents) to (B, C, H, W) in [-1, 1]."""
        x = self.start(z).view(len(z), self.width, *self.sizes[-1])
        for block in self.blocks:
            x = block(x, labels)
        return self.last(F.relu(self.norm(x))).tanh()


class Discriminator(nn.Module):
    """From an image, and its class, to a logit.

    Args:
        channels: of the image.
        widths: features per level of resolution, finest first; at the last there is nothing, as it ends a level before.
        num_classes: of the labels; 0: none.
    """

    def __init__(self, channels: int, widths: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        inner = widths[:-1] or widths
        inputs = (channels, *inner)
        self.blocks = nn.Sequential(
            *(DownBlock(inputs[k], inner[k], True, k == 0) for k in range(len(inner) - 1)),
            DownBlock(inputs[len(inner) - 1], inner[-1], False, len(inner) == 1),
            DownBlock(inner[-1], inner[-1], False, False),
        )
        self.last = nn.Linear(inner[-1], 1)
        nn.init.xavier_uniform_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.embed = nn.Embedding(num_classes, inner[-1]) if num_classes else None
        if self.embed is not None:
            nn.init.xavier_uniform_(self.embed.weight)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, C, H, W) to logits (B,)."""
        h = F.relu(self.blocks(x)).sum((2, 3))
        found: Tensor = self.last(h)[:, 0]
        return found if self.embed is None else found + (h * self.embed(labels)).sum(1)
