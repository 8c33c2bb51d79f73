"""Normal distributions of whole images: with full covariance, and probabilistic principal component analysis.

With uniform values u on [0, 1) added to bytes x, y = x + u, a density p(y) bounds the probability of the bytes,

    log P(x) = log E_u p(x + u) >= E_u log p(x + u),    P(x) the mass of p between x and x + 1,

and the reported value is that bound, with one draw of u. With eigenvalues l_1 >= l_2 >= ... and eigenvectors v_i of the
covariance of y, in D dimensions,

    Gaussian   variance l_i + s along v_i, s chosen on images outside the fit
    PPCA       variance l_i along the first k, and the mean of the others along all others

Source: Tipping and Bishop 1999, "Probabilistic Principal Component Analysis" (k chosen on images outside the fit);
Theis et al. 2016, arXiv:1511.01844, for the bound.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calotype.core.model import Batch, Bits
from calotype.core.rng import Noise, fold, permutation
from calotype.evaluation.baselines.baseline import Baseline

MOST = 10_000  # images that it is fitted to
LARGEST = 4_096  # dimensions, and images, whose matrix is taken apart whole
LEFT_OUT = 10  # every so many an image is left out of the fit, for what is chosen
ROUNDING = 1 / 12  # variance of u
SEED = 0


class Spectrum(NamedTuple):
    """The mean of images (D,), eigenvalues of their covariance in falling order (r,), and eigenvectors (r, D).

    The other D - r directions have the variance of u.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Spectrum:
        """The spectrum of uint8 images (N, C, H, W) with u added: float64."""
        x = images.flatten(1).double()
        mean = x.mean(0)
        x -= mean
        n, dims = x.shape
        if dims <= n:
            values, vectors = torch.linalg.eigh(x.mT @ x / n)
            values, vectors = values.flip(0), vectors.mT.flip(0)
        else:
            values, vectors = torch.linalg.eigh(x @ x.mT / n)
            values, vectors = values.flip(0)[: n - 1].clamp(min=0), vectors.flip(1)[:, : n - 1].mT
            vectors = vectors @ x
            vectors /= vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return cls(mean + 0.5, values.clamp(min=0) + ROUNDING, vectors)

    def along(self, images: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances from the mean along the eigenvectors (n, r), and along all others together (n,)."""
        y = images.flatten(1).double() + u.flatten(1) - self.mean
        squares = (y @ self.vectors.mT).square()
        return squares, (y.square().sum(1) - squares.sum(1)).clamp(min=0)


class Normal(NamedTuple):
    """Variances along the eigenvectors of a spectrum (r,), and along each of all other directions."""

    spectrum: Spectrum
    variances: Tensor
    beyond: float

    def log_density(self, images: Tensor, u: Tensor) -> Tensor:
        """Log density of images with u added, nats: float64 (n,)."""
        squares, rest = self.spectrum.along(images, u)
        others = len(self.spectrum.mean) - len(self.variances)
        return -0.5 * (
            (squares / self.variances).sum(1)
            + self.variances.log().sum()
            + (rest / self.beyond + others * math.log(self.beyond) if others else 0.0)
            + len(self.spectrum.mean) * math.log(2 * math.pi)
        )

    def sample(self, noise: Noise) -> Tensor:
        """Draw images as bytes: uint8 (n, D)."""
        mean, vectors = self.spectrum.mean, self.spectrum.vectors
        z = noise.normal(len(self.variances)).double() * self.variances.sqrt()
        white = noise.normal(len(mean)).double() * self.beyond**0.5
        if len(vectors) < len(mean):
            y = mean + z @ vectors + white - (white @ vectors.mT) @ vectors
        else:
            y = mean + z @ vectors
        return y.floor().clamp(0, 255).to(torch.uint8)


class _Density(Baseline):
    """The common part of both densities."""

    def __init__(self, known: Batch) -> None:
        order = torch.from_numpy(permutation(fold(SEED, "baselines"), len(known.images)))[:MOST]
        if known.images[0].numel() > LARGEST:
            order = order[:LARGEST]
        images = known.images[order]
        self.shape = tuple(images.shape[1:])
        some = torch.arange(len(images)) % LEFT_OUT == LEFT_OUT - 1
        if not some.any():
            some[-1:] = True  # of a handful of images the last is both
        rest = images[~some] if not some.all() else images
        u = Noise.shared(fold(SEED, "u"), int(some.sum()), "cpu").uniform(*self.shape)
        self.normal = self.fitted(Spectrum.of(rest), images[some], u)

    def fitted(self, spectrum: Spectrum, images: Tensor, u: Tensor) -> Normal:
        """The candidate with the highest likelihood of images that the spectrum was not computed from."""
        return max(self.choices(spectrum), key=lambda normal: float(normal.log_density(images, u).mean()))

    @abstractmethod
    def choices(self, spectrum: Spectrum) -> list[Normal]:
        """The candidate distributions."""

    def sample(self, noise: Noise, labels: Tensor | None) -> Tensor:
        """Draws from the density, floored to bytes."""
        return self.normal.sample(noise).view(noise.n, *self.shape)

    def bits_per_dim(self, batch: Batch, noise: Noise, options: Any = None) -> Bits:
        """The bound on bits per dimension, with one draw of u."""
        nats = self.normal.log_density(batch.images, noise.uniform(*self.shape))
        return Bits(-nats / (math.prod(self.shape) * math.log(2)), "bound")


class Gaussian(_Density):
    """A normal distribution with full covariance."""

    told = "a normal distribution of whole images"

    def choices(self, spectrum: Spectrum) -> list[Normal]:
        """Candidates that differ in the amount added to all variances."""
        added = [0.0, *(10.0**k for k in torch.linspace(-2, 3, 21).tolist())]
        return [Normal(spectrum, spectrum.values + s, ROUNDING + s) for s in added]


class PrincipalComponents(_Density):
    """Probabilistic PCA: some principal components, and isotropic noise."""

    told = "probabilistic principal components"

    def choices(self, spectrum: Spectrum) -> list[Normal]:
        """Candidates that differ in the number of components."""
        dims, found = len(spectrum.mean), []
        total = float(spectrum.values.sum()) + (dims - len(spectrum.values)) * ROUNDING
        for k in sorted({min(round(1.5**i), len(spectrum.values) - 1) for i in range(25)}):
            if k < 0 or k >= dims:
                continue
            beyond = (total - float(spectrum.values[:k].sum())) / (dims - k)
            part = Spectrum(spectrum.mean, spectrum.values[:k], spectrum.vectors[:k])
            found.append(Normal(part, part.values, beyond))
        return found
