"""The variational bound on the likelihood of 8-bit images, of any denoiser.

Seen as a hierarchical model, diffusion draws z at the largest noise level s from N(0, s^2 I), carries it down to a
small one r, and there draws each pixel. With y the image in [-1, 1] and n standard normal noise,

    -ln p(image) <=  |y|^2 / (2 s^2)                                              z at level s against N(0, s^2 I)
                   + integral over ln sigma from ln r to ln s of E|y - D(y + sigma n; sigma)|^2 / sigma^2
                   + E[-ln P(image | y + r n)]

Source: Kingma et al. 2021, arXiv:2107.00630, eq. 11 to 15, unscaled, in continuous time.

The integral is estimated by stratified draws, without bias. The pixels are drawn apart from each other, each from the
256 grey levels v_k,

    P(k | z) ~ h_k exp(-(v_k - m)^2 / (2 d^2)),

where m is the noisy pixel itself, with d = r, or its denoised value, with d a share of r; and h is flat, or the
histogram of the image as far as it can be told from all its m, found by expectation maximisation: pictures with much
of one colour gain much by it. The level r and this choice are part of the code of an image: one of J ways, which costs
ln J nats, is chosen per image by draws that the estimate does not use. So what is returned is a bound, for each image,
in expectation over the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.core.images import to_bytes, to_unit
from calotype.core.rng import Noise

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x: float64 (B, C, H, W), sigma: (B,)) -> the estimate of the clean image, float64 (B, C, H, W)."""

LEVELS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)  # where pixels may be drawn; a grey level is 0.0078
SHARES = (0.35, 0.6)  # of the noise that may be left after denoising
DRAWS_BETWEEN = 2  # of the integral between successive levels, and of the rest:
REST = ((3.0, 12), (math.inf, 4))  # up to these noise levels, so many draws: most of it lies below 3
ITERATIONS = 20  # of expectation maximisation; more sharpen the histogram, and gain little
LARGEST = 2**22  # values held at once: what the caches of a CPU hold, about
FLOOR = 1e-3  # share of a flat histogram in the one found, so that no grey level is impossible


class Way(NamedTuple):
    """One way to know the pixels, from which h is flat or found."""

    level: float  # r
    share: float  # d / r; 1: m is the noisy pixel, below: the denoised one


WAYS = [Way(r, share) for r in LEVELS for share in (1.0, *SHARES)]
CHOICES = 2 * len(WAYS)  # J


