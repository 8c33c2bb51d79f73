"""The prediction targets of a diffusion network, and the conversion between them.

Data y is seen through noise, x = y + sigma * n. Whatever a network F is asked for, its target is a combination of y
and n, so that the clean image is

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F,        F's target = (y - c_skip x) / c_out,

and a prediction is a pair (c_skip, c_out). The loss is the mean square of F - target, that is, of D - y weighted by
1 / c_out^2. Scaled processes are the same thing seen at another scale: where the literature writes
x_t = alpha y + s n, here x = x_t / alpha and sigma = s / alpha.

    edm       F's target has variance 1 for data of deviation sigma_data, whatever sigma:
              c_skip = sigma_data^2 / (sigma^2 + sigma_data^2),  c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
              Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    eps       the noise n:  D = x - sigma F.  The loss is E|n - eps(x_t, t)|^2, "L_simple".
              Source: Ho et al. 2020, arXiv:2006.11239, eq. 14.
    x0        the clean image y:  D = F
    v         alpha n - s y where alpha^2 + s^2 = 1, so alpha = 1 / sqrt(1 + sigma^2) and s = sigma alpha:
              D = alpha x_t - s F = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) F
              Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    velocity  n - y, the direction of the straight path x_t = (1 - t) y + t n, where sigma = t / (1 - t):
              D = x_t - t F = x / (1 + sigma) - sigma / (1 + sigma) F
              Source: Lipman et al. 2023, arXiv:2210.02747 (with time reversed); Liu et al. 2023, arXiv:2209.03003.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Mix(NamedTuple):
    """The coefficients of the denoiser D in terms of noisy image x and network output F: D = skip * x + out * F."""

    skip: Tensor
    out: Tensor

    def clean(self, x: Tensor, predicted: Tensor) -> Tensor:
        """D, the clean image."""
        return self.skip * x + self.out * predicted

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        """The network output F for which the denoiser gives y."""
        return (y - self.skip * x) / self.out


Prediction = Callable[[Tensor, float], Mix]
"""(sigma: positive, any shape; sigma_data) -> c_skip and c_out, of the shape of sigma."""


def edm(sigma: Tensor, sigma_data: float) -> Mix:
    """EDM's F, of variance 1 at every noise level."""
    total = sigma.square() + sigma_data**2
    return Mix(sigma_data**2 / total, sigma * sigma_data * total.rsqrt())


def eps(sigma: Tensor, sigma_data: float) -> Mix:
    """The noise n."""
    return Mix(torch.ones_like(sigma), -sigma)


def x0(sigma: Tensor, sigma_data: float) -> Mix:
    """The clean image y."""
    return Mix(torch.zeros_like(sigma), torch.ones_like(sigma))


def v(sigma: Tensor, sigma_data: float) -> Mix:
    """alpha n - s y, at alpha^2 + s^2 = 1."""
    total = 1 + sigma.square()
    return Mix(1 / total, -sigma * total.rsqrt())


def velocity(sigma: Tensor, sigma_data: float) -> Mix:
    """n - y, the direction of the straight path from image to noise."""
    return Mix(1 / (1 + sigma), -sigma / (1 + sigma))


PREDICTIONS: Mapping[str, Prediction] = {"edm": edm, "eps": eps, "x0": x0, "v": v, "velocity": velocity}


def convert(predicted: Tensor, x: Tensor, given: Mix, wanted: Mix) -> Tensor:
    """Convert the output of a network from prediction `given` to prediction `wanted`.

    Args:
        predicted: F of the prediction `given`, at x.
        x: the noisy image y + sigma * n, unscaled.
        given, wanted: at the noise level of x, of a shape that broadcasts with it.
    """
    return wanted.target(x, given.clean(x, predicted))
