"""Diffusion: a denoiser trained at all noise levels, and images by integrating its probability-flow ODE.

Data y is seen through noise, x = y + sigma * n with n ~ N(0, I). The denoiser is a network F between known factors,

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma)),

where c_skip and c_out say what F predicts (`predictions`), and c_in and c_noise how it is told (`schedules`). It is
trained to give the clean image,

    L = E_{y, n, sigma} |D(y + sigma n; sigma) - y|^2 / (dims c_out(sigma)^2),

sigma drawn by the schedule; so the loss is the mean square error of F. By default F is that of EDM (Karras et al. 2022,
arXiv:2206.00364); with `prediction` eps and `schedule` linear it is DDPM as published (Ho et al. 2020,
arXiv:2006.11239), with velocity and flow it is flow matching (Lipman et al. 2023, arXiv:2210.02747). Sampling
integrates the probability-flow ODE of `solvers` from the largest noise level to 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from calotype.core.images import to_bytes, to_unit
from calotype.core.model import Batch, Bits, GenerativeModel, HasLikelihood, ImageSpec, Loss, Preset, Turn
from calotype.core.rng import Noise
from calotype.errors import ConfigError
from calotype.families.diffusion.bound import variational_bits
from calotype.families.diffusion.config import ANY_LEVEL, GUIDANCE, GUIDED, DiffusionConfig, DiffusionOptions
from calotype.families.diffusion.density import log_density
from calotype.families.diffusion.guidance import guided
from calotype.families.diffusion.predictions import PREDICTIONS
from calotype.families.diffusion.presets import presets
from calotype.families.diffusion.schedules import FARTHEST, SCHEDULES
from calotype.families.diffusion.solvers import SOLVERS, Denoise, karras
from calotype.families.guidance import AUTO, check_can_be_guided, hidden
from calotype.nn.unet import UNet


class Diffusion(GenerativeModel, HasLikelihood):
    """A denoiser trained at all noise levels, and images by integrating its probability-flow ODE."""

    Config = DiffusionConfig
    Options = DiffusionOptions

    def __init__(self, spec: ImageSpec, config: DiffusionConfig) -> None:
        super().__init__(spec, config)
        halvings = len(config.widths) - 1
        possible = (-(-min(spec.height, spec.width) // config.patch)).bit_length() - 1
        if halvings > possible:
            raise ConfigError(
                f"model.widths has {len(config.widths)} levels, but {spec.width}x{spec.height} images with patch "
                f"{config.patch} allow at most {possible + 1}: remove {halvings - possible}"
            )
        if config.sigma_data == 0:
            raise ConfigError("model.sigma_data is 0, to be measured: use Diffusion.measured(config, images)")
        self.network = UNet(
            spec.channels,
            spec.channels,
            config.widths,
            config.blocks,
            config.attention,
            config.patch,
            spec.num_classes,
            config.dropout,
            config.base,
            config.design,
        )
        self.prediction = PREDICTIONS[config.prediction]
        self.schedule = SCHEDULES[config.schedule](config.noise_mean, config.noise_std, config.sigma_data)

    @classmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        """The presets for such images, by name, from the smallest to the largest."""
        return presets(spec)

    @classmethod
    def measured(cls, config: DiffusionConfig, images: Tensor) -> DiffusionConfig:
        """Fill in sigma_data with the standard deviation of the images in [-1, 1]; uint8 (N, C, H, W)."""
        if config.sigma_data > 0:
            return config
        counts = torch.bincount(images.flatten(), minlength=256).double()  # exact, whatever the number of images
        values = to_unit(torch.arange(256), torch.float64)
        mean = (counts * values).sum() / counts.sum()
        deviation = float(((counts * (values - mean).square()).sum() / counts.sum()).sqrt())
        return replace(config, sigma_data=max(0.01, round(deviation, 4)))  # a set of one plain colour has none

    def denoise(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None, noise: Noise | None = None) -> Tensor:
        """D(x; sigma): x float (B, C, H, W), sigma a number or (B,). With noise, dropout is on.

        Labels are 0 to num_classes - 1, and num_classes for an image of no class, as all are without labels.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        if labels is None and self.spec.num_classes:
            labels = torch.full((len(x),), self.spec.num_classes, device=x.device)
        level = sigma.reshape(-1, 1, 1, 1)
        predicted = self.network(self.schedule.scale(level) * x, self.schedule.condition(sigma), labels, noise)
        return self.prediction(level, self.config.sigma_data).clean(x, predicted.to(x.dtype))

    def turns(self) -> Sequence[Turn]:
        """A single turn per training step, of the player `model`."""
        return (Turn("model", self.loss),)

    def loss(self, batch: Batch, noise: Noise) -> Loss:
        """The denoising loss, the mean square error of what the network predicts (or of `config.loss`)."""
        config, y = self.config, to_unit(batch.images, self.dtype)
        sigma = self.schedule.draw(noise.spread().to(y))
        level = sigma.reshape(-1, 1, 1, 1)
        x = y + level * noise.normal(*y.shape[1:]).to(y)
        dropping = noise.fork("dropout") if config.dropout and self.training else None
        share = config.label_dropout if self.training else 0.0
        labels = hidden(batch.labels, share, self.spec.num_classes, noise)
        error = self.denoise(x, sigma, labels, dropping) - y
        space = PREDICTIONS[config.loss] if config.loss else self.prediction
        return Loss((error / space(level, config.sigma_data).out).square().mean(), {})

    @torch.no_grad()
    def sample(self, noise: Noise, labels: Tensor | None = None, options: DiffusionOptions | None = None) -> Tensor:
        """Draw noise.n images, uint8 (n, C, H, W), by solving the ODE or SDE from the largest noise level to 0."""
        options = options or DiffusionOptions()
        sigmas = self.levels(options)
        x = noise.normal(*self.spec.shape).to(self.dtype) * float(sigmas[0])
        solve = SOLVERS[options.solver]
        return to_bytes(solve(self.denoiser(labels, options), x, sigmas, noise, options.stochasticity))

    def levels(self, options: DiffusionOptions) -> Tensor:
        """The noise levels of sampling, from the largest to 0: float64 (steps + 1,). Raises ConfigError."""
        low, high = options.sigma_min or self.schedule.smallest, options.sigma_max or self.start
        if low >= high:
            raise ConfigError(f"sigma_min {low:g} and sigma_max {high:g}: sigma_min must be the lower")
        spacing = options.spacing
        if spacing == "auto":
            moved = bool(options.sigma_min or options.sigma_max)
            spacing = "time" if options.solver == "ddpm" and not moved else self.schedule.spacing
            if spacing == "time" and moved:  # the schedule's own levels have ends of their own
                spacing = "karras"
        ramp = torch.linspace(1, 0, options.steps, dtype=torch.float64)
        if spacing == "karras":
            levels = karras(options.steps, low, high, options.rho)
        elif spacing == "logsnr":
            levels = low * (high / low) ** ramp
        else:
            levels = self.schedule.levels(ramp)
        return torch.cat([levels, levels.new_zeros(1)])

    @property
    def start(self) -> float:
        """The noise level that sampling starts from, unless something else is asked for."""
        return min(self.schedule.largest, FARTHEST)

    @property
    def can_be_guided(self) -> bool:
        """Whether it knows pictures with their class and without."""
        return self.spec.num_classes > 0 and self.config.label_dropout > 0

    def check_options(self, options: DiffusionOptions) -> None:
        """Raise ConfigError for noise levels or guidance that this model does not support."""
        self.levels(options)
        check_can_be_guided(options.guidance, self.spec.num_classes, self.config.label_dropout)

    def denoiser(self, labels: Tensor | None, options: DiffusionOptions) -> Denoise:
        """The denoiser of sampling: of the labels, guided and clipped as the options say."""

        def conditional(x: Tensor, sigma: float) -> Tensor:
            return self.denoise(x, sigma, labels)

        def both(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            assert labels is not None
            none = torch.full_like(labels, self.spec.num_classes)
            out = self.denoise(torch.cat([x, x]), sigma, torch.cat([none, labels]))
            return out[: len(x)], out[len(x) :]

        weight, interval = options.guidance, options.guidance_interval
        if weight == AUTO:
            weight = GUIDANCE if self.can_be_guided and labels is not None else 1.0
            interval = GUIDED if interval == ANY_LEVEL else interval
        chosen: Denoise = conditional
        if weight != 1:
            chosen = guided(both, conditional, weight, interval)
        return (lambda x, sigma: chosen(x, sigma).clamp(-1, 1)) if options.clip else chosen

    @torch.no_grad()
    def bits_per_dim(self, batch: Batch, noise: Noise, options: DiffusionOptions | None = None) -> Bits:
        """The variational bound on each 8-bit image, given its label where there are classes, see `bound`."""
        device = next(self.parameters()).device
        labels = None if batch.labels is None else batch.labels.to(device)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            clean = self.denoise(x.to(self.dtype).to(device), sigma.to(self.dtype).to(device), labels)
            return clean.cpu().double()  # not every device has float64

        return Bits(variational_bits(denoise, batch.images.cpu(), noise, self.start), "bound", enough=32)

    def density_bits(self, batch: Batch, noise: Noise, steps: int = 50, probes: int = 1) -> Bits:
        """-log2 p of each image, its pixels uniformly dequantised, under the probability-flow ODE: an estimate.

        What papers report as the likelihood of a diffusion model. Neither a bound nor exact: the ODE is solved in
        steps, the trace estimated, and p is that of images at the smallest noise level. 2 steps network calls and their
        gradients.
        """
        device = next(self.parameters()).device
        labels = None if batch.labels is None else batch.labels.to(device)
        images = batch.images.to(device)
        x = to_unit(images, self.dtype) + (2 * noise.uniform(*self.spec.shape).to(device, self.dtype) - 1) / 255
        levels = karras(steps + 1, self.schedule.smallest, self.start, 7.0).flip(0)
        nats = -log_density(lambda x, sigma: self.denoise(x, sigma, labels), x, levels, noise.fork("signs"), probes)
        return Bits((nats / self.spec.dims - math.log(2 / 255)).cpu() / math.log(2), "estimate", enough=32)