def variational_bits(denoise: Denoise, images: Tensor, noise: Noise, largest: float) -> Tensor:
    """The bound, in bits per dimension of each image: float64 (B,).

    Args:
        denoise: with a noise level per image.
        images: uint8 (B, C, H, W).
        noise: of these images.
        largest: the noise level that sampling starts from.
    """
    y = to_unit(images, torch.float64)
    trial = noise.fork("trial")  # draws that are not used again
    tried = torch.cat([pixel_nats(*seen, images) for _, seen in _seen(denoise, y, trial, WAYS)])
    chosen = (_between(denoise, y, trial) + tried).argmin(0)  # (B,)

    nats = _between(denoise, y, noise).gather(0, chosen[None])[0]
    for way, (seen, deviation) in _seen(denoise, y, noise, [WAYS[k] for k in (chosen // 2).unique().tolist()]):
        mine = chosen // 2 == WAYS.index(way)
        nats[mine] += pixel_nats(seen[mine], deviation, images[mine]).gather(0, chosen[None, mine] % 2)[0]
    start = LEVELS[-1]
    for end, draws in REST:
        if start < largest:
            nats += path(denoise, y, noise.fork("path").fork(draws), start, min(end, largest), draws)
        start = end
    nats += y.square().flatten(1).sum(1) / (2 * largest**2) + math.log(CHOICES)
    return nats / (images[0].numel() * math.log(2))


def path(denoise: Denoise, y: Tensor, noise: Noise, low: float, high: float, draws: int) -> Tensor:
    """The integral over ln sigma of E|y - D|^2 / sigma^2 from low to high, in nats: (B,). Unbiased."""
    width = math.log(high / low) / draws
    total = y.new_zeros(len(y))
    for k in range(draws):
        sigma = low * (width * (k + noise.uniform().to(y))).exp()
        level = sigma.reshape(-1, 1, 1, 1)
        error = denoise(y + level * noise.normal(*y.shape[1:]).to(y), sigma) - y
        total = total + width * (error / level).square().flatten(1).sum(1)
    return total


def _between(denoise: Denoise, y: Tensor, noise: Noise) -> Tensor:
    """What each choice adds for the path from its level to the last of LEVELS, in nats: (CHOICES, B)."""
    draws = noise.fork("between")
    parts = [path(denoise, y, draws, *ends, DRAWS_BETWEEN) for ends in pairwise(LEVELS)]
    sums = torch.stack([*parts, y.new_zeros(len(y))]).flip(0).cumsum(0).flip(0)
    return sums.repeat_interleave(CHOICES // len(LEVELS), 0)


def _seen(denoise: Denoise, y: Tensor, noise: Noise, ways: Sequence[Way]) -> Iterator[tuple[Way, tuple[Tensor, float]]]:
    """For each way, the values by which the pixels are known and the deviation of their noise.

    A level has draws of its own, so that what other images of a batch choose has no say in them.
    """
    for level, of_level in groupby(ways, key=lambda way: way.level):
        z = y + level * noise.fork(f"level {level}").normal(*y.shape[1:]).to(y)
        clean = denoise(z, z.new_full((len(z),), level))
        for way in of_level:
            yield way, (z if way.share == 1 else clean, level * way.share)


def pixel_nats(seen: Tensor, deviation: float, images: Tensor) -> Tensor:
    """-ln P(image) in nats, where pixels are known by `seen` up to normal noise: float64 (2, B).

    First with all grey levels alike, then weighted by their histogram, per image and channel, found from `seen` alone.

    Args:
        seen: float64 (B, C, H, W), in [-1, 1] and noise.
        deviation: of that noise.
        images: uint8 (B, C, H, W), what is to be said.
    """
    maps, wanted = seen.flatten(0, 1).flatten(1), images.flatten(0, 1).flatten(1).long()  # (B C, H W)
    at_once = max(1, LARGEST // (maps.shape[1] * 256))
    parts = zip(maps.split(at_once), wanted.split(at_once), strict=True)
    nats = torch.cat([_maps_nats(m, deviation, w) for m, w in parts], 1)
    return nats.reshape(2, len(images), -1).sum(2)


def _maps_nats(maps: Tensor, deviation: float, wanted: Tensor) -> Tensor:
    """-ln P of each map, float64 (2, M): maps (M, pixels), the grey levels wanted likewise."""
    # In float32: P sums to 1 whatever the error of a likeness, and a sum of 256 values stays good to six digits. With v
    # the grey nearest to m, (m - v)^2 - (m - v_k)^2 = -(v - v_k) (2 (m - v) + v - v_k), which does not cancel.
    greys = to_unit(torch.arange(256, device=maps.device))
    nearest = to_unit(to_bytes(maps), torch.float64)
    beyond = (2 * (maps - nearest)).float()[:, :, None]
    apart = nearest.float()[:, :, None] - greys  # (M, pixels, 256)
    likeness = apart.add(beyond).mul_(apart).mul_(-0.5 / deviation**2).exp_()
    flat = torch.full_like(likeness[:, 0], 1 / len(greys))  # (M, 256)
    found = flat
    for _ in range(ITERATIONS):
        shares = torch.bmm(likeness, found[:, :, None]).reciprocal()  # (M, pixels, 1)
        found = found * torch.bmm(shares.transpose(1, 2), likeness)[:, 0] / maps.shape[1]
        found = (1 - FLOOR) * found + FLOOR / len(greys)
    total = torch.bmm(likeness, torch.stack([flat, found], 2)).double()  # (M, pixels, 2)
    own = likeness.gather(2, wanted[:, :, None]) * torch.stack([flat.gather(1, wanted), found.gather(1, wanted)], 2)
    # The floor adds at most 1e-38 to a probability, far below what its six digits are good for.
    return (total.log() - own.double().clamp(min=torch.finfo(own.dtype).tiny).log()).sum(1).T
