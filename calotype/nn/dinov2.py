"""The vision transformer of DINOv2, as its weights are published: patches of 14, scaled residuals, no registers.

The names of its parameters are those of files such as `dinov2_vitl14_pretrain.pth`.
Source: Oquab et al. 2023, arXiv:2304.07193.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.errors import ConfigError
from calotype.nn.loading import load

SIDE = 224  # of the images
PATCH = 14
STORED = 37  # patches a side that positions are stored for
HEAD = 64  # channels per head, in all sizes
OFFSET = 0.1  # patches by which positions are stretched too far, as the weights were published


class Scale(nn.Module):
    """A factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same."""
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention of all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, d // HEAD, HEAD).permute(2, 0, 3, 1, 4)  # (B, heads, N, HEAD) each
        found: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return found


class Mlp(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same."""
        found: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return found


class Block(nn.Module):
    """Attention, then an MLP, each normalised before and scaled after."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), Mlp(width, inner)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    """An image as a vector for each patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, D)."""
        found: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return found


class DinoV2(nn.Module):
    """Images to the features of the class token.

    Args:
        width: channels, a multiple of 64.
        depth: blocks.
        inner: channels within the MLPs.
    """

    def __init__(self, width: int, depth: int, inner: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, STORED**2 + 1, width))
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self) -> Tensor:
        """The position embedding of the class token and the patches of a 224 x 224 image: (1, 257, D)."""
        side = SIDE // PATCH
        stored = self.pos_embed[:, 1:].unflatten(1, (STORED, STORED)).permute(0, 3, 1, 2)
        factor = (side + OFFSET) / STORED
        found = F.interpolate(stored, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], found.flatten(2).transpose(1, 2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224), normalised as ImageNet is, to (B, D)."""
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.positions()
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.norm(x[:, 0])
        return found


def dinov2(weights: Mapping[str, Tensor]) -> DinoV2:
    """The network of a size that is read off its weights. Raises ConfigError where they do not fit."""
    if "blocks.0.mlp.w12.weight" in weights or "register_tokens" in weights:
        raise ConfigError(
            "these weights of DINOv2 are of the giant size or have registers: use vits14, vitb14 or vitl14"
        )
    inner = weights.get("blocks.0.mlp.fc1.weight")
    if inner is None or inner.ndim != 2:
        raise ConfigError("these are no weights of DINOv2: use the file of vits14, vitb14 or vitl14")
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    return load(DinoV2(inner.shape[1], depth, inner.shape[0]), weights, aside=("mask_token",))
