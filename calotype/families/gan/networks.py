"""The networks that a GAN may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from calotype.model import ImageSpec
from calotype.nn import normfree

if TYPE_CHECKING:
    from calotype.families.gan.config import GANConfig


class Players(NamedTuple):
    """Both networks."""

    generator: nn.Module  # (z (B, latents), labels (B,) or None) -> images (B, C, H, W), mostly in [-1, 1]
    discriminator: nn.Module  # (images, labels or None) -> logits (B,)


def _normfree(spec: ImageSpec, config: GANConfig) -> Players:
    size = spec.height, spec.width
    shape = config.latents, config.widths, config.blocks, config.expansion, config.group, spec.num_classes
    return Players(normfree.Generator(spec.channels, size, *shape), normfree.Discriminator(spec.channels, size, *shape))


NETWORKS: Mapping[str, Callable[[ImageSpec, GANConfig], Players]] = {"normfree": _normfree}
