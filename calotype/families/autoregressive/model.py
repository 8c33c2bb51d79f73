"""Autoregressive models: the probability of an image as a product over its pixels in raster order.

    p(x) = prod_i p(x_i | x_1, ..., x_(i-1)),    loss = -log2 p(x) / dims,

with the conditional distributions of `calotype.nn.distributions`, whose parameters a causal network gives for all
pixels at once. So the loss is the exact number of bits that a value of the image takes, and the likelihood is the loss.

Source: van den Oord et al. 2016, arXiv:1601.06759.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from calotype.core.model import Batch, Bits, Completable, GenerativeModel, HasLikelihood, ImageSpec, Loss, Preset, Turn
from calotype.core.rng import Noise
from calotype.errors import ConfigError
from calotype.families.autoregressive.config import GUIDANCE, NETWORKS, AutoregressiveConfig, AutoregressiveOptions
from calotype.families.autoregressive.drawing import Guide, draw
from calotype.families.autoregressive.presets import presets
from calotype.families.guidance import AUTO, check_can_be_guided, hidden
from calotype.nn.distributions import Distribution, distribution, likelihood_for


class Autoregressive(GenerativeModel, HasLikelihood, Completable):
    """Pixels one after another, each given those before it."""

    Config = AutoregressiveConfig
    Options = AutoregressiveOptions
    models_codes = True

    def __init__(self, spec: ImageSpec, config: AutoregressiveConfig) -> None:
        super().__init__(spec, config)
        self.distribution = _distribution(spec, config)
        ordered = spec.channels > 1 and self.distribution.channelwise
        known = replace(spec, num_classes=spec.num_classes + 1) if self.can_be_guided else spec
        self.network = NETWORKS[config.network].make(known, config, self.distribution.parameters, ordered)

    @classmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        """The presets for such images, by name, from the smallest to the largest."""
        return presets(spec)

    @classmethod
    def measured(cls, config: AutoregressiveConfig, images: Tensor) -> AutoregressiveConfig:
        """Choose the likelihood by the values and colours of the training images: uint8 (N, C, H, W)."""
        if config.likelihood != "auto":
            return config
        network, coloured = NETWORKS[config.network], images.shape[1] > 1
        if coloured and not network.ordered:
            return replace(config, likelihood="logistics")
        return replace(config, likelihood=likelihood_for(images, network.colours if coloured else "categorical"))

    def turns(self) -> Sequence[Turn]:
        """A single turn per training step, of the player `model`."""
        return (Turn("model", self.loss),)

    def loss(self, batch: Batch, noise: Noise) -> Loss:
        """Bits per dimension."""
        images = self.distribution.prepared(batch.images, noise)
        dropping = noise.fork("dropout") if self.config.dropout and self.training else None
        share = self.config.label_dropout if self.training and self.can_be_guided else 0.0
        labels = hidden(batch.labels, share, self.spec.num_classes, noise)
        return Loss(self._bits(images, labels, dropping).mean(), {})

    def _bits(self, images: Tensor, labels: Tensor | None, noise: Noise | None) -> Tensor:
        """Bits per dimension of each image: (B,)."""
        pixels = images.permute(0, 2, 3, 1)
        numbers = self.network(pixels, labels, noise)
        nats = -self.distribution.log_prob(numbers.to(self.dtype), pixels).flatten(1)
        return nats.double().sum(1) / (self.spec.dims * math.log(2))

    @torch.no_grad()
    def bits_per_dim(self, batch: Batch, noise: Noise, options: AutoregressiveOptions | None = None) -> Bits:
        """-log2 p(x) / dims, exact, given the label where there are classes."""
        device = next(self.parameters()).device
        labels = None if batch.labels is None else batch.labels.to(device)
        images = self.distribution.prepared(batch.images, noise)
        changed = "" if torch.equal(images, batch.images) else "binarised at random"
        return Bits(self._bits(images.to(device), labels, None).cpu(), "exact", changed)

    def sample(
        self, noise: Noise, labels: Tensor | None = None, options: AutoregressiveOptions | None = None
    ) -> Tensor:
        """Draw noise.n images, uint8 (n, C, H, W), pixel by pixel in raster order."""
        blank = torch.zeros(noise.n, *self.spec.shape, dtype=torch.uint8, device=noise.device)
        return self.complete(blank, 0, noise, labels, options)

    @torch.no_grad()
    def complete(
        self,
        images: Tensor,
        known: int,
        noise: Noise,
        labels: Tensor | None = None,
        options: AutoregressiveOptions | None = None,
    ) -> Tensor:
        """Draw the pixels after the first `known` of uint8 images (n, C, H, W), in raster order: uint8 (n, C, H, W)."""
        options = options or AutoregressiveOptions()
        weight = options.guidance
        if weight == AUTO:
            weight = GUIDANCE if self.can_be_guided and labels is not None else 1.0
        guide = Guide(weight, self.spec.num_classes) if weight != 1 else None
        uniforms = noise.uniform(self.spec.height, self.spec.width, self.distribution.draws).to(self.dtype)
        return draw(self.network, self.distribution, images, known, uniforms, labels, options.taste, guide).images

    @property
    def can_be_guided(self) -> bool:
        """Whether it knows images with their class and without, and gives logits, which can be added."""
        return self.spec.num_classes > 0 and self.config.label_dropout > 0 and self.distribution.logits

    def network_calls(self, options: AutoregressiveOptions | None) -> int:
        """One for each pixel, or for each of its channels where they are in order; each for that pixel alone."""
        return self.spec.height * self.spec.width * (self.spec.channels if self.network.ordered else 1)

    def check_options(self, options: AutoregressiveOptions) -> None:
        """Raise ConfigError for guidance, top_k or top_p that this model does not support."""
        check_can_be_guided(options.guidance, self.spec.num_classes, self.config.label_dropout)
        if options.guidance not in (1, AUTO) and not self.distribution.logits:
            raise ConfigError(
                f"guidance is {options.guidance}, but models of likelihood {self.config.likelihood} cannot be guided: "
                "leave guidance out, or train with model.likelihood=categorical where the network can"
            )
        if self.config.likelihood != "categorical" and (options.top_k or options.top_p < 1):
            raise ConfigError(
                f"top_k and top_p choose among the 256 values of categorical models, but this one has likelihood "
                f"{self.config.likelihood}: leave them out, or use temperature"
            )


def _distribution(spec: ImageSpec, config: AutoregressiveConfig) -> Distribution:
    if config.likelihood == "auto":
        raise ConfigError(
            "model.likelihood is auto, to be chosen by the data: use Autoregressive.measured(config, images)"
        )
    if config.likelihood != "logistics" and spec.channels > 1 and not NETWORKS[config.network].ordered:
        raise ConfigError(
            f"model.likelihood is {config.likelihood}, but {config.network} gives the {spec.channels} channels of a "
            "pixel at once, and they would be independent: use logistics, or the network causal-unet"
        )
    return distribution(config.likelihood, spec.channels, config.mixtures)
