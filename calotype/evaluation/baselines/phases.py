"""Random phase textures: the Fourier amplitudes of a training image with random phases.

    X = F(x),    y = F^-1(|X| e^{i (arg X + theta)}),    theta the phases of white noise, the same for all channels

The mean and the correlations between neighbours and between channels are those of the training image; edges and shapes
are lost.

Source: Galerne, Gousseau, Morel 2011, "Random Phase Textures: Theory and Synthesis", IEEE TIP 20(1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from calotype.core.images import to_bytes
from calotype.core.model import Batch
from calotype.core.rng import Noise
from calotype.evaluation.baselines.baseline import Baseline, Examples


class Phases(Baseline):
    """Random phase textures."""

    told = "random phases of the frequencies of a training image"

    def __init__(self, known: Batch) -> None:
        self.examples = Examples(known)

    def sample(self, noise: Noise, labels: Tensor | None) -> Tensor:
        """Images whose frequencies have the phases of white noise."""
        x = self.examples.of(noise.uniform(), labels)
        white = torch.fft.rfft2(noise.normal(1, *x.shape[2:]))
        turned = white / white.abs().clamp(min=1e-12)
        turned[:, :, 0, 0] = 1  # the mean stays
        return to_bytes(torch.fft.irfft2(torch.fft.rfft2(x) * turned, s=x.shape[2:]))
