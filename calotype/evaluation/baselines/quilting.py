"""Image quilting: overlapping patches of training images, placed row by row and cut where they differ least.

For each position some candidate patches are drawn at random; one is taken of those whose difference from the existing
overlap is close to the minimum; within the overlap, the boundary is the path of least difference.

Source: Efros and Freeman 2001, "Image Quilting for Texture Synthesis and Transfer", SIGGRAPH.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calotype.core.images import to_bytes, to_unit
from calotype.core.model import Batch
from calotype.core.rng import Noise
from calotype.evaluation.baselines.baseline import Baseline, Examples

CANDIDATES = 64  # patches for each place
TOLERANCE = 1.1  # of the least difference, within which one is taken by chance
PARTS = 4  # patches along the shorter side, about
OVERLAP = 3  # the overlap is this part of a patch


class Quilting(Baseline):
    """Image quilting."""

    told = "patches of training images sewn together"

    def __init__(self, known: Batch) -> None:
        self.examples = Examples(known)
        self.height, self.width = known.images.shape[2:]
        self.patch = max(1, min(self.height, self.width, max(4, -(-min(self.height, self.width) // PARTS))))
        self.overlap = self.patch // OVERLAP

    def sample(self, noise: Noise, labels: Tensor | None) -> Tensor:
        """Draw images by placing patches row by row."""
        step = max(1, self.patch - self.overlap)
        rows, columns = (_starts(side, self.patch, step) for side in (self.height, self.width))
        n, channels = noise.n, self.examples.images.shape[1]
        quilt = torch.zeros(n, channels, rows[-1] + self.patch, columns[-1] + self.patch)
        for i, top in enumerate(rows):
            for j, left in enumerate(columns):
                place = quilt[:, :, top : top + self.patch, left : left + self.patch]
                place.copy_(self._sewn(place, noise.fork(f"{i},{j}"), labels, above=i > 0, before=j > 0))
        return to_bytes(quilt[:, :, : self.height, : self.width])

    def _sewn(self, there: Tensor, noise: Noise, labels: Tensor | None, above: bool, before: bool) -> Tensor:
        """Join a patch with what lies at its place, (n, C, p, p) each, along the path of least difference."""
        candidates = self._candidates(noise, labels)
        known = torch.zeros(self.patch, self.patch)
        known[: self.overlap] += above
        known[:, : self.overlap] += before
        apart = ((candidates - there[:, None]).square().sum(2) * known.clamp(max=1)).sum((2, 3))  # (n, K)
        likely = apart <= TOLERANCE * apart.min(1, keepdim=True).values + 1e-6
        chance = torch.where(likely, noise.uniform(CANDIDATES), -1.0)
        chosen = candidates[torch.arange(len(there)), chance.argmax(1)]
        keep = torch.zeros(len(there), self.patch, self.patch, dtype=torch.bool)
        difference = (chosen - there).square().sum(1)
        if before and self.overlap:
            keep[:, :, : self.overlap] |= _before_cut(difference[:, :, : self.overlap])
        if above and self.overlap:
            keep[:, : self.overlap] |= _before_cut(difference[:, : self.overlap].mT).mT
        return torch.where(keep[:, None], there, chosen)

    def _candidates(self, noise: Noise, labels: Tensor | None) -> Tensor:
        """K candidate patches of training images for each of n images: (n, K, C, p, p)."""
        chosen = self.examples.chosen(noise.uniform(CANDIDATES), labels)
        inside = torch.arange(self.patch)
        places = []
        for side in (self.height, self.width):
            first = (noise.uniform(CANDIDATES).double() * (side - self.patch + 1)).long()
            places.append(first[..., None] + inside)  # (n, K, p)
        rows, columns = places[0][:, :, None, :, None], places[1][:, :, None, None, :]
        channels = torch.arange(self.examples.images.shape[1])[None, None, :, None, None]
        return to_unit(self.examples.images[chosen[:, :, None, None, None], channels, rows, columns])


def _starts(side: int, patch: int, step: int) -> list[int]:
    """The first pixels of patches that together cover a side."""
    return [*range(0, max(1, side - patch + step), step)]


def _before_cut(difference: Tensor) -> Tensor:
    """Before the path of least difference from the first row to the last, (n, rows, columns): bool, of its shape."""
    n, rows, columns = difference.shape
    far = torch.full((n, 1), float("inf"))
    cost, back = [difference[:, 0]], []
    for r in range(1, rows):
        around = torch.cat([far, cost[-1], far], 1).unfold(1, 3, 1)  # (n, columns, 3)
        least = around.min(2)
        back.append(least.indices - 1)
        cost.append(difference[:, r] + least.values)
    place = cost[-1].argmin(1)
    cut = [place]
    for step in reversed(back):
        place = place + step.gather(1, place[:, None])[:, 0]
        cut.append(place)
    path = torch.stack(cut[::-1], 1)  # (n, rows)
    return torch.arange(columns)[None, None] < path[..., None]
