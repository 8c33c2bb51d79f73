"""The adversarial family.

config    what a model is, and how to sample from it
losses    what the players minimise, and penalties on the discriminator's gradient
networks  the table of generators and discriminators
presets   the sizes of network that a budget is matched with
model     the two turns, sampling
"""

from __future__ import annotations

from calotype.families.gan.config import GANConfig, GANOptions
from calotype.families.gan.model import GAN

__all__ = ["GAN", "GANConfig", "GANOptions"]
