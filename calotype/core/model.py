"""The interface of a generative model: the types shared by data, families, trainer, sampling and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from calotype.core.rng import Noise
from calotype.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The shape and the classes of a model's images. num_classes is 0 without labels."""

    channels: int
    height: int
    width: int
    num_classes: int = 0
    encoded: bool = False  # of a map of latents, a position of which is a patch of an image already
    unseen: tuple[int, ...] = ()  # classes without a training picture: a model cannot draw them

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but an image has at least 1: give a positive size")
        if self.num_classes < 0:
            raise ConfigError(f"num_classes is {self.num_classes}: give 0 for images without labels")
        unseen = set(self.unseen)
        if self.unseen and not (min(unseen) >= 0 and max(unseen) < self.num_classes and len(unseen) < self.num_classes):
            raise ConfigError(
                f"unseen names {len(unseen)} of {self.num_classes} classes, but one or more have training pictures: "
                "give numbers of classes that have none"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    @property
    def dims(self) -> int:
        """Values per image."""
        return self.channels * self.height * self.width

    @property
    def classes(self) -> tuple[int, ...]:
        """Classes with training pictures: the default classes of samples, and those that are measured."""
        unseen = set(self.unseen)
        return tuple(k for k in range(self.num_classes) if k not in unseen)


class Batch(NamedTuple):
    """Images as bytes, with their labels where the data has labels."""

    images: Tensor  # uint8 (B, C, H, W)
    labels: Tensor | None  # int64 (B,)

    def rows(self, start: int, stop: int) -> Batch:
        """Images start..stop: a micro-batch."""
        return Batch(self.images[start:stop], None if self.labels is None else self.labels[start:stop])


class Loss(NamedTuple):
    """A loss that is a mean over the images of its batch."""

    value: Tensor  # scalar, differentiable
    parts: Mapping[str, Tensor]  # detached scalars, for the log


@dataclass(frozen=True, slots=True)
class Turn:
    """One optimizer step of one player; `repeats` of them in a row within a training step."""

    player: str
    loss: Callable[[Batch, Noise], Loss]
    repeats: int = 1


class Bits(NamedTuple):
    """Bits per dimension of 8-bit images."""

    per_image: Tensor  # float64 (B,)
    kind: Literal["exact", "bound", "estimate"]
    images: str = ""  # what was done to the images, where it is not them whose bits these are
    enough: int = 2_000  # images of which an evaluation asks it, which is fewer where it takes long


class Remark(NamedTuple):
    """A warning about the state of training."""

    text: str
    collapsed: bool = False  # whether what has been learned is lost, so that it is better to go back


@dataclass(frozen=True, slots=True)
class Preset:
    """A size of a family's model, with the training settings that suit it."""

    model: Any  # an instance of the family's Config
    batch_size: int
    learning_rate: float
    images_wanted: int  # with fewer images seen than this a smaller preset does better in the same time
    optimizer: str = "adamw"  # or muon
    beta1: float = 0.9
    auto: bool = True  # whether it is one of the sizes that a budget is matched with, or only for whoever names it


class Trainable(nn.Module, ABC):
    """A module that the trainer can train: its players, and their turns."""

    images_seen: int = 0  # in completed steps of its training, as the trainer says; what settings change by
    progress: float = 0.0  # the same as a share of the budget

    def players(self) -> Mapping[str, nn.Module]:
        """The modules with separate optimizers, by name."""
        return {"model": self}

    @abstractmethod
    def turns(self) -> Sequence[Turn]:
        """The turns of one training step, in order."""

    def to_channels_last(self) -> Self:
        """This model with its convolutions in channels-last layout, which is faster; other layers are unaffected."""
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to_eval(self) -> Self:
        """This model without gradients, in evaluation mode."""
        return self.requires_grad_(False).eval()


class GenerativeModel(Trainable):
    """A generative model: built from a spec and its Config, trained by `turns`; `sample` draws images."""

    Config: ClassVar[type[Any]]  # frozen dataclass: what the model is
    Options: ClassVar[type[Any]]  # frozen dataclass: how to sample from it
    loss_ranks: ClassVar[bool] = True  # whether of two models the better has the lower held-out loss; else samples say
    models_codes: ClassVar[bool] = False  # whether bytes may be names, such as numbers of codes, without an order
    spec: ImageSpec

    def __init__(self, spec: ImageSpec, config: Any) -> None:
        super().__init__()
        self.spec, self.config = spec, config

    @classmethod
    @abstractmethod
    def presets(cls, spec: ImageSpec) -> Mapping[str, Preset]:
        """The sizes of this family's model for such images, by name, from the smallest to the largest."""

    @classmethod
    def measured(cls, config: Any, images: Tensor) -> Any:
        """The config with its open entries filled from training images, uint8 (N, C, H, W). Default: unchanged."""
        return config

    @abstractmethod
    def sample(self, noise: Noise, labels: Tensor | None = None, options: Any = None) -> Tensor:
        """Draw noise.n images, uint8 (n, C, H, W). Image i depends on row i of the noise and on labels[i] alone."""

    def check_options(self, options: Any) -> None:
        """Raise ConfigError for sampling options that this model cannot follow. Default: it follows all."""

    def remark(self, parts: Mapping[str, float]) -> Remark | None:
        """A warning about training with the settings to change; None, the default, if there is none.

        Args:
            parts: losses and their parts, by player and name as in the log: of the last step, and of held-out images
                with the prefix held_out/. If samples are measured, those of training images as well, with the prefix
                seen/, and samples/distance and samples/diversity.
        """
        return None

    def network_calls(self, options: Any) -> int | None:
        """The number of network evaluations per batch of samples; None, the default: they are counted."""
        return None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and so of computation with them."""
        return next(self.parameters()).dtype


@runtime_checkable
class HasLikelihood(Protocol):
    """A model with a likelihood of 8-bit images."""

    @abstractmethod
    def bits_per_dim(self, batch: Batch, noise: Noise, options: Any = None) -> Bits:
        """Negative log2-likelihood per dimension of each image.

        Args:
            options: an instance of the model's Options, some of which may affect the likelihood; None: the defaults.
        """


@runtime_checkable
class Completable(Protocol):
    """A model that can complete an image from its beginning."""

    @abstractmethod
    def complete(
        self, images: Tensor, known: int, noise: Noise, labels: Tensor | None = None, options: Any = None
    ) -> Tensor:
        """Images, uint8 (n, C, H, W), whose first `known` pixels in raster order are those of uint8 `images`.

        Image i depends on its beginning, on row i of the noise and on labels[i] alone.
        """


@runtime_checkable
class Encodable(Protocol):
    """A model with a latent code for an image."""

    @abstractmethod
    def encode(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents of uint8 images (B, C, H, W): float (B, latents). With classes their labels, int64 (B,)."""

    @abstractmethod
    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """The uint8 images (B, C, H, W) of latents."""


class LatentMap(NamedTuple):
    """The shape and the codes of the latent map of a model."""

    channels: int
    height: int
    width: int
    codes: int  # how many there are, where the map is of numbers of codes; 0: its values are real numbers


@runtime_checkable
class HasLatentMap(Protocol):
    """A model whose latent is one map, so that another model can be trained on the maps of pictures."""

    @abstractmethod
    def latent_map(self) -> LatentMap:
        """The shape and codes of the map. Raises ConfigError if the latent of this model is not a single map."""

    @abstractmethod
    def prepared(self, images: Tensor, noise: Noise) -> Tensor:
        """Images with the values that the likelihood models, from uint8 (B, C, H, W); usually unchanged."""

    @abstractmethod
    def is_proper(self) -> bool:
        """Whether `map_log_prob` is a true log-probability, not an estimate."""

    @abstractmethod
    def to_map(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The maps of uint8 images (B, C, H, W): float (B, C, h, w)."""

    @abstractmethod
    def from_map(self, maps: Tensor, labels: Tensor | None) -> Tensor:
        """The uint8 images (B, C, H, W) of maps."""

    @abstractmethod
    def map_log_prob(self, images: Tensor, maps: Tensor, labels: Tensor | None) -> Tensor:
        """log p(image | map), nats: float64 (B,)."""
