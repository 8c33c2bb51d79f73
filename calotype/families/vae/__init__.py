"""The variational family.

config    what a model is, and how to sample from it
presets   the sizes of network that a budget is matched with
model     the bound on the likelihood, sampling, encoding and decoding
"""

from __future__ import annotations

from calotype.families.vae.config import VAEConfig, VAEOptions
from calotype.families.vae.model import VAE

__all__ = ["VAE", "VAEConfig", "VAEOptions"]
