"""The families of image generators that calotype trains."""

from __future__ import annotations

from collections.abc import Mapping

from calotype.core.model import GenerativeModel
from calotype.families.autoregressive import Autoregressive
from calotype.families.diffusion import Diffusion
from calotype.families.gan import GAN
from calotype.families.vae import VAE

FAMILIES: Mapping[str, type[GenerativeModel]] = {
    "autoregressive": Autoregressive,
    "diffusion": Diffusion,
    "gan": GAN,
    "vae": VAE,
}
