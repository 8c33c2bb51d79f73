"""Guidance: functions from denoisers to a denoiser."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from calotype.families.diffusion.solvers import Denoise


def guided(
    both: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    conditional: Denoise,
    weight: float,
    interval: tuple[float, ...],
) -> Denoise:
    """Classifier-free guidance within an interval of noise levels; outside of it the class alone decides.

        D = D_none + weight (D_class - D_none)

    Args:
        both: the denoiser of no class and that of the class, at once.
        conditional: the denoiser of the class.
        weight: 1 is the class alone, 0 no class; above 1 what the class adds is exaggerated.
        interval: of noise levels, both ends included.

    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6 (where w is weight - 1); Kynkäänniemi et al. 2024,
    arXiv:2404.07724, for the interval.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if not interval[0] <= sigma <= interval[1]:
            return conditional(x, sigma)
        none, of_class = both(x, sigma)
        return none + weight * (of_class - none)

    return denoise
