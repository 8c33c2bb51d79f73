"""PixelCNN and Gated PixelCNN: masked convolutions, with the channels of a pixel in order.

PixelCNN (van den Oord et al. 2016, arXiv:1601.06759) is one stack of masked 3 x 3 convolutions,

    h <- h + W3 relu(W2 * relu(W1 relu(h))),     W2 masked, 3 x 3, W1 and W3 pointwise,

and does not see all that is before: what is above and to the right, beyond a slope of one column a row, is its blind
spot. Gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328) has none: a vertical stack v sees the rows above in
whole, and a horizontal stack h the own row and v,

    v <- g(V * v + c),    h <- h + W g(H * h + U v' + c'),    g(a, b) = tanh(a) sigmoid(b),

v' being V * v + c before the gate, and c, c' biases that depend on the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.nn.causal import PixelNetwork, Place, Reach, either, here, through
from calotype.nn.causal_layers import CausalConv, FirstConv
from calotype.nn.layers import dropout, fork


class PixelCNN(PixelNetwork):
    """One stack: a masked 7 x 7 convolution, residual blocks, and two pointwise layers.

    Args:
        channels: of the image.
        outputs: numbers per pixel.
        width: features; within a block half as many.
        blocks: of the stack.
        head: features of the two last hidden layers.
        num_classes: of the labels; 0: none.
        dropout_rate: within blocks, where there is noise.
        ordered: whether channels of a pixel see those before them.
        block: what the blocks are, made of (width, channels in order, num_classes, dropout_rate); by default masked
            convolutions, and with the layers of `calotype.nn.pixelrnn` this is PixelRNN.
        recordable: whether such blocks can be recorded.
    """

    margin = 3

    def __init__(
        self,
        channels: int,
        outputs: int,
        width: int,
        blocks: int,
        head: int,
        num_classes: int = 0,
        dropout_rate: float = 0.0,
        ordered: bool = True,
        block: Callable[[int, int, int, float], nn.Module] | None = None,
        recordable: bool = True,
    ) -> None:
        super().__init__()
        self.ordered, self.recordable = ordered, recordable
        order, make = channels if ordered else 1, block or MaskedBlock
        self.first = FirstConv(channels, width, (-3, 0), (-3, 3), ordered)
        self.blocks = nn.ModuleList(make(width, order, num_classes, dropout_rate) for _ in range(blocks))
        self.head = nn.ModuleList([CausalConv(width, head, channels=order), CausalConv(head, head, channels=order)])
        self.last = CausalConv(head, outputs, channels=order)

    def reach(self) -> Reach | None:
        """The reach of all convolutions together; None for blocks that are not MaskedBlock."""
        layers = [block.conv.reach for block in self.blocks if isinstance(block, MaskedBlock)]
        return through(self.first.reach, *layers) if len(layers) == len(self.blocks) else None

    def above(self, canvas: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> None:
        """None: this network has a single stack, computed in `beside`."""
        return None

    def beside(
        self,
        canvas: Tensor,
        above: None,
        labels: Tensor | None,
        at: Place | None,
        noise: Noise | None,
    ) -> Tensor:
        """The parameters of all pixels (B, H, W, outputs), or of the pixel at a place (B, 1, 1, outputs)."""
        h = self.first(canvas, self.margin, at)
        for k, block in enumerate(self.blocks):
            h = block(h, labels, at, fork(noise, k))
        for layer in self.head:
            h = layer(F.relu(h), at)
        return self.last(F.relu(h), at)


class MaskedBlock(nn.Module):
    """A residual block of PixelCNN, biased by the class."""

    def __init__(self, width: int, order: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        self.dropout_rate = dropout_rate
        self.enter = CausalConv(width, width // 2, channels=order)
        self.conv = CausalConv(width // 2, width // 2, 1, 1, 1, channels=order)
        self.leave = CausalConv(width // 2, width, channels=order)
        self.embed = nn.Embedding(num_classes, width // 2) if num_classes else None

    def forward(self, h: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Tensor:
        """Map features (B, H, W, C), or their part at a place, to the same shape."""
        inner = self.conv(F.relu(self.enter(F.relu(h), at)), at)
        if self.embed is not None:
            inner = inner + self.embed(labels)[:, None, None]
        return h + self.leave(dropout(F.relu(inner), self.dropout_rate, noise), at)


class GatedPixelCNN(PixelNetwork):
    """A vertical and a horizontal stack of gated convolutions; arguments as for PixelCNN."""

    margin = 3

    def __init__(
        self,
        channels: int,
        outputs: int,
        width: int,
        blocks: int,
        head: int,
        num_classes: int = 0,
        dropout_rate: float = 0.0,
        ordered: bool = True,
    ) -> None:
        super().__init__()
        self.ordered, self.dropout_rate = ordered, dropout_rate
        order = channels if ordered else 1
        self.first_above = FirstConv(channels, 2 * width, (-3, -1), (-3, 3), parts=2)
        self.first_beside = FirstConv(channels, 2 * width, (0, 0), (-3, 0), ordered, parts=2)
        self.first_leave = CausalConv(width, width, channels=order)
        self.above_convs = nn.ModuleList(CausalConv(width, 2 * width, 1, 1, 1, own="all") for _ in range(blocks))
        self.beside_convs = nn.ModuleList(
            CausalConv(width, 2 * width, 0, 1, 0, channels=order, parts=2, bias=False) for _ in range(blocks)
        )
        self.down = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in range(blocks + 1))
        self.leave = nn.ModuleList(CausalConv(width, width, channels=order) for _ in range(blocks))
        self.embed = nn.Embedding(num_classes, 4 * width * (blocks + 1)) if num_classes else None
        self.head = CausalConv(width, head, channels=order)
        self.last = CausalConv(head, outputs, channels=order)

    def reach(self) -> Reach | None:
        """The larger reach of the vertical stack and the first layer of the horizontal one."""
        above = [cast(CausalConv, conv).reach for conv in self.above_convs]
        return either(through(self.first_above.reach, *above), self.first_beside.reach)

    def above(self, canvas: Tensor, labels: Tensor | None, at: Place | None, noise: Noise | None) -> Sequence[Tensor]:
        """The vertical stack: a map (B, H, W, 2 width) for each horizontal layer, or its row at a place."""
        biases = self._biases(labels)
        v, maps = self.first_above(canvas, self.margin, at), []
        for k, down in enumerate(self.down):
            if k > 0:
                v = self.above_convs[k - 1](v, at)
            mapped = down(v)
            if biases is not None:
                v, mapped = v + biases[k][0], mapped + biases[k][1]
            maps.append(mapped)
            v = gated(v)
        return maps

    def beside(
        self,
        canvas: Tensor,
        above: Sequence[Tensor],
        labels: Tensor | None,
        at: Place | None,
        noise: Noise | None,
    ) -> Tensor:
        """The parameters of all pixels (B, H, W, outputs), or of the pixel at a place (B, 1, 1, outputs)."""
        h = gated(self.first_beside(canvas, self.margin, at) + here(above[0], at))
        h = self.first_leave(h, at)
        for k, (conv, leave) in enumerate(zip(self.beside_convs, self.leave, strict=True)):
            inner = gated(conv(h, at) + here(above[k + 1], at))
            h = h + leave(dropout(inner, self.dropout_rate, fork(noise, k)), at)
        return self.last(F.relu(self.head(F.relu(h), at)), at)

    def _biases(self, labels: Tensor | None) -> list[tuple[Tensor, Tensor]] | None:
        """Of the two stacks for each layer, (B, 1, 1, 2 width)."""
        if self.embed is None:
            return None
        each = self.embed(labels)[:, None, None].chunk(len(self.down), -1)
        return [(pair[..., : pair.shape[-1] // 2], pair[..., pair.shape[-1] // 2 :]) for pair in each]


def gated(x: Tensor) -> Tensor:
    """tanh(a) sigmoid(b) of the halves a, b of the channels."""
    a, b = x.chunk(2, -1)
    return torch.tanh(a) * torch.sigmoid(b)
