"""The training section of a run's config, and the learning rate schedule that it defines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calotype.core.config import check_choice
from calotype.errors import ConfigError
from calotype.optimization.optimizers import OPTIMIZERS

ON_COLLAPSE = ("say", "rollback")


MOST = {"images": 10**15, "batch_size": 1_000_000, "threads": 4_096}  # more is a slip of the finger


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained. Schedules are functions of images seen, which all families count alike."""

    images: int  # the budget, in images seen
    batch_size: int = 64  # images per optimizer step; laptop budgets gain from many small steps
    micro_batch: int = 0  # images per forward pass, less when memory is short; 0: the whole batch
    optimizer: str = "adamw"  # adamw, or muon: for matrices and convolutions, with adamw for the rest
    learning_rate: float = 1e-3  # at its peak
    warmup: float = 0.05  # share of the budget over which the rate rises from 0
    decay: float = 0.5  # share of the budget at its end over which the rate falls linearly to 0
    beta1: float = 0.9
    beta2: float = 0.99  # 0.999 remembers 1000 steps, more than a short run has
    beta2_first: float = 0.0  # above 0, beta2 begins with this, and becomes what it is by a cosine over the budget
    weight_decay: float = 0.0  # decoupled, of AdamW and Muon
    clip_norm: float = 1.0  # gradients longer than this are scaled down to it
    skip_norm: float = 0.0  # updates whose gradient is longer are not applied; 0: all that are finite are
    ema_std: float = 0.05  # width of the averaging window as a share of the training so far
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where it is the faster, see gains_from_bf16
    recompute: bool = False  # blocks compute again what they did, instead of keeping it: less memory, a third more time
    compile: bool = False  # torch.compile: minutes at the first start, for 4 % on the CPU where it was measured
    threads: int = 0  # CPU threads; 0: as torch finds the machine. Part of the config since sums depend on it
    flips: bool = False  # mirror images left to right at random
    balanced: bool = False  # show every class equally often
    checkpoint_every: int = 0  # images seen between checkpoints; 0: a twentieth of the budget
    preview_every: int = 0  # images seen between preview grids; 0: a twentieth of the budget
    on_collapse: str = "say"  # what the model remarks when it has collapsed; or rollback: to the last checkpoint
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give at least 1")
        for name in ("micro_batch", "threads", "checkpoint_every", "preview_every", "weight_decay", "skip_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give 0 or more")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ConfigError(f"training.{name} is {getattr(self, name):,}: give at most {most:,}")
        check_choice("training.on_collapse", self.on_collapse, ON_COLLAPSE)
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"training.optimizer is {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give a positive value")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give a share of the budget, 0 to 1")
        for name in ("beta1", "beta2", "beta2_first"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: give a value from 0 to below 1")
        if not 0 < self.ema_std < 0.289:  # the limit is the width of a uniform average, 1 / sqrt(12)
            raise ConfigError(f"training.ema_std is {self.ema_std}: give a value above 0 and below 0.289")


def steps_of(images: int, per_step: int) -> int:
    """Steps of a budget of images."""
    return -(-images // per_step)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of a step of so many: a linear rise, a plateau, a linear fall to 0 at the end of the budget."""
    at = (step + 0.5) / steps
    rise = min(1.0, at / config.warmup) if config.warmup else 1.0
    fall = min(1.0, (1 - at) / config.decay) if config.decay else 1.0
    return config.learning_rate * max(0.0, min(rise, fall))


def power_exponent(std: float) -> float:
    """The exponent gamma whose power-function average has relative width `std`.

    The average weights the parameters of time tau by tau^gamma; its relative width is
    sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).  Source: Karras et al. 2024, arXiv:2312.02696, eq. 123-126.
    """
    low, high = 0.0, 1e9
    for _ in range(200):  # the width falls as gamma grows: bisect
        middle = (low + high) / 2
        wide = (middle + 1) ** 0.5 / ((middle + 2) * (middle + 3) ** 0.5) > std
        low, high = (middle, high) if wide else (low, middle)
    return low
