"""The diffusion family.

config       what a model is, and how to sample from it
presets      the sizes of network that a budget is matched with
predictions  what the network predicts, and the conversion between all of it
schedules    at which noise levels it is trained
model        the loss, sampling and the likelihood bound, put together
solvers      from noise to image, as functions of a denoiser
guidance     from denoisers to a denoiser
bound        the variational bound on the likelihood of 8-bit images, of any denoiser
"""

from __future__ import annotations

from calotype.families.diffusion.config import DiffusionConfig, DiffusionOptions
from calotype.families.diffusion.model import Diffusion

__all__ = ["Diffusion", "DiffusionConfig", "DiffusionOptions"]
