"""A U-Net for images of any size: residual blocks with adaptive group norm, attention at chosen levels.

The layout is that of Ho et al. 2020 (arXiv:2006.11239) with the adaptive normalisation of Dhariwal & Nichol 2021
(arXiv:2105.05233): h <- norm(h) * (1 + scale) + shift, where scale and shift come from the conditioning. `patch` > 1
folds squares of pixels into channels: on a CPU most of the time goes to the finest level, and a network on folded
pixels sees several times more images in the same time. A few channels stay at the full resolution beside it, and are
merged with what comes back: through the folded ones alone the noise of single pixels does not pass, and samples
come out grainy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.nn.layers import SelfAttention, SinusoidalEmbedding, dropout, groups_for, zeroed
from calotype.rng import Noise


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip, modulated by an embedding; starts as (a projection of) the identity."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout_rate: float, attention: bool) -> None:
        super().__init__()
        self.dropout_rate = dropout_rate
        self.norm1 = nn.GroupNorm(groups_for(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(groups_for(outputs), outputs)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = SelfAttention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise | None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        h = self.conv2(dropout(h, self.dropout_rate, noise))
        return self.attention(self.skip(x) + h)


class UNet(nn.Module):
    """Map an image and a scalar per image (and a label) to an image of `out_channels`.

    Args:
        in_channels, out_channels: of the image.
        widths: channels per level, finest first; each level halves the resolution (rounding up).
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: levels with self-attention, 0 the finest.
        patch: side of the pixel squares that are folded into channels.
        num_classes: labels 0..num_classes - 1; 0 for none.
        detail: channels at the full resolution, where patch > 1.
        dropout_rate: within the residual blocks, only where forward is given noise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int] = (),
        patch: int = 1,
        num_classes: int = 0,
        dropout_rate: float = 0.0,
        detail: int = 16,
    ) -> None:
        super().__init__()
        self.patch = patch
        embedding = 4 * widths[0]
        self.embed_scalar = nn.Sequential(
            SinusoidalEmbedding(widths[0]), nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_label = nn.Embedding(num_classes, embedding) if num_classes else None

        def block(inputs: int, level: int) -> ResidualBlock:
            return ResidualBlock(inputs, widths[level], embedding, dropout_rate, level in attention)

        if patch > 1:
            self.stem = nn.Conv2d(in_channels, detail, 3, padding=1)
            self.fold = nn.Conv2d(detail * patch**2, widths[0], 1)
            self.unfold = nn.Conv2d(widths[0], detail * patch**2, 1)
            self.merge = ResidualBlock(2 * detail, detail, embedding, dropout_rate, attention=False)
        else:
            self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down, skips, width = nn.ModuleList(), [widths[0]], widths[0]
        for level in range(len(widths)):
            if level > 0:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(block(width, level))
                width = widths[level]
                skips.append(width)
        self.middle = block(width, len(widths) - 1)
        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), level))
                width = widths[level]
            if level > 0:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
        width = detail if patch > 1 else width
        self.last_norm = nn.GroupNorm(groups_for(width), width)
        self.last = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, scalar: Tensor, labels: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """Args: x float (B, C, H, W); scalar (B,); labels int64 (B,), required iff built with num_classes."""
        height, width = x.shape[2:]
        embedding = self.embed_scalar(scalar)
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(labels)
        embedding = F.silu(embedding)

        bottom, right = -height % self.patch, -width % self.patch
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        fine = h = self.stem(x)
        if self.patch > 1:
            h = self.fold(F.pixel_unshuffle(fine, self.patch))
        skips = [h]
        for i, layer in enumerate(self.down):
            h = layer(h) if isinstance(layer, nn.Conv2d) else layer(h, embedding, _fork(noise, f"down{i}"))
            skips.append(h)
        h = self.middle(h, embedding, _fork(noise, "middle"))
        for i, layer in enumerate(self.up):
            if isinstance(layer, nn.Conv2d):
                rows, columns = skips[-1].shape[2:]
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest")[:, :, :rows, :columns])
            else:
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding, _fork(noise, f"up{i}"))
        if self.patch > 1:
            h = torch.cat([F.pixel_shuffle(self.unfold(h), self.patch), fine], dim=1)
            h = self.merge(h, embedding, _fork(noise, "merge"))
        return self.last(F.silu(self.last_norm(h)))[:, :, :height, :width]


def _fork(noise: Noise | None, name: str) -> Noise | None:
    return None if noise is None else noise.fork(name)
