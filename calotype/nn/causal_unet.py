"""A causal U-Net: one stack of masked convolutions at several resolutions, with attention at the low ones.

Each block sees its own pixel, the one before, and three of the row above,

    h <- h + glu(W * silu(norm(h) + a)),

a being a bias of the class. Between levels are a masked convolution of stride 2 and a linear map to 2 x 2 pixels; all
that a low map knows at (R, C) is from before the pixel (2 R, 2 C), so that it may be added from there on. One stack
costs half of the two of Gated PixelCNN and PixelCNN++, and lower levels a quarter and a sixteenth of the finest. What
a stack of masked convolutions cannot see, above and far to the right, attention does; and it costs little where
positions are few.

Where the channels x_1 to x_C of a pixel are in order, each after the first has a hidden layer of its own, which sees
those before it by tables T_d of 256 rows, and scores of its 256 values,

    scores_c = V_c silu(U_c h + sum_{d<c} T_cd[x_d]) + raised,

raised at the value of channel c of each of nine pixels nearby, and once more there if its channels before c are those
of the own pixel: so a pixel repeats whole colours, whichever they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.nn.causal import PixelNetwork, Place, Reach, either, here, through
from calotype.nn.causal_layers import CausalAttention, CausalConv, FirstConv, below, unfolded
from calotype.nn.layers import dropout, fork, zeroed
from calotype.nn.native.recorder import Vector

LEVELS = 256  # of a value

# Pixels whose value the next may repeat: rows above, columns before.
NEARBY = ((0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, -1), (1, 2), (1, -2), (2, 0))


class CausalUNet(PixelNetwork):
    """Masked convolutions at several resolutions.

    Args:
        channels: of the image.
        outputs: numbers per pixel.
        size: height and width of the image.
        widths: features per level, finest first; each level has half the resolution of the one before, rounded up.
        blocks: per level; but for the lowest as many on the way down as on the way up.
        attention: levels whose blocks are each followed by attention, on the way up; 0 is the finest.
        num_classes: of the labels; 0: none.
        dropout_rate: within blocks, where there is noise.
        tables: whether a pixel is seen by features of its values from tables, beside the values themselves.
        copies: whether the numbers, scores of the values of a channel, may be raised at the values of pixels nearby.
            Values that come again and again, as in drawings and along straight edges, need not be learned one by one.
            Of several channels, which are ordered then, each is also raised where those before it are the same.
        ordered: whether channels of a pixel see those before them, through a hidden layer for each channel.
    """

    margin = 3

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: tuple[int, int],
        widths: Sequence[int],
        blocks: Sequence[int],
        attention: Collection[int] = (),
        num_classes: int = 0,
        dropout_rate: float = 0.0,
        tables: bool = True,
        copies: bool = False,
        ordered: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.ordered = channels, ordered
        width, self.halvings = widths[0], len(widths) - 1
        embedding = -(channels + 1) % 16 if tables else 0  # 16 features with values and mark, which fill a vector
        self.values = nn.Embedding(LEVELS * channels, embedding) if tables else None
        self.first = FirstConv(channels + embedding, width, (-3, 0), (-3, 3))
        self.rows = nn.Parameter(nn.init.normal_(torch.empty(size[0], 1, width), std=0.1))
        self.columns = nn.Parameter(nn.init.normal_(torch.empty(size[1], width), std=0.1))
        self.level = Level(widths, blocks, attention, num_classes, dropout_rate)
        self.norm = nn.LayerNorm(width)
        first = outputs // channels if ordered else outputs
        self.last = zeroed(nn.Linear(width, first))
        self.copy = zeroed(nn.Linear(width, len(NEARBY))) if copies else None
        self.further = nn.ModuleList(
            FurtherChannel(width, first, channel, copies) for channel in range(1, channels if ordered else 1)
        )

    def reach(self) -> Reach | None:
        """The reach of the convolutions at full resolution; None with further levels or attention."""
        if self.level.lower is not None or self.level.attention:
            return None
        seen = through(self.first.reach, *(cast(Block, block).conv.reach for block in self.level.up))
        copied = {up: max(0, *(-before for rows, before in NEARBY if rows == up)) for up, _ in NEARBY}
        return either(seen, copied) if self.copy is not None else seen

    def encode(self, pixels: Tensor) -> Tensor:
        """Values in [-1, 1] and, with tables, an embedding of each byte: uint8 (..., C) to float (..., features)."""
        x = super().encode(pixels)
        if self.values is None:
            return x
        tables = LEVELS * torch.arange(pixels.shape[-1], device=pixels.device)
        return torch.cat([x, self.values(pixels + tables).sum(-2)], -1)

    def above(self, canvas: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Tensor:
        """Embeddings of row and column: (1, H, W, width), or those of the row at a place (1, 1, W, width)."""
        whole = at is None or (at.recorder is not None and at.recorder.wave)
        rows = self.rows if at is None or whole else self.rows[at.row : at.row + 1]
        return (rows + self.columns)[None]  # what a pixel's place says, (1, H or 1, W, width)

    def beside(
        self,
        canvas: Tensor,
        above: Tensor,
        labels: Tensor | None,
        at: Place | None,
        noise: Noise | None,
    ) -> Tensor:
        """The parameters of all pixels (B, H, W, outputs), or of the pixel at a place (B, 1, 1, outputs)."""
        x = self.first(canvas, self.margin, at) + here(above, at)
        x = F.silu(self.norm(self.level(x, labels, at, noise)))
        nearby = _Nearby(canvas, self.margin, self.channels, at) if self.ordered or self.copy is not None else None
        numbers = self.last(x)
        if self.copy is not None:
            assert nearby is not None
            numbers = nearby.raised(numbers, self.copy(x), 0)
        if nearby is None or not self.further:
            return cast(Tensor, numbers)
        return torch.cat([numbers, *(layer(x, nearby) for layer in self.further)], -1)


class _Nearby:
    """The values of the own pixel and of those nearby, for whole images or at a place."""

    def __init__(self, canvas: Tensor, margin: int, channels: int, at: Place | None) -> None:
        self.recorder = None if at is None else at.recorder
        if self.recorder is not None:
            return  # what is recorded looks at the canvas itself
        m, high, wide, top, left = margin, canvas.shape[1] - margin, canvas.shape[2] - 2 * margin, margin, margin
        if at is not None:
            assert at.column is not None
            top, left, high, wide = m + at.row, m + at.column, 1, 1

        def seen(x: Tensor) -> Tensor:
            parts = [x[:, top - up : top - up + high, left - dx : left - dx + wide] for up, dx in NEARBY]
            return torch.stack(parts, -1)

        values = ((canvas[..., :channels] + 1) * 127.5).round().long()
        self.own = values[:, top : top + high, left : left + wide].unbind(-1)  # per channel (B, H, W)
        self.near = [seen(x) for x in values.unbind(-1)]  # per channel (B, H, W, nearby)
        self.inside = seen(1 - canvas[..., -1])  # 1 inside of the image, else 0

    def embedded(self, table: nn.Embedding, channel: int) -> Tensor:
        """The features of the own pixel's value of a channel."""
        if self.recorder is not None:
            return cast(Tensor, self.recorder.embedded(table.weight, channel))
        found: Tensor = table(self.own[channel])
        return found

    def raised(self, scores: Tensor, by: Tensor, channel: int) -> Tensor:
        """The scores of a channel's values, raised at those of pixels nearby.

        Args:
            by: how much for each pixel nearby; behind that, of channels that are not the first, how much more where
                the channels before are the same in that pixel: (B, H, W, nearby or 2 nearby).
        """
        if self.recorder is not None:
            return cast(Tensor, self.recorder.raised(cast(Vector, scores), cast(Vector, by), NEARBY, channel))
        amount = by[..., : len(NEARBY)]
        if channel:
            same = torch.stack([self.own[d][..., None] == self.near[d] for d in range(channel)]).all(0)
            amount = amount + by[..., len(NEARBY) :] * same
        return scores.scatter_add_(-1, self.near[channel], (amount * self.inside).to(scores.dtype))


