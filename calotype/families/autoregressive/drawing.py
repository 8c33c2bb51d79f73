"""Drawing images pixel by pixel, each layer keeping what the next pixels need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calotype.nn.causal import PixelNetwork, Place, canvas_of
from calotype.nn.distributions import AS_LEARNED, Distribution, Taste
from calotype.nn.native import loop

Evaluate = Callable[[Tensor, int, int], Tensor]
"""(canvas, row, column) -> the network's numbers (B, outputs) for that pixel."""


class Guide(NamedTuple):
    """Towards more of what the class adds: logits = logits_none + weight (logits_class - logits_none)."""

    weight: float
    none: int  # the label of no class


class Drawn(NamedTuple):
    """Images, and how probable the model says that they are."""

    images: Tensor  # uint8 (B, C, H, W)
    log_prob: Tensor  # nats of the pixels that were drawn, float64 (B,); where it was asked for


def draw(
    network: PixelNetwork,
    distribution: Distribution,
    images: Tensor,
    known: int,
    uniforms: Tensor,
    labels: Tensor | None,
    taste: Taste = AS_LEARNED,
    guide: Guide | None = None,
    probable: bool = False,
    compiled: bool = True,
    wave: bool | None = None,
) -> Drawn:
    """Draw the pixels of images from the `known`-th on, in raster order; those before are kept.

    Args:
        images: uint8 (B, C, H, W); what is in them from there on is not looked at.
        uniforms: (B, H, W, distribution.draws) in [0, 1).
        guide: of what is drawn; it doubles the time. For distributions of logits, and with labels.
        probable: whether to say how probable what is drawn is, which takes time.
        compiled: whether to use the compiled loop where it can be had, which is the faster and agrees to rounding.
        wave: whether the compiled loop draws all rows together, each so far behind the one above that what its pixels
            see is there; None: where that is the faster. Not with a guide.

    A pixel costs the same in any row and column, but for attention, and nothing is computed twice.
    """
    if guide is not None:
        images, uniforms, labels = _pairs(images, uniforms, labels, guide)
    if compiled and not probable and loop.usable(network, distribution, uniforms, taste):
        pixels = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
        loop.draw(network, distribution, pixels, known, uniforms, labels, taste, wave, guide.weight if guide else None)
        found = pixels.permute(0, 3, 1, 2).contiguous()
        return _once(Drawn(found, torch.full((len(images),), torch.nan)), guide)
    memory: dict[nn.Module, Any] = {}
    width = images.shape[3]
    above: Any = None
    entered = -1

    def evaluate(canvas: Tensor, row: int, column: int) -> Tensor:
        nonlocal above, entered
        if row > entered:
            above, entered = network.above(canvas, labels, Place(memory, width, row), None), row
        return network.beside(canvas, above, labels, Place(memory, width, row, column), None)[:, 0, 0]

    drawn = _draw(evaluate, network, distribution, images, known, uniforms, taste, guide, probable)
    return _once(drawn, guide)


def draw_naively(
    network: PixelNetwork,
    distribution: Distribution,
    images: Tensor,
    known: int,
    uniforms: Tensor,
    labels: Tensor | None,
    taste: Taste = AS_LEARNED,
    guide: Guide | None = None,
    probable: bool = False,
) -> Drawn:
    """What `draw` gives, by computing all pixels anew for each: what it is checked against, and slow."""

    if guide is not None:
        images, uniforms, labels = _pairs(images, uniforms, labels, guide)

    def evaluate(canvas: Tensor, row: int, column: int) -> Tensor:
        seen = canvas[:, network.margin :, network.margin : -network.margin, :-1]
        return network.numbers(seen, labels)[:, row, column]

    drawn = _draw(evaluate, network, distribution, images, known, uniforms, taste, guide, probable)
    return _once(drawn, guide)


def _pairs(images: Tensor, uniforms: Tensor, labels: Tensor | None, guide: Guide) -> tuple[Tensor, Tensor, Tensor]:
    """Each image twice, one after the other: of its class, and of none."""
    assert labels is not None
    both = torch.stack([labels, torch.full_like(labels, guide.none)], 1).flatten()
    return images.repeat_interleave(2, 0), uniforms.repeat_interleave(2, 0), both


def _once(drawn: Drawn, guide: Guide | None) -> Drawn:
    """Of pairs the first image; the second is the same."""
    return drawn if guide is None else Drawn(*(x[::2].contiguous() for x in drawn))


def _draw(
    evaluate: Evaluate,
    network: PixelNetwork,
    distribution: Distribution,
    images: Tensor,
    known: int,
    uniforms: Tensor,
    taste: Taste,
    guide: Guide | None,
    probable: bool,
) -> Drawn:
    b, channels, high, wide = images.shape
    pixels = images.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    given = torch.arange(high * wide, device=images.device).reshape(high, wide) < known
    pixels[:, ~given] = 0
    canvas = canvas_of(network.encode(pixels), network.margin)
    log_prob = torch.zeros(b, dtype=torch.float64)
    alone = type(distribution)(1) if network.ordered else distribution
    for row in range(high):
        for column in range(wide):
            place = canvas[:, network.margin + row, network.margin + column]
            drawing = row * wide + column >= known
            for c in range(channels) if network.ordered else range(1):
                numbers = evaluate(canvas, row, column)
                if not drawing:
                    break
                if guide is not None:
                    of_class, none = numbers[::2], numbers[1::2]
                    numbers = (none + guide.weight * (of_class - none)).repeat_interleave(2, 0)
                if network.ordered:
                    numbers = distribution.channel(numbers, c)
                part = slice(c, c + 1) if network.ordered else slice(None)
                drawn = alone.sample(numbers, uniforms[:, row, column, part], taste)
                if probable:
                    log_prob += alone.log_prob(numbers, drawn).double().cpu()
                pixels[:, row, column, part] = drawn
                place[:, :-1] = network.encode(pixels[:, row, column])
    return Drawn(pixels.permute(0, 3, 1, 2).contiguous(), log_prob)
