"""What is shown of latents: what comes back of images, and the directions in which latents vary the most."""

from __future__ import annotations

import torch
from torch import Tensor

from calotype.core.model import Batch, Encodable
from calotype.evaluation.views import FEW, REACH, STEPS, views


class Planes(Encodable):
    """Images of one value per row and column, which are its latents; the first axes vary the most."""

    def __init__(self, side: int, label: int | None = None) -> None:
        self.side, self.label = side, label

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images.flatten(1).float()

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.label is not None:
            assert labels is not None
            assert labels.tolist() == [self.label] * len(latents) or len(latents) != STEPS
        return latents.round().clamp(0, 255).to(torch.uint8).view(-1, 1, self.side, self.side)


def spread(side: int, n: int = 40) -> Tensor:
    """Images whose pixel 5 has a deviation of 30, pixel 2 one of 10, and others none."""
    signs = torch.arange(n)
    images = torch.full((n, side * side), 100.0)
    images[:, 5] += 30.0 * (1 - 2 * (signs % 2))
    images[:, 2] += 10.0 * (1 - 2 * (signs // 2 % 2))
    return images.to(torch.uint8).view(n, 1, side, side)


def test_few_latents_are_looked_at_one_by_one() -> None:
    images = spread(4)
    seen = views(Planes(4), Batch(images, None), torch.device("cpu"))
    assert [caption.split(",")[0] for caption, _ in seen.traversals] == ["latent 5", "latent 2"]
    along = seen.traversals[0][1].flatten(1).float()
    assert along.shape == (STEPS, 16)
    deviation = 30 * (40 / 39) ** 0.5
    expected = (130 + torch.linspace(-REACH, REACH, STEPS) * deviation).round()
    assert torch.equal(along[:, 5], expected)
    others = [k for k in range(16) if k != 5]
    assert torch.equal(along[:, others], images[:1].flatten(1).float()[:, others].expand(STEPS, -1))
    assert all(torch.equal(image, back) for image, back in seen.pairs)


def test_many_latents_are_looked_at_along_the_directions_that_vary_the_most() -> None:
    images = spread(9)
    assert images[0].numel() > FEW
    seen = views(Planes(9), Batch(images, None), torch.device("cpu"))
    assert [caption for caption, _ in seen.traversals[:2]] == [
        "direction 1, 90.0% of the variance",
        "direction 2, 10.0% of the variance",
    ]
    moved = [(t.flatten(1).float().std(0) > 0).nonzero().flatten().tolist() for _, t in seen.traversals[:2]]
    assert moved == [[5], [2]]


def test_classes_go_along() -> None:
    labels = torch.tensor([3] + [1] * 39)
    seen = views(Planes(4, label=3), Batch(spread(4), labels), torch.device("cpu"))
    assert len(seen.traversals) == 2
