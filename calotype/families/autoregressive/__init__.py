"""The autoregressive family.

config   what a model is, and how to sample from it
presets  the sizes of network that a budget is matched with
networks the networks that a model may have
model    the loss, sampling, completion and the likelihood, put together
drawing  from a network to images, pixel by pixel
"""

from __future__ import annotations

from calotype.families.autoregressive.config import AutoregressiveConfig, AutoregressiveOptions
from calotype.families.autoregressive.model import Autoregressive

__all__ = ["Autoregressive", "AutoregressiveConfig", "AutoregressiveOptions"]