class FurtherChannel(nn.Module):
    """The numbers of a channel that sees those before it in its own pixel, by features of their values from tables.

    Args:
        width: features.
        outputs: numbers.
        channel: from 1; as many channels are before it.
        copies: as of the network.
    """

    def __init__(self, width: int, outputs: int, channel: int, copies: bool) -> None:
        super().__init__()
        self.channel = channel
        self.enter = nn.Linear(width, width)
        self.values = nn.ModuleList(nn.Embedding(LEVELS, width) for _ in range(channel))
        for table in self.values:
            nn.init.normal_(cast(nn.Embedding, table).weight, std=0.5)
        self.last = zeroed(nn.Linear(width, outputs))
        self.copy = zeroed(nn.Linear(width, 2 * len(NEARBY))) if copies else None

    def forward(self, x: Tensor, nearby: _Nearby) -> Tensor:
        """The logits of this channel from features of the pixel: (B, H, W, width) to (B, H, W, outputs)."""
        h = self.enter(x)
        for d, table in enumerate(self.values):
            h = h + nearby.embedded(cast(nn.Embedding, table), d)
        h = F.silu(h)
        numbers: Tensor = self.last(h)
        return numbers if self.copy is None else nearby.raised(numbers, self.copy(h), self.channel)


class Level(nn.Module):
    """Blocks at one resolution, the levels below, and blocks again."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        attention: Collection[int],
        num_classes: int,
        dropout_rate: float,
    ) -> None:
        super().__init__()
        width = widths[0]

        def some() -> nn.ModuleList:
            return nn.ModuleList(Block(width, num_classes, dropout_rate) for _ in range(blocks[0]))

        self.lower: Level | None = None
        self.down = nn.ModuleList()
        if len(widths) > 1:
            self.down = some()
            self.to_lower = CausalConv(width, widths[1], 1, 1, 1, stride=2)
            self.lower = Level(widths[1:], blocks[1:], [k - 1 for k in attention], num_classes, dropout_rate)
            self.from_lower = nn.Linear(widths[1], 4 * width)
        self.up = some()
        heads = max(1, width // 32)
        self.attention = nn.ModuleList(CausalAttention(width, heads) for _ in self.up if 0 in attention)

    def forward(self, x: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Tensor:
        """Map features (B, H, W, C), or their part at a place, to the same shape."""
        for k, block in enumerate(self.down):
            x = block(x, labels, at, fork(noise, f"down{k}"))
        if self.lower is not None:
            level, halved = self.lower, self.to_lower(x, at)

            def run(place: Place | None) -> Tensor:
                return self.from_lower(level(halved, labels, place, fork(noise, "lower")))

            x = x + unfolded(below(at, self.from_lower, run), x.shape[1], x.shape[2], at)
        for k, block in enumerate(self.up):
            x = block(x, labels, at, fork(noise, f"up{k}"))
            if self.attention:
                x = self.attention[k](x, at)
        return x


class Block(nn.Module):
    """A residual block of one masked convolution, which starts small."""

    def __init__(self, width: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        self.dropout_rate = dropout_rate
        self.norm = nn.LayerNorm(width)
        self.embed = nn.Embedding(num_classes, width) if num_classes else None
        self.conv = CausalConv(width, 2 * width, 1, 1, 1)
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, x: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Tensor:
        """Map features (B, H, W, C), or their part at a place, to the same shape."""
        h = self.norm(x)
        if self.embed is not None:
            h = h + self.embed(labels)[:, None, None]
        return x + F.glu(self.conv(dropout(F.silu(h), self.dropout_rate, noise), at), -1)
