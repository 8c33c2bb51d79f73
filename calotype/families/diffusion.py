"""Diffusion, in the formulation of EDM (Karras et al. 2022, arXiv:2206.00364).

Data y is seen through noise, x = y + sigma * n with n ~ N(0, I). The denoiser is a preconditioned network F,

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))
    c_skip  = sigma_data^2 / (sigma^2 + sigma_data^2)
    c_out   = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
    c_in    = 1 / sqrt(sigma^2 + sigma_data^2)
    c_noise = ln(sigma) / 4                                                                     (table 1)

and is trained to return the clean image:

    L = E_{y, n, sigma} lambda(sigma) |D(y + sigma n; sigma) - y|^2 / dims
    lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2
    ln sigma ~ N(noise_mean, noise_std^2)

Sampling integrates the probability-flow ODE of `solvers` from sigma_max to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from calotype.errors import ConfigError
from calotype.families.solvers import SOLVERS, karras_sigmas
from calotype.images import to_bytes, to_unit
from calotype.model import Batch, GenerativeModel, ImageSpec, Loss, Preset, Turn
from calotype.nn.unet import UNet
from calotype.rng import Noise


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """What a diffusion model is."""

    widths: tuple[int, ...] = (32, 64)  # channels per level, finest first; multiples of 16 keep the CPU's vectors full
    blocks: int = 2  # residual blocks per level
    attention: tuple[int, ...] = (1,)  # levels with self-attention, 0 the finest: it pays on small maps only
    patch: int = 2  # side of the pixel squares folded into channels before the first convolution
    dropout: float = 0.0  # within the residual blocks; small data sets may want 0.1
    sigma_data: float = 0.0  # standard deviation of the data in [-1, 1]; 0: measured from the training images
    noise_mean: float = -1.2  # of ln sigma in training; EDM's values for images at this range
    noise_std: float = 1.2

    def __post_init__(self) -> None:
        if not self.widths:
            raise ConfigError("model.widths is empty: give the channels of at least one level, such as [32, 64]")
        for width in self.widths:
            if width < 16 or width % 16:
                raise ConfigError(f"model.widths contains {width}, but widths are multiples of 16: use {_near(width)}")
        for name in ("blocks", "patch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give at least 1")
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ConfigError(
                    f"model.attention names level {level}, but levels are 0 to {len(self.widths) - 1}: remove it"
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}: give a probability from 0 to below 1")
        if self.sigma_data < 0:
            raise ConfigError(f"model.sigma_data is {self.sigma_data}: give a positive value, or 0 to have it measured")
        if self.noise_std <= 0:
            raise ConfigError(f"model.noise_std is {self.noise_std}: give a positive value")


def _near(width: int) -> int:
    return max(16, round(width / 16) * 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionOptions:
    """How to sample from a diffusion model."""

    steps: int = 18  # heun makes 2 * steps - 1 network calls, euler makes `steps`
    solver: str = "heun"
    sigma_max: float = 80.0  # far above sigma_data: what is left of the image there is invisible
    sigma_min: float = 0.002  # below half a grey level (1/255 of the range)
    rho: float = 7.0  # spends more steps at small noise levels

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}: give at least 1")
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver {self.solver!r} is unknown: choose one of {', '.join(SOLVERS)}")
        if not self.rho > 0:
            raise ConfigError(f"rho is {self.rho}: give a positive value, such as 7")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max}: sigma_min must be the lower")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A row of the table of presets: a network that adapts to the size of the images."""

    widths: tuple[int, ...]
    blocks: int
    batch_size: int
    learning_rate: float
    images_wanted: int
    # Of ln sigma in training. At EDM's -1.2 and 1.2 most of a short training goes to fine detail, and shapes stay
    # broken: of MNIST samples after 68,000 images a classifier read 60 % (at twice the learning rate, with about the
    # same loss), at -0.7 and 1.4 it read 89 %, at 0 and 1.6 92 %. But the higher, the grainier: the small sizes stand
    # in between.
    noise_mean: float
    noise_std: float
    patch: int = 2
    largest_attended: int = 64  # positions of a map; attention over more costs more than it brings

    def preset(self, spec: ImageSpec) -> Preset:
        """This size for such images: fewer levels for small ones, larger patches for large ones."""
        side = min(spec.height, spec.width)
        doublings = max(0, (side // 48).bit_length() - 1)  # keeps the finest map at 24 to 48 positions a side
        patch = max(1, min(self.patch * 2**doublings, side // 8))  # 8: a finest map smaller than this blurs
        rows, columns = -(-spec.height // patch), -(-spec.width // patch)
        positions = [-(-rows // 2**k) * -(-columns // 2**k) for k in range(len(self.widths))]
        levels = [0]  # down to a map that attention sees whole: halving it again costs time and brings little
        while len(levels) < len(self.widths) and positions[levels[-1]] > self.largest_attended:
            if min(rows, columns) >> len(levels) == 0:
                break
            levels.append(len(levels))
        attention = [k for k in levels if positions[k] <= self.largest_attended]
        model = DiffusionConfig(
            widths=self.widths[: len(levels)],
            blocks=self.blocks,
            attention=tuple(attention),
            patch=patch,
            noise_mean=self.noise_mean,
            noise_std=self.noise_std,
        )
        return Preset(model, self.batch_size, self.learning_rate, self.images_wanted)


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        widths=(32, 64, 64),
        blocks=1,
        batch_size=64,
        learning_rate=4e-3,
        images_wanted=0,
        noise_mean=-0.4,
        noise_std=1.5,
    ),
    "small": Size(
        widths=(32, 64, 64),
        blocks=2,
        batch_size=64,
        learning_rate=3e-3,
        images_wanted=300_000,
        noise_mean=-0.6,
        noise_std=1.4,
    ),
    "medium": Size(
        widths=(64, 128, 128),
        blocks=2,
        batch_size=64,
        learning_rate=2e-3,
        images_wanted=2_000_000,
        noise_mean=-0.9,
        noise_std=1.3,
    ),
    "large": Size(
        widths=(128, 256, 256),
        blocks=3,
        batch_size=128,
        learning_rate=1e-3,
        images_wanted=20_000_000,
        noise_mean=-1.2,
        noise_std=1.2,
    ),
}


class Diffusion(GenerativeModel):
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
        )

    @classmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        """See `SIZES`; patch and depth follow the size of the images."""
        return {name: size.preset(spec) for name, size in SIZES.items()}

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

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None, noise: Noise | None = None) -> Tensor:
        """D(x; sigma): x float (B, C, H, W), sigma (B,) or scalar. With noise, dropout is on."""
        sd = self.config.sigma_data
        sigma = sigma.to(x).expand(len(x)).reshape(-1, 1, 1, 1)
        total = sigma.square() + sd**2
        c_skip, c_out, c_in = sd**2 / total, sigma * sd * total.rsqrt(), total.rsqrt()
        estimate = self.network(c_in * x, sigma.log().flatten() / 4, labels, noise)
        return c_skip * x + c_out * estimate.to(x.dtype)

    def turns(self) -> Sequence[Turn]:
        return (Turn("model", self.loss),)

    def loss(self, batch: Batch, noise: Noise) -> Loss:
        """The weighted denoising loss; about 1 for an untrained network, whatever the noise level."""
        config, y = self.config, to_unit(batch.images, self.dtype)
        sigma = (noise.normal().to(y) * config.noise_std + config.noise_mean).exp()
        level = sigma.reshape(-1, 1, 1, 1)
        x = y + level * noise.normal(*y.shape[1:]).to(y)
        weight = (level.square() + config.sigma_data**2) / (level * config.sigma_data).square()
        dropping = noise.fork("dropout") if config.dropout and self.training else None
        error = self.denoise(x, sigma, batch.labels, dropping) - y
        return Loss((weight * error.square()).mean(), {})

    @torch.no_grad()
    def sample(self, noise: Noise, labels: Tensor | None = None, options: DiffusionOptions | None = None) -> Tensor:
        options = options or DiffusionOptions()
        sigmas = karras_sigmas(options.steps, options.sigma_min, options.sigma_max, options.rho)
        sigmas = sigmas.to(self.dtype).to(noise.device)
        x = noise.normal(*self.spec.shape).to(sigmas) * sigmas[0]
        return to_bytes(SOLVERS[options.solver](lambda x, sigma: self.denoise(x, sigma, labels), x, sigmas))
