"""The config of an autoregressive model, and its sampling options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

from calotype.core.config import check_choice, check_widths
from calotype.core.model import ImageSpec
from calotype.errors import ConfigError
from calotype.families.guidance import AUTO, check_weight
from calotype.nn.causal import PixelNetwork
from calotype.nn.causal_unet import CausalUNet
from calotype.nn.distributions import DISTRIBUTIONS, LEVELS, Taste
from calotype.nn.pixelcnn import GatedPixelCNN, PixelCNN
from calotype.nn.pixelcnnpp import PixelCNNpp
from calotype.nn.pixelrnn import DiagonalBiLSTM, RowLSTM

# Of models that can be guided, where nothing is said: nearer to real pictures after minutes of training, see
# docs/autoregressive.md.
GUIDANCE = 1.5
LIKELIHOODS = ("auto", *(name for name, kind in DISTRIBUTIONS.items() if kind.proper))


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoregressiveConfig:
    """The config of an autoregressive model."""

    network: str = "causal-unet"  # or pixelcnn++, gated-pixelcnn, pixelcnn, row-lstm, diagonal-bilstm
    widths: tuple[int, ...] = (32, 64, 64)  # features per level, finest first; only the first two networks have levels
    blocks: tuple[int, ...] = (1, 2, 2)  # per level, and again after the levels below
    attention: tuple[int, ...] = (2,)  # of causal-unet: levels whose blocks also attend to all positions before
    head: int = 0  # features of the last hidden layers of the networks of one level; 0: their width
    likelihood: str = "auto"  # categorical, logistics, bernoulli (of 0 and 255, other values binarised at random)
    mixtures: int = 10  # components of logistics
    label_dropout: float = 0.1  # share of training images shown without their class, which guidance needs
    dropout: float = 0.0  # within the blocks; small data sets may want 0.1 to 0.5

    def __post_init__(self) -> None:
        check_choice("model.network", self.network, NETWORKS)
        check_choice("model.likelihood", self.likelihood, LIKELIHOODS)
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ConfigError(
                f"model.widths has {len(self.widths)} levels and model.blocks {len(self.blocks)}: give each level both"
            )
        network = NETWORKS[self.network]
        if len(self.widths) > 1 and not network.levels:
            raise ConfigError(
                f"model.widths has {len(self.widths)} levels, but {self.network} has one: give one width and one "
                "number of blocks"
            )
        check_widths("model.widths", self.widths)
        check_widths("model.head", [self.head] if self.head else [])
        if min(self.blocks) < 1:
            raise ConfigError(f"model.blocks contains {min(self.blocks)}: give at least 1 for each level")
        if self.attention and not network.attention:
            raise ConfigError(f"model.attention names levels, but {self.network} has none: use model.attention=[]")
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ConfigError(
                    f"model.attention names level {level}, but levels are 0 to {len(self.widths) - 1}: give others, "
                    "or none, as in model.attention=[]"
                )
        if self.mixtures < 1:
            raise ConfigError(f"model.mixtures is {self.mixtures}: give at least 1")
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: give a probability from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoregressiveOptions:
    """Sampling options of an autoregressive model."""

    temperature: float = 1.0  # below 1: likelier pixels, smoother and less varied images; 0: the likeliest
    guidance: float = AUTO  # 1: none; more: more typical of the class, less varied; 0: no class; -1: see GUIDANCE
    top_k: int = 0  # only the k likeliest values of a pixel, of categorical models; 0: all
    top_p: float = 1.0  # only the likeliest values that together have this probability, of categorical models

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}: give 0 or more; 1 draws as the model has learned")
        check_weight(self.guidance, f"{GUIDANCE:g}")
        if not 0 <= self.top_k <= LEVELS:
            raise ConfigError(f"top_k is {self.top_k}: give 1 to {LEVELS}, or 0 for all values")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: give a probability above 0, up to 1 for all values")

    @property
    def taste(self) -> Taste:
        """The same, for distributions."""
        return Taste(self.temperature, self.top_k, self.top_p)


Make = Callable[[ImageSpec, "AutoregressiveConfig", int, bool], PixelNetwork]
"""(spec, config, numbers per pixel, whether channels are ordered) -> the network."""


class Network(NamedTuple):
    """The constructor of a network, and its capabilities."""

    make: Make
    levels: bool  # of resolution, more than one
    ordered: bool  # whether channels of a pixel can see those before them; else all are given at once
    attention: bool = False  # whether levels can have it
    colours: str = "logistics"  # likelihood of pictures in colour that are not flat; elsewhere as published


def _one_level(
    network: Callable[..., PixelNetwork],
    spec: ImageSpec,
    config: AutoregressiveConfig,
    outputs: int,
    ordered: bool,
    **more: Any,
) -> PixelNetwork:
    width = config.widths[0]
    return network(
        spec.channels,
        outputs,
        width,
        config.blocks[0],
        config.head or width,
        num_classes=spec.num_classes,
        dropout_rate=config.dropout,
        ordered=ordered,
        **more,
    )


def _pixelcnnpp(spec: ImageSpec, config: AutoregressiveConfig, outputs: int, ordered: bool) -> PixelNetwork:
    return PixelCNNpp(spec.channels, outputs, config.widths, config.blocks, spec.num_classes, config.dropout)


def _causal_unet(spec: ImageSpec, config: AutoregressiveConfig, outputs: int, ordered: bool) -> PixelNetwork:
    size = spec.height, spec.width
    shape = config.widths, config.blocks, config.attention
    copies = config.likelihood == "categorical"
    return CausalUNet(
        spec.channels, outputs, size, *shape, spec.num_classes, config.dropout, copies=copies, ordered=ordered
    )


_recurrent = partial(_one_level, PixelCNN, recordable=False)

NETWORKS: Mapping[str, Network] = {
    "causal-unet": Network(_causal_unet, levels=True, ordered=True, attention=True),
    "pixelcnn++": Network(_pixelcnnpp, levels=True, ordered=False),
    "gated-pixelcnn": Network(partial(_one_level, GatedPixelCNN), levels=False, ordered=True, colours="categorical"),
    "pixelcnn": Network(partial(_one_level, PixelCNN), levels=False, ordered=True, colours="categorical"),
    "row-lstm": Network(partial(_recurrent, block=RowLSTM), levels=False, ordered=True, colours="categorical"),
    "diagonal-bilstm": Network(
        partial(_recurrent, block=DiagonalBiLSTM), levels=False, ordered=True, colours="categorical"
    ),
}
