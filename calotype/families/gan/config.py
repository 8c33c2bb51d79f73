"""The config of a generative adversarial network, and its sampling options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from calotype.core.config import check_choice, check_widths
from calotype.core.model import ImageSpec
from calotype.errors import ConfigError
from calotype.families.gan.losses import LOSSES
from calotype.nn import dcgan, normfree, resnet_gan
from calotype.nn.augment import CHANGES


@dataclass(frozen=True, kw_only=True, slots=True)
class GANConfig:
    """The config of a generative adversarial network."""

    network: str = "normfree"  # or resnet, dcgan
    widths: tuple[int, ...] = (32, 64, 128)  # features per level of both networks, finest first; multiples of 16
    blocks: tuple[int, ...] = (1, 1, 1)  # of normfree, per level
    expansion: int = 2  # of normfree: features within a block, times those of its level
    group: int = 16  # of normfree: features of a group of the convolutions within
    patch: int = 1  # of normfree: pixels a side that are one position of the finest level
    critic_share: float = 1.0  # features of the discriminator, as a share of the generator's
    latents: int = 64  # of an image
    loss: str = "relativistic"  # or non-saturating, minimax, least-squares, hinge, wasserstein
    r1: float = 1.0  # weight of half the squared gradient of the discriminator at real images
    r2: float = 1.0  # and at generated ones
    penalty_end: float = -1.0  # both in the end, as a share; the way there is a cosine; -1: 0.05, of few pictures 0.1
    penalty_time: float = -1.0  # share of training that the way takes, see docs/gan.md; -1: 0.4, of few pictures 1
    gradient_penalty: float = 0.0  # weight of the squared distance from 1 of the gradient's norm between both
    critic_steps: int = 1  # of the discriminator for one of the generator
    spectral: bool = False  # the largest singular value of each of the discriminator's weights is 1
    augment: float = 0.0  # probability of each change of what the discriminator sees, at the end of training
    changes: tuple[str, ...] = ("shift", "colour", "cut")  # also flip, turn
    overfit: float = -1.0  # above 0, augment is found: so that the mean sign of the logits of real images is this;
    # -1: 0.6 where there are few pictures and augment is 0, else 0

    def __post_init__(self) -> None:
        check_choice("model.network", self.network, NETWORKS)
        check_choice("model.loss", self.loss, LOSSES)
        for change in self.changes:
            check_choice("model.changes", change, CHANGES)
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ConfigError(
                f"model.widths has {len(self.widths)} levels and model.blocks {len(self.blocks)}: give each level both"
            )
        check_widths("model.widths", self.widths)
        if min(self.blocks) < 1:
            raise ConfigError(f"model.blocks contains {min(self.blocks)}: give at least 1 for each level")
        for name in ("expansion", "group", "patch", "latents", "critic_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give at least 1")
        if not (0 < self.penalty_time <= 1 or self.penalty_time == -1):
            raise ConfigError(
                f"model.penalty_time is {self.penalty_time}: give a share of training, above 0, up to 1, or -1 to have "
                "it chosen"
            )
        if not (0 <= self.penalty_end < inf or self.penalty_end == -1):
            raise ConfigError(f"model.penalty_end is {self.penalty_end}: give 0 or more, or -1 to have it chosen")
        for name in ("r1", "r2", "gradient_penalty"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give 0 or more")
        if not 0 < self.critic_share <= 4:
            raise ConfigError(f"model.critic_share is {self.critic_share}: give a share above 0, such as 0.5, up to 4")
        if not 0 <= self.augment < 1:
            raise ConfigError(f"model.augment is {self.augment}: give 0 or more, and less than 1")
        if not (0 <= self.overfit < 1 or self.overfit == -1):
            raise ConfigError(
                f"model.overfit is {self.overfit}: give 0 or more, and less than 1, or -1 to have it chosen"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GANOptions:
    """Sampling options of a generative adversarial network."""

    truncation: float = 0.0  # latents are drawn from -truncation to truncation; 0: from anywhere

    def __post_init__(self) -> None:
        if not (isfinite(self.truncation) and self.truncation >= 0):
            raise ConfigError(f"truncation is {self.truncation}: give 0 or more; 1 draws more typical images, 0 any")


class Players(NamedTuple):
    """Both networks."""

    generator: nn.Module  # (z (B, latents), labels (B,) or None) -> images (B, C, H, W), mostly in [-1, 1]
    discriminator: nn.Module  # (images, labels or None) -> logits (B,)


def _normfree(spec: ImageSpec, config: GANConfig) -> Players:
    size = spec.height, spec.width
    shape = config.blocks, config.expansion, config.group, spec.num_classes, config.patch
    return Players(
        normfree.Generator(spec.channels, size, config.latents, config.widths, *shape),
        normfree.Discriminator(spec.channels, size, _narrower(config), *shape),
    )


def _resnet(spec: ImageSpec, config: GANConfig) -> Players:
    size = spec.height, spec.width
    return Players(
        resnet_gan.Generator(spec.channels, size, config.latents, config.widths, spec.num_classes),
        resnet_gan.Discriminator(spec.channels, _narrower(config), spec.num_classes),
    )


def _dcgan(spec: ImageSpec, config: GANConfig) -> Players:
    size = spec.height, spec.width
    penalised = bool(config.r1 or config.r2 or config.gradient_penalty or config.spectral)
    return Players(
        dcgan.Generator(spec.channels, size, config.latents, config.widths, spec.num_classes),
        dcgan.Discriminator(spec.channels, size, _narrower(config), spec.num_classes, norms=not penalised),
    )


def _narrower(config: GANConfig) -> tuple[int, ...]:
    """The widths of the discriminator."""
    return tuple(max(16, round(config.critic_share * width / 16) * 16) for width in config.widths)


NETWORKS: Mapping[str, Callable[[ImageSpec, GANConfig], Players]] = {
    "normfree": _normfree,
    "resnet": _resnet,
    "dcgan": _dcgan,
}


def players(spec: ImageSpec, config: GANConfig) -> Players:
    """The networks of a config; the discriminator's weights of largest singular value 1 where they are to be."""
    made = NETWORKS[config.network](spec, config)
    if config.spectral:
        for module in [*made.discriminator.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(module)
    return made
