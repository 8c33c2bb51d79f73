"""The losses of the two players of a GAN, and the penalties on the discriminator's gradient.

With r = D(x) of real images, f = D(G(z)) of generated ones, both logits before any sigmoid, and s(u) = log(1 + e^u):

    minimax          D: s(-r) + s(f)                       G: -s(f)            that is log D(x) + log(1 - D(G(z)))
    non-saturating   D: s(-r) + s(f)                       G: s(-f)
    least-squares    D: (r - 1)^2 / 2 + f^2 / 2            G: (f - 1)^2 / 2
    wasserstein      D: f - r                              G: -f
    hinge            D: max(0, 1 - r) + max(0, 1 + f)      G: -f
    relativistic     D: s(f - r)                           G: s(r - f)         of pairs of a real and a generated image

    R1 = E ||grad D(x)||^2 / 2,    R2 = E ||grad D(G(z))||^2 / 2,    GP = E (||grad D(u x + (1 - u) G(z))|| - 1)^2

Norms are over all values of an image. In `minimax` the value of the game, V(D, G) = E log D(x) + E log(1 - D(G(z))), is
minus the discriminator's loss.

Source: Goodfellow et al. 2014, arXiv:1406.2661; Mao et al. 2017, arXiv:1611.04076; Arjovsky et al. 2017,
arXiv:1701.07875; Gulrajani et al. 2017, arXiv:1704.00028; Lim and Ye 2017, arXiv:1705.02894; Jolicoeur-Martineau 2018,
arXiv:1807.00734; Mescheder et al. 2018, arXiv:1801.04406; Huang et al. 2024, arXiv:2501.05441.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> logits (B,)."""


class Adversarial(NamedTuple):
    """A loss for each player, of logits of real and of generated images, (B,) each: scalars."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False  # whether the generator's depends on real images too


def _classify(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-real).mean() + F.softplus(fake).mean()


LOSSES: Mapping[str, Adversarial] = {
    "minimax": Adversarial(_classify, lambda real, fake: -F.softplus(fake).mean()),
    "non-saturating": Adversarial(_classify, lambda real, fake: F.softplus(-fake).mean()),
    "least-squares": Adversarial(
        lambda real, fake: 0.5 * ((real - 1).square().mean() + fake.square().mean()),
        lambda real, fake: 0.5 * (fake - 1).square().mean(),
    ),
    "wasserstein": Adversarial(lambda real, fake: fake.mean() - real.mean(), lambda real, fake: -fake.mean()),
    "hinge": Adversarial(
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda real, fake: -fake.mean()
    ),
    "relativistic": Adversarial(
        lambda real, fake: F.softplus(fake - real).mean(),
        lambda real, fake: F.softplus(real - fake).mean(),
        paired=True,
    ),
}


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """Half of the mean over images of the squared norm of the gradient of logits (B,): R1, or R2; a scalar.

    Args:
        images: (B, C, H, W), of which the logits were computed, with requires_grad.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean()


def gradient_penalty(logits_of: Logits, real: Tensor, fake: Tensor, shares: Tensor) -> Tensor:
    """The mean squared distance from 1 of the norm of the gradient between real and generated images: a scalar.

    Args:
        shares: of the real image, (B,), uniform in [0, 1).
    """
    at = shares.view(-1, 1, 1, 1).to(real.dtype)
    between = (at * real + (1 - at) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(logits_of(between).sum(), between, create_graph=True)
    return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()
