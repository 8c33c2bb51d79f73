"""Variational autoencoders: a bound on the likelihood of an image, by latents that an encoder infers.

    log p(x) >= E_q(z|x) [log p(x | z)] - KL(q(z | x) || p(z)),               the evidence lower bound, ELBO;
    log p(x) >= E log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x),  z_k ~ q,     the importance-weighted bound.

p(x | z) is a distribution of `calotype.nn.distributions` for each pixel, on the bytes themselves, so both are bounds in
bits/dim of the 8-bit image. The loss is the ELBO in bits/dim, with the divergence weighted by beta and over each latent
map not below the free bits; evaluated it is the ELBO itself.

Source: Kingma and Welling 2014, arXiv:1312.6114; Burda et al. 2016, arXiv:1509.00519; Higgins et al. 2017 (beta);
Kingma et al. 2016, arXiv:1606.04934 (free bits, here for each image).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from calotype.core.images import to_unit
from calotype.core.model import (
    Batch,
    Bits,
    Encodable,
    GenerativeModel,
    HasLatentMap,
    HasLikelihood,
    ImageSpec,
    LatentMap,
    Loss,
    Preset,
    Remark,
    Turn,
)
from calotype.core.rng import Noise
from calotype.errors import ConfigError
from calotype.families.vae.config import VAEConfig, VAEOptions
from calotype.families.vae.presets import presets
from calotype.nn.coder import Coder, CodeStep
from calotype.nn.distributions import AS_LEARNED, Bernoulli, distribution, likelihood_for
from calotype.nn.ladder import Ladder, Step
from calotype.nn.levels import Style, level_sizes
from calotype.nn.quantise import FSQ, VQ

# Colours of flat pictures in all, up to which they are learned sooner as categories than as numbers: see docs/vae.md.
# Gray ones have 256 at most, and in digits of all of them the numbers do better: as few as measured palettes have.
PALETTE, GRAYS = 256, 16
COLLAPSED = 0.05  # share of the channels of latents that are active, below which they are of no use
# Images seen before which that says nothing: in 2 of 43 healthy runs, of 112 and 350 pictures, latents became active
# between 10,000 and 20,000 images only (benchmarks/remarks.py).
AWAKE = 50_000
FEWEST = 2.0  # codes in use, weighed by how often
EVALUATIONS = 32_000  # of the decoder, in an evaluation of the likelihood
FEWEST_IMAGES = 200  # for it, however many samples are asked for


class VAE(GenerativeModel, HasLikelihood, Encodable, HasLatentMap):
    """Latents from which an image is drawn, and an encoder that finds them."""

    Config = VAEConfig
    Options = VAEOptions

    def __init__(self, spec: ImageSpec, config: VAEConfig) -> None:
        super().__init__(spec, config)
        if config.likelihood == "auto":
            raise ConfigError("model.likelihood is auto, to be chosen by the data: use VAE.measured(config, images)")
        sizes = level_sizes((spec.height, spec.width), len(config.widths), config.patch, config.point)
        if len(set(sizes)) < len(sizes):
            raise ConfigError(
                f"model.widths has {len(sizes)} levels, but images of {spec.width}x{spec.height} are of one position "
                f"after {sizes.index((1, 1)) + 1}: give fewer"
            )
        if sizes[0] != level_sizes((spec.height, spec.width), 1, config.patch, point=False)[0]:
            raise ConfigError(
                "model.point makes the coarsest level one position, but model.widths has one level, which are the "
                f"pixels of {spec.width}x{spec.height}: give two or more levels, or point=false"
            )
        self.distribution = distribution(config.likelihood, spec.channels, config.mixtures)
        self.network = _network(spec, config, self.distribution.parameters)

    @classmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        """The presets for such images, by name, from the smallest to the largest."""
        return presets(spec)

    @classmethod
    def measured(cls, config: VAEConfig, images: Tensor) -> VAEConfig:
        """Choose the likelihood by the values and colours of the training images: uint8 (N, C, H, W)."""
        if config.likelihood != "auto":
            return config
        palette = PALETTE if images.shape[1] > 1 else GRAYS
        return replace(config, likelihood=likelihood_for(images, "logistics", palette))

    def turns(self) -> Sequence[Turn]:
        """A single turn per training step, of the player `model`."""
        return (Turn("model", self.loss),)

    def remark(self, parts: Mapping[str, float]) -> Remark | None:
        """A warning about posterior collapse or a codebook with few codes in use, with the settings to change."""
        active, perplexity = parts.get("model/active", 1.0), parts.get("model/perplexity", math.inf)
        if active < COLLAPSED and self.images_seen >= AWAKE:
            return Remark(
                f"the latents say next to nothing of the pictures ({active:.0%} of their channels are active): the "
                "posterior has collapsed. Start again with room for them, such as --set model.free_bits=1, a "
                "divergence that costs little at first, such as --set model.warmup=50000, or a smaller model.beta"
            )
        if perplexity < FEWEST:
            other = "" if self.config.code == "fsq" else "--set model.code=fsq, or "
            return Remark(
                f"codes are used as if there were {perplexity:.1f} of {math.prod(self.config.codes)}: they have "
                f"collapsed. Start again with {other}a lower rate, --set training.learning_rate"
            )
        return None

    # -- the bound

    def loss(self, batch: Batch, noise: Noise) -> Loss:
        """Bits per dimension, of the ELBO, or in training as the config has it."""
        images = self.distribution.prepared(batch.images, noise)
        if self.config.samples > 1 and self.training:
            return Loss(self._bits(self.log_weights(images, batch.labels, noise, self.config.samples)).mean(), {})
        reconstruction, steps = self._infer(images, batch.labels, noise)
        facts: Callable[[Any], dict[str, Tensor]] = self.network.facts
        each = torch.stack([step.kl().flatten(1).sum(1) for step in steps])  # (latent maps, B)
        elbo = self._bits(reconstruction - each.sum(0)).mean()
        parts = {
            "elbo": elbo.detach(),
            "reconstruction": self._bits(reconstruction.detach()).mean(),
            "kl": -self._bits(each.detach().sum(0)).mean(),
        } | facts(steps)
        if not self.training:
            return Loss(elbo, parts)
        counted = each.clamp(min=self.config.free_bits) if self.config.free_bits else each
        value = self._bits(reconstruction - self._weight() * counted.sum(0)).mean()
        further = [loss for step in steps if (loss := step.loss()) is not None]
        return Loss(value + torch.stack(further).sum(0).mean() / self.spec.dims if further else value, parts)

    def _weight(self) -> float:
        """The weight of the divergence in training."""
        return self.config.beta * min(1.0, self.images_seen / self.config.warmup if self.config.warmup else 1.0)

    def log_weights(self, images: Tensor, labels: Tensor | None, noise: Noise, samples: int) -> Tensor:
        """log p(x | z) p(z) / q(z | x) of latents drawn so many times, in nats: float64 (samples, B).

        Binary images are taken as they are; each sample takes the memory of one, but for gradients.
        """
        return torch.stack(list(self._log_weights(images, labels, noise, samples)))

    def _log_weights(self, images: Tensor, labels: Tensor | None, noise: Noise, samples: int) -> Iterator[Tensor]:
        known = self.network.encode(to_unit(images, self.dtype))
        for k in range(samples):
            numbers, steps = self.network.infer(known, labels, noise.fork(f"sample{k}"))
            ratio = sum((step.log_ratio().double() for step in steps), torch.zeros(()))
            yield self._log_prob(numbers, images) + ratio

    def _bits(self, nats: Tensor) -> Tensor:
        """Bits per dimension of log-probabilities (B,), or of log-weights (samples, B) by the mean of the weights."""
        if nats.ndim == 2:
            nats = torch.logsumexp(nats, 0) - math.log(len(nats))
        return -nats / (self.spec.dims * math.log(2))

    def _infer(
        self, images: Tensor, labels: Tensor | None, noise: Noise
    ) -> tuple[Tensor, Sequence[Step] | Sequence[CodeStep]]:
        """log p(x | z) of images, float64 (B,), and the latents."""
        numbers, steps = self.network.infer(self.network.encode(to_unit(images, self.dtype)), labels, noise)
        return self._log_prob(numbers, images), steps

    def _log_prob(self, numbers: Tensor, images: Tensor) -> Tensor:
        found = self.distribution.log_prob(numbers.to(self.dtype), images.permute(0, 2, 3, 1))
        return found.flatten(1).double().sum(1)

    @torch.no_grad()
    def bits_per_dim(self, batch: Batch, noise: Noise, options: VAEOptions | None = None) -> Bits:
        """The importance-weighted bound of options.bound_samples, with one the ELBO; given the label if there is one.

        With one the divergence is taken exactly, given the latents before, and not by the sample. Memory is that of
        one sample, however many there are.
        """
        certain = isinstance(self.network, Coder)  # of the latents: one sample is like another
        samples = 1 if certain else (options or VAEOptions()).bound_samples
        device = next(self.parameters()).device
        labels = None if batch.labels is None else batch.labels.to(device)
        images = self.distribution.prepared(batch.images.to(device), noise)
        if samples == 1:
            reconstruction, steps = self._infer(images, labels, noise)
            nats = reconstruction - sum((step.kl().flatten(1).sum(1).double() for step in steps), torch.zeros(()))
        else:
            total = torch.full((len(images),), -math.inf, dtype=torch.float64, device=device)
            for nats in self._log_weights(images, labels, noise, samples):
                total = torch.logaddexp(total, nats)
            nats = total - math.log(samples)
        changed = "" if torch.equal(images.cpu(), batch.images.cpu()) else "binarised at random"
        kind: Literal["bound", "estimate"] = "bound" if self.distribution.proper else "estimate"
        return Bits(self._bits(nats).cpu(), kind, changed, enough=max(FEWEST_IMAGES, EVALUATIONS // samples))

    # -- images and latents

    def network_calls(self, options: VAEOptions | None) -> int:
        """One, of what draws an image from the prior."""
        return 1

    @torch.no_grad()
    def sample(self, noise: Noise, labels: Tensor | None = None, options: VAEOptions | None = None) -> Tensor:
        """Draw noise.n images, uint8 (n, C, H, W), from the prior; options.pixels chooses mean or drawn pixels."""
        chosen = options or VAEOptions()
        numbers = self.network.generate(noise.n, labels, noise, chosen.temperature).to(self.dtype)
        binary = isinstance(self.distribution, Bernoulli)
        if chosen.pixels == "mean" or (chosen.pixels == "auto" and not binary):
            return self._mean(numbers)
        uniforms = noise.fork("pixels").uniform(self.spec.height, self.spec.width, self.distribution.draws)
        pixels = self.distribution.sample(numbers, uniforms.to(self.dtype), AS_LEARNED)
        return pixels.permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Posterior means of all latent maps, flattened and concatenated: uint8 (B, C, H, W) to float (B, latents)."""
        known = self.network.encode(to_unit(images, self.dtype))
        return torch.cat([z.flatten(1) for z in self.network.means(known, labels)], 1)

    @torch.no_grad()
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean images, uint8 (B, C, H, W), of latents, float (B, latents)."""
        shapes = self.network.latent_shapes()
        sizes = [math.prod(shape) for shape in shapes]
        if latents.shape[1] != sum(sizes):
            raise ConfigError(
                f"latents are {latents.shape[1]} for each picture, but the model has {sum(sizes)}: give those that it "
                "encoded"
            )
        parts = latents.to(self.dtype).split(sizes, 1)
        maps = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        return self._mean(self.network.decode(maps, labels).to(self.dtype))

    # -- as the first of two stages

    def latent_map(self) -> LatentMap:
        """The shape of the latent map, and its number of codes; ConfigError where it is not a single map."""
        shapes = self.network.latent_shapes()
        if len(shapes) > 1 or shapes[0][1:] == (1, 1):
            raise ConfigError(
                f"its latents are {len(shapes)} maps, the coarsest of {shapes[0][1]}x{shapes[0][2]}, but a second "
                "stage needs a single map of several positions: train one with --set model.point=false and latents at "
                "the coarsest level alone, such as --set model.widths=[32,64] --set model.blocks=[1,1] --set "
                "model.latents=[0,1]"
            )
        if isinstance(self.network, Coder):
            return LatentMap(1, *shapes[0][1:], self.network.quantiser.codes)
        return LatentMap(*shapes[0], 0)

    def prepared(self, images: Tensor, noise: Noise) -> Tensor:
        """The images of the values that the likelihood models, uint8 (B, C, H, W): binarised for Bernoulli."""
        return self.distribution.prepared(images, noise)

    def is_proper(self) -> bool:
        """Whether the likelihood is a probability: false for the Gaussian, which gives an estimate."""
        return self.distribution.proper

    @torch.no_grad()
    def to_map(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Latent maps, float (B, C, h, w), of uint8 images (B, C, H, W): posterior means, or code numbers (C = 1)."""
        known = self.network.encode(to_unit(images, self.dtype))
        if isinstance(self.network, Coder):
            return self.network.codes(known)[:, None].to(self.dtype)
        return self.network.means(known, labels)[0]

    @torch.no_grad()
    def from_map(self, maps: Tensor, labels: Tensor | None) -> Tensor:
        """The mean images, uint8 (B, C, H, W), of latent maps, float (B, C, h, w)."""
        return self._mean(self._of_map(maps, labels))

    @torch.no_grad()
    def map_log_prob(self, images: Tensor, maps: Tensor, labels: Tensor | None) -> Tensor:
        """log p(image | map), nats, float64 (B,): images uint8 (B, C, H, W), maps float (B, C, h, w)."""
        return self._log_prob(self._of_map(maps, labels), images)

    def _of_map(self, maps: Tensor, labels: Tensor | None) -> Tensor:
        values = maps.to(self.dtype)
        if isinstance(self.network, Coder):
            numbers = maps[:, 0].round().long().clamp(0, self.network.quantiser.codes - 1)
            values = self.network.quantiser.values(numbers).to(self.dtype)
        return self.network.decode([values], labels).to(self.dtype)

    def _mean(self, numbers: Tensor) -> Tensor:
        return self.distribution.mean(numbers).round().clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 2).contiguous()


def _network(spec: ImageSpec, config: VAEConfig, outputs: int) -> Ladder | Coder:
    size = spec.height, spec.width
    style = Style(config.bottleneck, config.resample == "pooled")
    if config.code == "gaussian":
        shape = config.widths, config.blocks, config.latents, config.latent_width
        return Ladder(spec.channels, outputs, size, *shape, spec.num_classes, config.patch, config.point, style)
    quantiser = FSQ(config.codes) if config.code == "fsq" else VQ(config.codes[0], config.latent_width)
    levels = config.widths, config.blocks
    return Coder(spec.channels, outputs, size, *levels, quantiser, spec.num_classes, config.patch, style)
