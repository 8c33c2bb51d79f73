"""The networks that an autoregressive model may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from calotype.model import ImageSpec
from calotype.nn.causal import PixelNetwork
from calotype.nn.causal_unet import CausalUNet
from calotype.nn.pixelcnn import GatedPixelCNN, PixelCNN
from calotype.nn.pixelcnnpp import PixelCNNpp
from calotype.nn.pixelrnn import DiagonalBiLSTM, RowLSTM

if TYPE_CHECKING:
    from calotype.families.autoregressive.config import AutoregressiveConfig

Make = Callable[[ImageSpec, "AutoregressiveConfig", int, bool], PixelNetwork]
"""(spec, config, numbers per pixel, whether channels are ordered) -> the network."""


class Network(NamedTuple):
    """How a network is made, and what it can be asked for."""

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
