"""A ladder of Gaussian latent maps: a bottom-up encoder, and a top-down network that draws the maps, coarsest first.

At each level of resolution, from one position up to the size of the image, the top-down state h becomes, for each of
the level's latent maps z,

    p(z | h) = N(m_p(h), s_p(h)^2),    q(z | h, e) = N(m_q(h, e), s_q(h, e)^2),    h <- block(h + f(h) + W z),

where e is what the encoder has of the image at that level. All convolutions that end a branch begin at zero, so that
at first p = q = N(0, 1). With a latent map at one level alone, whose prior is N(0, 1), this is the VAE of the textbook.

Source: Child 2021, arXiv:2011.10650; Sønderby et al. 2016, arXiv:1602.02282.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.nn.layers import full, zeroed
from calotype.nn.levels import PLAIN, Block, Branch, Encoder, Numbers, Size, Style, level_sizes, ups

ACTIVE = 0.01  # nats of divergence, in the mean, from which on a channel of a latent map says something
WIDEST = 6.0  # of the logarithm of a scale: softly, so that no step of training makes it infinite


class Gaussian(NamedTuple):
    """A normal distribution of a latent map, (B, C, h, w) each, or of fewer dimensions if the same for all."""

    mean: Tensor
    log_scale: Tensor

    def sample(self, normal: Tensor, temperature: float = 1.0) -> Tensor:
        """A draw from standard normal values."""
        return self.mean + temperature * self.log_scale.exp() * normal

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats per value, less log(2 pi) / 2, which cancels in all that is made of it."""
        return -self.log_scale - 0.5 * ((z - self.mean) * (-self.log_scale).exp()).square()

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in nats per value: log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2."""
        apart = (self.mean - other.mean) * (-other.log_scale).exp()
        ratio = self.log_scale - other.log_scale
        return 0.5 * ((2 * ratio).exp() + apart.square() - 1) - ratio


class Step(NamedTuple):
    """A latent map as it was drawn, (B, C, h, w), and from what."""

    z: Tensor
    posterior: Gaussian
    prior: Gaussian

    def kl(self) -> Tensor:
        """KL divergence of the posterior from the prior, nats: (B, C, h, w)."""
        return self.posterior.kl(self.prior)

    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z) of what was drawn, nats: (B,)."""
        return (self.prior.log_prob(self.z) - self.posterior.log_prob(self.z)).flatten(1).sum(1)

    def loss(self) -> Tensor | None:
        """The additional loss of each image, (B,): zero."""
        return None


Choose = Callable[[int, Gaussian, Callable[[], Gaussian]], Tensor]
"""(number of the latent map, its prior, what gives its posterior) -> its value."""


