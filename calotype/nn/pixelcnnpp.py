"""PixelCNN++: two stacks of gated residual blocks in a U, that give all channels of a pixel at once.

Of the stack u a row knows the rows above, of the stack l a pixel also the pixels before it in its row:

    u <- u + gate(A * elu(B * elu(u) + a)),      l <- l + gate(A' * elu(B' * elu(l) + N elu(u, a'))),

where elu is of x and -x together, gate(a, b) = a sigmoid(b), and a are, on the way up, the maps of the way down at the
same resolution. Between levels of resolution are convolutions of stride 2, and their transposes. One level alone is
the small network of the paper, whose field is 15 x 8 pixels with 6 blocks.

Source: Salimans et al. 2017, arXiv:1701.05517, sections 2.3 to 2.5 and 3.3, and github.com/openai/pixel-cnn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.nn.causal import Own, PixelNetwork, Place, here
from calotype.nn.causal_layers import CausalConv, FirstConv, below, unfolded
from calotype.nn.layers import dropout, fork


class PixelCNNpp(PixelNetwork):
    """Two stacks of gated residual blocks.

    Args:
        channels: of the image.
        outputs: numbers per pixel.
        widths: features per level, finest first; each level has half the resolution of the one before, rounded up.
        blocks: per level, on the way down; on the way up one more, but on the lowest.
        num_classes: of the labels; 0: none.
        dropout_rate: within blocks, where there is noise.
    """

    margin = 2
    ordered = False

    def __init__(
        self,
        channels: int,
        outputs: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        num_classes: int = 0,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        width, self.halvings = widths[0], len(widths) - 1
        self.first_above = FirstConv(channels, width, (-2, -1), (-1, 1))
        self.first_row = FirstConv(channels, width, (-1, -1), (-1, 1))
        self.first_left = FirstConv(channels, width, (-1, 0), (-1, -1))
        self.level = Level(widths, blocks, num_classes, dropout_rate)
        self.last = nn.Linear(2 * width, outputs)

    def above(self, canvas: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Above:
        """The maps of the upper stack for whole images, or for the row at a place."""
        row = self.first_row(canvas, self.margin, at)
        u = self.first_above(canvas, self.margin, at)
        maps, _ = self.level.above(u, labels, at, fork(noise, "above"))
        return Above(row, maps)

    def beside(
        self,
        canvas: Tensor,
        above: Above,
        labels: Tensor | None,
        at: Place | None,
        noise: Noise | None,
    ) -> Tensor:
        """The parameters of all pixels (B, H, W, outputs), or of the pixel at a place (B, 1, 1, outputs)."""
        x = self.first_left(canvas, self.margin, at) + here(above.row, at)
        x = self.level.beside(x, above.maps, labels, at, fork(noise, "beside"))
        return self.last(concat_elu(x))


class Above(NamedTuple):
    """The maps of the upper stack that the left one reads."""

    row: Tensor  # of the row above, for the first layer
    maps: Maps


class Maps(NamedTuple):
    """The upper stack's maps of a level: after each of its blocks."""

    first: Sequence[Tensor]
    lower: Maps | None  # of the levels below; None where there are none, or they have no row here
    second: Sequence[Tensor]


