"""The config of a variational autoencoder, and its sampling options."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from calotype.core.config import check_choice, check_widths
from calotype.errors import ConfigError
from calotype.nn.distributions import DISTRIBUTIONS

LIKELIHOODS = ("auto", *DISTRIBUTIONS)
CODES = ("gaussian", "fsq", "vq")
RESAMPLE = ("learned", "pooled")
PIXELS = ("auto", "drawn", "mean")


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """The config of a variational autoencoder."""

    widths: tuple[int, ...] = (32, 64, 64, 64)  # features per level, finest first; multiples of 16
    blocks: tuple[int, ...] = (1, 1, 1, 1)  # of the encoder, per level
    latents: tuple[int, ...] = (0, 2, 2, 1)  # latent maps per level; one at the coarsest alone is the textbook's VAE
    latent_width: int = 16  # channels of a latent map; with code=vq features of a code
    code: str = "gaussian"  # what latents are; or fsq or vq, whole numbers, in one map at the coarsest level
    codes: tuple[int, ...] = (8, 6, 5)  # of fsq the levels of each feature, of vq how many, such as (256,)
    patch: int = 1  # pixels a side that are one position of the finest level
    bottleneck: int = 1  # branches have so many times fewer features within, and two convolutions more
    resample: str = "learned"  # between levels: by convolutions; or pooled, by averages and repetition
    point: bool = True  # whether the coarsest level is a single position
    likelihood: str = "auto"  # categorical, logistics, bernoulli (of 0 and 255, other values binarised), gaussian
    mixtures: int = 10  # components of logistics
    beta: float = 1.0  # weight of the KL divergence in training; the bound is reported at 1 whatever it is
    free_bits: float = 0.0  # nats that each latent map of an image may take without cost in training
    warmup: int = 0  # images seen over which the weight of the KL divergence rises from 0
    samples: int = 1  # of the latents per image in training; more than 1: the importance-weighted bound

    def __post_init__(self) -> None:
        check_choice("model.likelihood", self.likelihood, LIKELIHOODS)
        if not self.widths or not len(self.widths) == len(self.blocks) == len(self.latents):
            raise ConfigError(
                f"model.widths has {len(self.widths)} levels, model.blocks {len(self.blocks)} and model.latents "
                f"{len(self.latents)}: give each level all three"
            )
        check_widths("model.widths", self.widths)
        if min(self.blocks) < 1:
            raise ConfigError(f"model.blocks contains {min(self.blocks)}: give at least 1 for each level")
        if min(self.latents) < 0 or not any(self.latents):
            raise ConfigError(f"model.latents is {list(self.latents)}: give 0 or more per level, and at least one")
        if self.latents[-1] < 1:
            raise ConfigError(
                f"model.latents is {list(self.latents)}, without any at the coarsest level, which then says nothing: "
                "give it one, or leave the level out"
            )
        check_choice("model.resample", self.resample, RESAMPLE)
        for name in ("bottleneck", "latent_width", "patch", "mixtures", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give at least 1")
        if any(width % self.bottleneck for width in self.widths):
            raise ConfigError(
                f"model.bottleneck is {self.bottleneck}, which does not divide model.widths, {list(self.widths)}: "
                "give one that does"
            )
        for name in ("beta", "free_bits", "warmup"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give 0 or more")
        check_choice("model.code", self.code, CODES)
        if self.code != "gaussian":
            self._check_codes()
        if self.samples > 1 and (self.beta != 1 or self.free_bits):
            raise ConfigError(
                f"model.samples is {self.samples}, whose bound has no divergence of its own to be weighted: leave out "
                "beta and free_bits, or use samples=1"
            )

    def _check_codes(self) -> None:
        if self.latents != (0,) * (len(self.latents) - 1) + (1,) or self.point:
            raise ConfigError(
                f"model.code is {self.code}, whose codes are one map at the coarsest level, but model.latents is "
                f"{list(self.latents)} and model.point {str(self.point).lower()}: use latents=[0, ..., 0, 1] and "
                "point=false"
            )
        if not self.codes or min(self.codes) < 2:
            raise ConfigError(f"model.codes is {list(self.codes)}: give 2 or more for each feature")
        if self.code == "vq" and len(self.codes) > 1:
            raise ConfigError(f"model.codes is {list(self.codes)}, but a codebook has one size: give one, as in [256]")
        if self.samples > 1 or self.beta != 1 or self.free_bits or self.warmup:
            raise ConfigError(
                f"model.code is {self.code}, whose codes all cost the same: leave out beta, free_bits, warmup, samples"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEOptions:
    """Sampling options of a variational autoencoder."""

    temperature: float = 0.85  # of the latents: 1 as learned; below, likelier ones, and less varied images
    pixels: str = "auto"  # given the latents: drawn from their distribution, or mean; auto: mean, but of binary ones
    bound_samples: int = 64  # of the latents per image, for the bound on its likelihood; 1: the ELBO

    def __post_init__(self) -> None:
        check_choice("pixels", self.pixels, PIXELS)
        if self.bound_samples < 1:
            raise ConfigError(f"bound_samples is {self.bound_samples}: give at least 1, which is the ELBO")
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}: give 0 or more; 1 draws as the model has learned")
