"""The networks that a GAN may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from calotype.model import ImageSpec
from calotype.nn import dcgan, normfree, resnet_gan

if TYPE_CHECKING:
    from calotype.families.gan.config import GANConfig


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