class Level(nn.Module):
    """Pairs of blocks at one resolution, the levels below, and pairs again that also see what the first gave."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        width, lowest = widths[0], len(widths) == 1

        def pairs(count: int, skips: bool) -> tuple[nn.ModuleList, nn.ModuleList]:
            upper = [Block(width, 1 if skips else 0, (1, 1, 1), num_classes, dropout_rate) for _ in range(count)]
            left = [Block(width, 2 if skips else 1, (1, 1, 0), num_classes, dropout_rate) for _ in range(count)]
            return nn.ModuleList(upper), nn.ModuleList(left)

        self.first_upper, self.first_left = pairs(blocks[0], skips=False)
        self.second_upper, self.second_left = pairs(blocks[0] + (not lowest), skips=True)
        self.lower: Level | None = None
        if not lowest:
            self.halve_upper = CausalConv(width, widths[1], 1, 1, 1, own="all", stride=2)
            self.halve_left = CausalConv(width, widths[1], 1, 1, 0, stride=2)
            self.lower = Level(widths[1:], blocks[1:], num_classes, dropout_rate)
            self.double_upper = nn.Linear(widths[1], 4 * width)
            self.double_left = nn.Linear(widths[1], 4 * width)

    def above(self, u: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> tuple[Maps, Tensor]:
        """The maps of the upper stack, and the last of them."""
        skips, second = [u], []
        for k, block in enumerate(self.first_upper):
            u = block(u, (), labels, at, fork(noise, f"first{k}"))
            skips.append(u)
        first, lower_maps = skips[1:], None
        if self.lower is None:
            u = skips.pop()
        else:
            level, halved = self.lower, self.halve_upper(u, at)

            def run(place: Place | None) -> Tensor:
                nonlocal lower_maps
                lower_maps, last = level.above(halved, labels, place, fork(noise, "lower"))
                return self.double_upper(last)

            u = unfolded(below(at, self.double_upper, run), u.shape[1], u.shape[2], at)
        for k, block in enumerate(self.second_upper):
            u = block(u, (skips.pop(),), labels, at, fork(noise, f"second{k}"))
            second.append(u)
        return Maps(first, lower_maps, second), u

    def beside(self, x: Tensor, maps: Maps, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Tensor:
        """The left stack, given the maps of the upper one."""
        skips = [x]
        for k, (block, u) in enumerate(zip(self.first_left, maps.first, strict=True)):
            x = block(x, (here(u, at),), labels, at, fork(noise, f"first{k}"))
            skips.append(x)
        if self.lower is None:
            x = skips.pop()
        else:
            level, halved = self.lower, self.halve_left(x, at)

            def run(place: Place | None) -> Tensor:
                assert maps.lower is not None
                return self.double_left(level.beside(halved, maps.lower, labels, place, fork(noise, "lower")))

            x = unfolded(below(at, self.double_left, run), x.shape[1], x.shape[2], at)
        for k, (block, u) in enumerate(zip(self.second_left, maps.second, strict=True)):
            x = block(x, (here(u, at), skips.pop()), labels, at, fork(noise, f"second{k}"))
        return x


class Block(nn.Module):
    """A gated residual block, conditioned on other maps of the same width and on the class.

    Args:
        width: features.
        others: the number of maps that condition it.
        window: rows above, columns to the left and to the right that its convolutions see.
    """

    def __init__(
        self, width: int, others: int, window: tuple[int, int, int], num_classes: int, dropout_rate: float
    ) -> None:
        super().__init__()
        self.dropout_rate = dropout_rate
        own: Own = "all" if window[2] else "B"
        self.enter = CausalConv(2 * width, width, *window, own=own)
        self.others = nn.Linear(2 * others * width, width, bias=False) if others else None
        self.leave = CausalConv(2 * width, 2 * width, *window, own=own)
        self.embed = nn.Embedding(num_classes, 2 * width) if num_classes else None
        with torch.no_grad():
            self.leave.conv.weight.mul_(0.1)

    def forward(
        self, x: Tensor, others: Sequence[Tensor], labels: Tensor | None, at: Place | None, noise: Noise | None
    ) -> Tensor:
        """Map features (B, H, W, C), or their part at a place, to the same shape."""
        inner = self.enter(concat_elu(x), at)
        if self.others is not None:
            inner = inner + self.others(concat_elu(torch.cat(list(others), -1)))
        inner = self.leave(dropout(concat_elu(inner), self.dropout_rate, noise), at)
        if self.embed is not None:
            inner = inner + self.embed(labels)[:, None, None]
        a, b = inner.chunk(2, -1)
        return x + a * torch.sigmoid(b)


def concat_elu(x: Tensor) -> Tensor:
    """elu of x and of -x, one after the other: twice as many channels."""
    return F.elu(torch.cat([x, -x], -1))
