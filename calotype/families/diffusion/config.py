"""The config of a diffusion model, and its sampling options."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from calotype.core.config import check_choice, check_widths
from calotype.errors import ConfigError
from calotype.families.diffusion.predictions import PREDICTIONS
from calotype.families.diffusion.schedules import SCHEDULES
from calotype.families.diffusion.solvers import SOLVERS
from calotype.families.guidance import AUTO, check_weight
from calotype.nn.unet import DESIGNS

ANY_LEVEL = (0.0, 1e9)
# Of models that can be guided, where nothing is said. After minutes of training samples are then nearer to real
# pictures, at a tenth more time: where noise hides all, and where nothing is left to decide, it does not act.
GUIDANCE, GUIDED = 2.0, (0.3, 5.0)
SPACINGS = ("auto", "karras", "time", "logsnr")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """The config of a diffusion model."""

    widths: tuple[int, ...] = (32, 64)  # channels per level, finest first; multiples of 16 keep the CPU's vectors full
    blocks: int = 2  # residual blocks per level
    attention: tuple[int, ...] = (1,)  # levels with self-attention, 0 the finest: it pays on small maps only
    patch: int = 2  # side of the pixel squares folded into channels before the first convolution
    base: int = 0  # channels of the first convolution; 0: those of the first level
    design: str = "light"  # of the U-Net: light, or as published: ddpm, ddpm++, adm
    dropout: float = 0.0  # within the residual blocks; small data sets may want 0.1
    label_dropout: float = 0.1  # share of training images shown without their class, which guidance needs
    prediction: str = "edm"  # what the network predicts: edm, eps, x0, v, velocity
    loss: str = ""  # in which of these the error is measured; "": in that of the prediction
    schedule: str = "lognormal"  # the noise levels of training: lognormal, linear, cosine, flow
    noise_mean: float = -1.2  # of ln sigma in training; EDM's values for images at this range
    noise_std: float = 1.2  # 0, for the schedule flow: t uniform. linear and cosine use neither
    sigma_data: float = 0.0  # standard deviation of the data in [-1, 1]; 0: measured from the training images

    def __post_init__(self) -> None:
        if not self.widths:
            raise ConfigError("model.widths is empty: give the channels of at least one level, such as [32, 64]")
        check_widths("model.widths", self.widths)
        check_widths("model.base", [self.base] if self.base else [])
        for name in ("blocks", "patch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give at least 1")
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ConfigError(
                    f"model.attention names level {level}, but levels are 0 to {len(self.widths) - 1}: "
                    "give others, or none, as in model.attention=[]"
                )
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give a probability from 0 to below 1")
        check_choice("model.design", self.design, DESIGNS)
        check_choice("model.prediction", self.prediction, PREDICTIONS)
        check_choice("model.loss", self.loss, ["", *PREDICTIONS])
        check_choice("model.schedule", self.schedule, SCHEDULES)
        if not (isfinite(self.sigma_data) and self.sigma_data >= 0):
            raise ConfigError(f"model.sigma_data is {self.sigma_data}: give a positive value, or 0 to have it measured")
        if not isfinite(self.noise_mean):
            raise ConfigError(f"model.noise_mean is {self.noise_mean}: give a number, such as -1.2")
        if not (isfinite(self.noise_std) and self.noise_std >= (1e-6 if self.schedule == "lognormal" else 0)):
            raise ConfigError(f"model.noise_std is {self.noise_std}: give a positive value")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionOptions:
    """Sampling options of a diffusion model."""

    steps: int = 16  # network calls: 2 * steps - 1 with heun, steps with the other solvers
    solver: str = "dpm2m"  # ddpm, ddim, euler, heun, dpm2m, unipc
    guidance: float = AUTO  # 1: none; more: more typical of the class, less varied; 0: no class; -1: see GUIDANCE
    guidance_interval: tuple[float, ...] = ANY_LEVEL  # noise levels between which guidance acts
    stochasticity: float = 0.0  # eta of ddim, 0 to 1; of ddpm, 1 for the larger variance; churn of euler and heun
    clip: bool = False  # every estimate of the clean image to the range of images, as DDPM does
    spacing: str = "auto"  # of the noise levels: karras, time (the schedule's own), logsnr; auto: as suits the schedule
    sigma_max: float = 0.0  # the noise level that sampling starts from; 0: the schedule's largest, at most 80
    sigma_min: float = 0.0  # the last noise level before 0; 0: the schedule's smallest
    rho: float = 7.0  # of karras: larger spends more steps at small noise levels

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}: give at least 1")
        check_choice("solver", self.solver, SOLVERS)
        check_weight(self.guidance, f"{GUIDANCE:g} between noise levels {GUIDED[0]:g} and {GUIDED[1]:g}")
        if len(self.guidance_interval) != 2 or not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            raise ConfigError(
                f"guidance_interval is {list(self.guidance_interval)}: give two noise levels, the lower first, such as "
                "[0.2, 5]"
            )
        if not (isfinite(self.stochasticity) and self.stochasticity >= 0):
            raise ConfigError(f"stochasticity is {self.stochasticity}: give 0 or more")
        if self.stochasticity and self.solver in ("dpm2m", "unipc"):
            raise ConfigError(f"stochasticity has no meaning for {self.solver}: leave it out, or use ddim or heun")
        if self.stochasticity > 1 and self.solver in ("ddim", "ddpm"):
            raise ConfigError(f"stochasticity is {self.stochasticity}, but that of {self.solver} is from 0 to 1")
        check_choice("spacing", self.spacing, SPACINGS)
        if not (isfinite(self.rho) and self.rho > 0):
            raise ConfigError(f"rho is {self.rho}: give a positive value, such as 7")
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}: give a positive noise level, or 0 for that of the schedule")
        if self.spacing == "time" and (self.sigma_min or self.sigma_max):
            raise ConfigError(
                "spacing time runs over the schedule's own noise levels: leave out sigma_min and sigma_max, or use "
                "spacing karras"
            )
        if 0 < self.sigma_max <= self.sigma_min:
            raise ConfigError(f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max}: sigma_min must be the lower")