class Ladder(nn.Module):
    """An encoder, and a top-down network of latent maps.

    What is known of images is `encode` of them, (B, C, H, W) in [-1, 1]: a map for each level, finest first.

    Args:
        channels: of the image.
        outputs: numbers per pixel.
        size: height and width of the image.
        widths: features per level, finest first.
        blocks: residual blocks of the encoder per level.
        latents: latent maps per level; where there are none, as many blocks as in the encoder.
        latent_width: channels of a latent map.
        num_classes: of the labels; 0: none.
        patch: pixels a side that are one position of the finest level.
        point: whether the coarsest level is of a single position; otherwise it is half as fine as the one before it.
        style: of levels, but for its scale, which follows from the depth.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: Size,
        widths: Sequence[int],
        blocks: Sequence[int],
        latents: Sequence[int],
        latent_width: int,
        num_classes: int = 0,
        patch: int = 1,
        point: bool = True,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        self.sizes = level_sizes(size, len(widths), patch, point)
        depth = sum(blocks) + sum(n or b for n, b in zip(latents, blocks, strict=True))
        style = style._replace(scale=(depth / len(widths)) ** -0.5)
        self.encode = Encoder(channels, widths, self.sizes, blocks, patch, style)
        self.up = ups(widths, self.sizes, style)
        self.start = nn.ParameterList(
            nn.init.normal_(torch.empty(1, width, *shape), std=0.1)
            for width, shape in zip(widths, self.sizes, strict=True)
        )
        self.embed = nn.ModuleList(nn.Embedding(num_classes, width) for width in widths) if num_classes else None
        for table in self.embed or ():
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]
        first = max((k for k, n in enumerate(latents) if n), default=-1)
        self.levels = nn.ModuleList()
        for k, (width, at, n, plain) in enumerate(zip(widths, self.sizes, latents, blocks, strict=True)):
            level = [LatentBlock(width, latent_width, at, style, k == first and i == 0) for i in range(n)]
            self.levels.append(nn.ModuleList(level or [Block(width, at, style) for _ in range(plain)]))
        self.numbers = Numbers(widths[0], outputs, size, patch)

    def infer(self, known: Sequence[Tensor], labels: Tensor | None, noise: Noise) -> tuple[Tensor, list[Step]]:
        """Draw latents from the posterior of images: numbers (B, H, W, outputs), and how they were drawn."""
        steps: list[Step] = []

        def choose(k: int, prior: Gaussian, posterior: Callable[[], Gaussian]) -> Tensor:
            q = posterior()
            steps.append(Step(q.sample(_normal(noise, k, q.mean)), q, prior))
            return steps[-1].z

        return self._descend(len(known[0]), labels, known, choose), steps

    def generate(self, n: int, labels: Tensor | None, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Numbers of n images from the prior, whose scales are multiplied by the temperature."""
        return self._descend(n, labels, None, lambda k, p, _: p.sample(_normal(noise, k, p.mean), temperature))

    def means(self, known: Sequence[Tensor], labels: Tensor | None) -> list[Tensor]:
        """The latents of images: the mean of the posterior of each, given those before, (B, C, h, w)."""
        found: list[Tensor] = []

        def choose(k: int, prior: Gaussian, posterior: Callable[[], Gaussian]) -> Tensor:
            found.append(posterior().mean)
            return found[-1]

        self._descend(len(known[0]), labels, known, choose)
        return found

    def decode(self, latents: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The numbers of latents; of those that are left out, the finest, the means."""
        given = list(latents)

        def choose(k: int, prior: Gaussian, posterior: Callable[[], Gaussian]) -> Tensor:
            return given[k] if k < len(given) else prior.mean

        return self._descend(len(given[0]), labels, None, choose)

    @staticmethod
    def facts(steps: Sequence[Step]) -> dict[str, Tensor]:
        """For the log: the share of the channels of latent maps that say something, and nats of each level."""
        told = [step.kl().detach().flatten(2).sum(2).mean(0) for step in steps]  # of each channel
        found = {"active": (torch.cat(told) > ACTIVE).float().mean()}
        for step, nats in zip(steps, told, strict=True):
            name = f"nats of {step.z.shape[2]}x{step.z.shape[3]}"
            found[name] = found.get(name, 0.0) + nats.sum()
        return found

    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """The shape (C, h, w) of each latent map, in the order in which they are drawn."""
        return [
            (block.width, *self.sizes[k])
            for k in reversed(range(len(self.levels)))
            for block in self.levels[k]  # type: ignore[attr-defined]
            if isinstance(block, LatentBlock)
        ]

    def _descend(self, n: int, labels: Tensor | None, known: Sequence[Tensor] | None, choose: Choose) -> Tensor:
        h: Tensor | None = None
        drawn = 0
        for k in reversed(range(len(self.levels))):
            start = self.start[k].expand(n, -1, -1, -1)
            h = start if h is None else self.up[k](h) + start
            if self.embed is not None:
                h = h + self.embed[k](labels)[:, :, None, None]
            for block in self.levels[k]:  # type: ignore[attr-defined]
                if isinstance(block, LatentBlock):
                    h = block(h, None if known is None else known[k], drawn, choose)
                    drawn += 1
                else:
                    h = block(h)
        assert h is not None
        return self.numbers(h)


def _normal(noise: Noise, k: int, like: Tensor) -> Tensor:
    return noise.fork(f"z{k}").normal(*like.shape[1:]).to(like.dtype)


class LatentBlock(nn.Module):
    """A latent map of a level, and a block.

    Args:
        inner: features of h.
        width: channels of the latent map.
        size: of it.
        style: of levels.
        standard: whether its prior is N(0, 1), as there is nothing that it could depend on.
    """

    def __init__(self, inner: int, width: int, size: Size, style: Style, standard: bool) -> None:
        super().__init__()
        self.width = width
        self.prior = None if standard else Branch((inner, 2 * width + inner), size, style.bottleneck)
        self.posterior = Branch((2 * inner, inner, 2 * width), size, style.bottleneck)
        for branch in (self.prior, self.posterior):
            if branch is not None:
                zeroed(branch.last)
        self.project = nn.Conv2d(width, inner, 1)
        self.block = Block(inner, size, style)

    def forward(self, h: Tensor, known: Tensor | None, number: int, choose: Choose) -> Tensor:
        """Add latent map `number`, which `choose` picks from prior or posterior, to h (B, inner, h, w); same shape."""
        dtype = self.project.weight.dtype  # of h under autocast too
        if self.prior is None:
            zeros = torch.zeros(len(h), self.width, *h.shape[2:], dtype=dtype, device=h.device)
            prior, further = Gaussian(zeros, zeros), None
        else:
            numbers = self.prior(h)
            prior, further = _gaussian(numbers[:, : 2 * self.width].to(dtype)), numbers[:, 2 * self.width :]

        def posterior() -> Gaussian:
            assert known is not None
            return _gaussian(self.posterior(torch.cat([h, known], 1)).to(dtype))

        h = h + self.project(choose(number, prior, posterior))
        return self.block(h if further is None else h + full(further, h.dtype))


def _gaussian(numbers: Tensor) -> Gaussian:
    mean, log_scale = numbers.chunk(2, 1)
    return Gaussian(mean, WIDEST * torch.tanh(log_scale / WIDEST))
