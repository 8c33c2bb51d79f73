"""The config of a run, config.toml: all values that determine its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from calotype.core.config import build, nearest, plain
from calotype.core.model import GenerativeModel, ImageSpec
from calotype.core.rng import fold, seeded
from calotype.core.untrusted import brief
from calotype.data import DataConfig, PackedDataset
from calotype.data.config import CHANNELS, MAX_PIXELS
from calotype.data.records import check_class_count
from calotype.errors import ConfigError
from calotype.families import FAMILIES
from calotype.families.latents import Latents
from calotype.nn.outline import outlined
from calotype.optimization.config import TrainConfig
from calotype.runs import changes
from calotype.runs.portable_paths import read_config, write_config

ENTRIES = ("calotype", "family", "preset", "budget", "data", "dataset", "model", "training", "latents")  # of it


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """The facts about the training data that the model depends on."""

    channels: int
    height: int
    width: int
    class_names: tuple[str, ...]
    train: int  # images to learn from
    held_out: int  # images never trained on
    digest: str  # of the content
    class_counts: tuple[
        int, ...
    ] = ()  # images to learn from, of each class; empty: not counted, as in earlier versions

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS or not 0 < self.height * self.width <= MAX_PIXELS or self.height < 1:
            raise ConfigError(
                f"dataset has pictures of {self.width}x{self.height} with {self.channels} channels, but they have 1, 3 "
                f"or 4, and up to {MAX_PIXELS:,} pixels: restore config.toml"
            )
        check_class_count(len(self.class_names))
        counts = self.class_counts
        if counts and not (len(counts) == len(self.class_names) and min(counts) >= 0 and max(counts) > 0):
            raise ConfigError(
                f"dataset has {len(self.class_names)} class_names and {len(counts)} class_counts, but there is a count "
                "for each, 0 or more, and not all are 0: restore config.toml"
            )
        if min(self.train, self.held_out) < 1:
            raise ConfigError(
                f"dataset has {self.train} pictures to learn from and {self.held_out} held out, but there is one or "
                "more of each: restore config.toml"
            )

    @classmethod
    def of(cls, data: PackedDataset) -> DatasetFacts:
        """The facts of a packed data set."""
        spec = data.spec
        return cls(
            channels=spec.channels,
            height=spec.height,
            width=spec.width,
            class_names=data.class_names,
            train=data.learned,
            held_out=len(data.held_out),
            digest=data.digest,
            class_counts=data.class_counts,
        )

    @property
    def spec(self) -> ImageSpec:
        """The spec of the images."""
        unseen = tuple(k for k, count in enumerate(self.class_counts) if count == 0)
        return ImageSpec(self.channels, self.height, self.width, len(self.class_names), unseen=unseen)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """All values that determine a run."""

    family: str
    preset: str
    budget: str  # as it was asked for; training.images is what it came to
    data: DataConfig
    dataset: DatasetFacts
    model: Any  # FAMILIES[family].Config
    training: TrainConfig
    latents: Latents | None = None  # of a first stage, if those are what is learned, and not pictures

    def values(self) -> dict[str, Any]:
        """The plain values and sections of config.toml."""
        top = {"family": self.family, "preset": self.preset, "budget": self.budget}
        tables = {name: plain(getattr(self, name)) for name in ("data", "dataset", "model", "training")}
        return top | tables | ({"latents": plain(self.latents)} if self.latents else {})

    def settings(self) -> dict[str, Any]:
        """The settings that determine the weights, as stored in checkpoints, with the digest of the pictures."""
        return changes.settings({name: value for name, value in self.values().items() if name != "dataset"})

    def defaults(self) -> dict[str, Any]:
        """The default values of settings that have one."""
        sections: dict[str, Any] = {"data": DataConfig, "model": type(self.model), "training": TrainConfig}
        each = [(name, field) for name, section in sections.items() for field in fields(section)]
        known = {f"{name}.{field.name}": field.default for name, field in each if field.default is not MISSING}
        return changes.settings(known)

    def write(self, path: Path) -> None:
        """Write a config.toml. Raises OSError, PlaceError."""
        write_config(path, self.values())

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read a config.toml. Raises ConfigError."""
        values = read_config(path)
        for name in ("family", "data", "dataset", "model", "training"):
            if name not in values:
                raise ConfigError(f"{path} has no {name}: it is not the config.toml of a run, or it was cut off")
        for name in values:
            if name not in ENTRIES:
                raise ConfigError(f"{path} has an entry {brief(name)}, which is unknown{nearest(name, ENTRIES)}")
        return cls(
            family=_text(values, "family"),
            preset=_text(values, "preset"),
            budget=_text(values, "budget"),
            data=build(DataConfig, values["data"], "data"),
            dataset=build(DatasetFacts, values["dataset"], "dataset"),
            model=build(family(_text(values, "family")).Config, values["model"], "model"),
            training=build(TrainConfig, values["training"], "training"),
            latents=build(Latents, values["latents"], "latents") if "latents" in values else None,
        )

    @property
    def spec(self) -> ImageSpec:
        """The spec of the model's training data: pictures, or latent maps."""
        pictures = self.dataset.spec
        return self.latents.spec(pictures) if self.latents else pictures

    def outline(self) -> GenerativeModel:
        """The model on the meta device, which takes no memory. Raises ConfigError if it would not fit in memory."""
        with seeded(0), outlined():
            return family(self.family)(self.spec, self.model)

    def new_model(self) -> GenerativeModel:
        """The untrained model; its initial weights are a function of the seed. Raises ConfigError as `outline`."""
        self.outline()
        with seeded(fold(self.training.seed, "initial weights")):
            return family(self.family)(self.spec, self.model)


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name, "")
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {brief(value)}, but it is a text: restore config.toml")
    return value


def family(name: str) -> type[GenerativeModel]:
    """The model class of a family by name. Raises ConfigError."""
    if name not in FAMILIES:
        raise ConfigError(f"family {name!r} is unknown{nearest(name, list(FAMILIES))}")
    return FAMILIES[name]
