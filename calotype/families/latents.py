"""Two-stage models: a first stage that maps pictures to latent maps and back, and a model of these maps.

The second is a model of bytes like any other, and is trained as any other, on maps as bytes. With x a picture and z
its map as bytes, of which the first model is certain,

    p(x) >= p(z) p(x | z),                       p(z) of the second model, p(x | z) of the first,

so that a likelihood of the second gives one of pictures, in bits per dimension of the 8-bit picture as for any model.

Source: van den Oord et al. 2017, arXiv:1711.00937 (codes); Rombach et al. 2022, arXiv:2112.10752 (real numbers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from calotype.core.model import (
    Batch,
    Bits,
    Encodable,
    GenerativeModel,
    HasLatentMap,
    HasLikelihood,
    ImageSpec,
    Preset,
    Turn,
)
from calotype.core.rng import Noise
from calotype.errors import ConfigError, RunError

MOST_CODES = 256  # that are bytes
WIDE = 4.0  # standard deviations on either side of the mean that bytes reach
NARROWEST = 0.1  # standard deviation; a channel that moves less says nothing, and is not to be magnified


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """Maps of a first model as bytes."""

    run: str  # where the first model was; a copy of it lies in the run directory of the second
    weights: str  # SHA-256 of them
    channels: int
    height: int
    width: int
    codes: int  # bytes are numbers of so many codes; 0: they are real numbers, from low to high
    low: tuple[float, ...] = ()  # the value of byte 0, of each channel
    high: tuple[float, ...] = ()  # of byte 255

    def __post_init__(self) -> None:
        fit = self.codes > 0 or len(self.low) in (1, self.channels)
        if not 0 <= self.codes <= MOST_CODES or len(self.low) != len(self.high) or not fit:
            raise ConfigError(
                f"latents has {self.codes} codes, {len(self.low)} low and {len(self.high)} high ends, but there are up "
                f"to {MOST_CODES} codes, or none and two ends for each channel: restore config.toml"
            )
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ConfigError("latents has a range whose low end is not below its high end: restore config.toml")

    def spec(self, pictures: ImageSpec) -> ImageSpec:
        """The spec of the maps of such pictures, for the second stage."""
        return replace(pictures, channels=self.channels, height=self.height, width=self.width, encoded=True)

    def to_bytes(self, maps: Tensor) -> Tensor:
        """uint8 (B, C, h, w) of maps, float (B, C, h, w)."""
        if self.codes:
            return maps.round().to(torch.uint8)
        low, high = self._range(maps)
        return (255 * (maps - low) / (high - low)).round().clamp(0, 255).to(torch.uint8)

    def from_bytes(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """The maps of uint8 (B, C, h, w)."""
        values = maps.to(dtype)
        if self.codes:
            return values
        low, high = self._range(values)
        return low + values / 255 * (high - low)

    def _range(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (
            torch.tensor(v, dtype=like.dtype, device=like.device)[:, None, None] for v in (self.low, self.high)
        )
        return low, high


def latents_of(first: GenerativeModel, maps: Tensor, run: str, weights: str) -> Latents:
    """The quantisation of maps to bytes, from maps of training images, float (N, C, h, w).

    Raises:
        ConfigError: where they cannot.
    """
    channels, height, width, codes = cast(HasLatentMap, first).latent_map()
    if codes > MOST_CODES:
        raise ConfigError(f"{run} has {codes} codes, but a second stage takes up to {MOST_CODES}: train with fewer")
    if codes:
        return Latents(run=run, weights=weights, channels=channels, height=height, width=width, codes=codes)
    each = maps.double().movedim(1, 0).flatten(1)
    mean, reach = each.mean(1), WIDE * each.std(1).clamp(min=NARROWEST)
    low, high = (tuple(round(float(v), 4) for v in bound) for bound in (mean - reach, mean + reach))
    return Latents(run=run, weights=weights, channels=channels, height=height, width=width, codes=0, low=low, high=high)


class LatentModel(GenerativeModel, Encodable):
    """Both stages as one model of pictures. Training concerns the second stage alone."""

    def __init__(self, first: GenerativeModel, second: GenerativeModel, latents: Latents) -> None:
        num_classes, unseen = second.spec.num_classes, second.spec.unseen
        super().__init__(replace(first.spec, num_classes=num_classes, unseen=unseen), second.config)
        self.first, self.second, self.latents = first, second, latents
        self.Options = second.Options  # type: ignore[misc]

    @classmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        """None: the second stage has the presets of its own family."""
        return {}

    def turns(self) -> tuple[Turn, ...]:
        """None: the second stage is trained by itself."""
        return ()

    def check_options(self, options: Any) -> None:
        """Raise ConfigError for sampling options that the second stage does not support."""
        self.second.check_options(options)

    def network_calls(self, options: Any) -> int | None:
        """The number of network evaluations of the second stage per batch of samples; None: it is counted."""
        return self.second.network_calls(options)

    @torch.no_grad()
    def sample(self, noise: Noise, labels: Tensor | None = None, options: Any = None) -> Tensor:
        """Draw noise.n maps from the second stage and decode them with the first: uint8 (n, C, H, W)."""
        maps = self.latents.from_bytes(self.second.sample(noise, labels, options), self.first.dtype)
        return self._map_model.from_map(maps, self._labels(labels))

    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents, float (B, latents), of uint8 images (B, C, H, W), by the first stage."""
        return cast(Encodable, self.first).encode(images, self._labels(labels))

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images, uint8 (B, C, H, W), of latents, float (B, latents), by the first stage."""
        return cast(Encodable, self.first).decode(latents, self._labels(labels))

    @property
    def _map_model(self) -> HasLatentMap:
        return cast(HasLatentMap, self.first)

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        return labels if self.first.spec.num_classes else None


class LikelyLatentModel(LatentModel, HasLikelihood):
    """A LatentModel whose second stage has a likelihood."""

    @torch.no_grad()
    def bits_per_dim(self, batch: Batch, noise: Noise, options: Any = None) -> Bits:
        """A bound: bits of the map by the second stage, plus bits of the picture given the map by the first."""
        device = next(self.parameters()).device
        images = self._map_model.prepared(batch.images.to(device), noise)
        labels = None if batch.labels is None else batch.labels.to(device)
        maps = self.latents.to_bytes(self._map_model.to_map(images, self._labels(labels)))
        found = cast(HasLikelihood, self.second).bits_per_dim(Batch(maps, batch.labels), noise, options)
        values = self.latents.from_bytes(maps, self.first.dtype)
        given = -self._map_model.map_log_prob(images, values, self._labels(labels)) / math.log(2)
        bits = (found.per_image * self.second.spec.dims + given.cpu()) / self.spec.dims
        changed = "" if torch.equal(images.cpu(), batch.images.cpu()) else "binarised at random"
        kind: Literal["bound", "estimate"] = "bound"
        if found.kind == "estimate" or not self._map_model.is_proper():
            kind = "estimate"
        return found._replace(per_image=bits, kind=kind, images=changed)


def check_map(first: GenerativeModel, latents: Latents) -> None:
    """Raise RunError if the latent maps of a model do not match."""
    wanted = (latents.channels, latents.height, latents.width, latents.codes)
    if not isinstance(first, HasLatentMap) or tuple(first.latent_map()) != wanted:
        raise RunError(
            f"the first stage has no maps of {latents.width}x{latents.height} with {latents.channels} channels and "
            f"{latents.codes} codes, which [latents] says: restore config.toml, or the first stage"
        )


def latent_model(first: GenerativeModel, second: GenerativeModel, latents: Latents) -> LatentModel:
    """Both stages as one model, with a likelihood if the second stage has one."""
    made = LikelyLatentModel if isinstance(second, HasLikelihood) else LatentModel
    return made(first, second, latents)
