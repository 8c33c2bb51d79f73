"""Texture synthesis by a filter bank: white noise, matched to an image in the histogram of each band of a pyramid.

Each band covers one octave of frequency and one of four directions, by masks on the Fourier transform whose squares
sum to 1, so that filtering the bands of an image again and adding them restores the image. Noise and example are
decomposed, each band of the noise takes the values of the example's band in its own order, and the noise is
reconstructed; these steps are repeated. Colours are processed along the principal axes of the example's colours.

Source: Heeger and Bergen 1995, "Pyramid-Based Texture Analysis/Synthesis", SIGGRAPH; Simoncelli and Freeman 1995, the
steerable pyramid, here without subsampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calotype.core.images import to_bytes
from calotype.core.model import Batch
from calotype.core.rng import Noise
from calotype.evaluation.baselines.baseline import Baseline, Examples

DIRECTIONS = 4
ROUNDS = 5
SMALLEST = 4  # rows or columns that the lowest band has at least, were it reduced in size


class Filters(Baseline):
    """Texture synthesis by matching histograms of bands."""

    told = "texture of a training image by histograms of a filter bank"

    def __init__(self, known: Batch) -> None:
        self.examples = Examples(known)
        self.masks = bands(*known.images.shape[2:])

    def sample(self, noise: Noise, labels: Tensor | None) -> Tensor:
        """White noise with the histograms of training images."""
        x = self.examples.of(noise.uniform(), labels)
        mean, axes = _axes(x)
        wanted = torch.einsum("nkc,nchw->nkhw", axes, x - mean)
        found = matched(noise.normal(*x.shape[1:]), wanted)
        of_wanted = self._apart(wanted)
        for _ in range(ROUNDS):
            apart = matched(self._apart(found), of_wanted)
            found = self._together(apart)
            found = matched(found, wanted)
        return to_bytes(torch.einsum("nkc,nkhw->nchw", axes, found) + mean)

    def _apart(self, x: Tensor) -> Tensor:
        """Decompose (n, C, H, W) into its bands (n, C, bands, H, W)."""
        return torch.fft.irfft2(torch.fft.rfft2(x)[:, :, None] * self.masks, s=x.shape[2:])

    def _together(self, apart: Tensor) -> Tensor:
        return torch.fft.irfft2((torch.fft.rfft2(apart) * self.masks).sum(2), s=apart.shape[3:])


def bands(height: int, width: int) -> Tensor:
    """Masks on rfft2 of images: (bands, H, W // 2 + 1), whose squares sum to 1 everywhere."""
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    radius, angle = torch.hypot(rows, columns), torch.atan2(rows, columns)
    octaves = (2 * radius).clamp(min=1e-9).log2()  # 0 at the highest frequency along an axis
    levels = max(1, int(math.log2(min(height, width) / SMALLEST))) if min(height, width) >= SMALLEST else 1
    # With k = DIRECTIONS the squares of cos(angle - k pi / 4)^3 sum to a constant over k.
    power = torch.stack([(angle - math.pi * k / DIRECTIONS).cos().abs() ** (DIRECTIONS - 1) for k in range(DIRECTIONS)])
    directions = power / power.square().sum(0).sqrt()
    above, left = _step(octaves + 0.5), torch.ones_like(octaves)
    found = [above]
    left = (1 - above.square()).clamp(min=0).sqrt()
    for level in range(1, levels + 1):
        high = _step(octaves + 0.5 + level)
        found += [left * high * direction for direction in directions]
        left = left * (1 - high.square()).clamp(min=0).sqrt()
    return torch.stack([*found, left])


def _step(octaves: Tensor) -> Tensor:
    """A smooth step from 0 at -1/2 to 1 at 1/2, whose square and that of its complement sum to 1."""
    return torch.sin(0.5 * math.pi * (octaves + 0.5).clamp(0, 1))


def matched(x: Tensor, wanted: Tensor) -> Tensor:
    """Histogram matching: the values of each map of `wanted`, (..., H, W), in the rank order of those of x."""
    order = x.flatten(-2).argsort(stable=True, dim=-1)
    values = wanted.flatten(-2).sort(-1).values
    return torch.zeros_like(values).scatter(-1, order, values).view_as(x)


def _axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean colour of each image (n, C, 1, 1), and the principal axes of its colours, (n, C, C), an axis a row."""
    mean = x.mean((2, 3), keepdim=True)
    apart = (x - mean).flatten(2).double()
    return mean, torch.linalg.eigh(apart @ apart.mT).eigenvectors.mT.to(x.dtype)
