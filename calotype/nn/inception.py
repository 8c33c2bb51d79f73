"""Inception-v3 as in the definition of the Fréchet inception distance: weights of 2015, with their pooling.

The names of its parameters are those of the file `pt_inception-2015-12-05-6726825d.pth`, which ports these weights.
Source: Szegedy et al. 2015, arXiv:1512.00567, for the network; Heusel et al. 2017, arXiv:1706.08500, for the distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calotype.nn.loading import load

SIDE = 299  # of its images
FEATURES = 2048

Spec = tuple[int, int, int | tuple[int, int], int]  # channels in, out, kernel, stride
Step = str | tuple[str, str]  # a convolution, a pool, or two convolutions side by side

POOLS = {
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "maximum": lambda x: F.max_pool2d(x, 3, 1, 1),
    "halved": lambda x: F.max_pool2d(x, 3, 2),
}


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; the size is kept where the stride is 1 and `same`."""

    def __init__(self, spec: Spec, same: bool = True) -> None:
        super().__init__()
        before, after, kernel, stride = spec
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if same and stride == 1 else 0
        self.conv = nn.Conv2d(before, after, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to another such map."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side.

    Args:
        convolutions: by name.
        branches: the steps of each.
    """

    def __init__(self, convolutions: Mapping[str, Spec], branches: Sequence[Sequence[Step]]) -> None:
        super().__init__()
        for name, spec in convolutions.items():
            self.add_module(name, Conv(spec))
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to another such map."""
        found = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = self._step(step, y) if isinstance(step, str) else torch.cat([self._step(s, y) for s in step], 1)
            found.append(y)
        return torch.cat(found, 1)

    def _step(self, step: str, x: Tensor) -> Tensor:
        found: Tensor = POOLS[step](x) if step in POOLS else self.get_submodule(step)(x)
        return found


def _chain(name: str, *specs: Spec) -> dict[str, Spec]:
    return {f"{name}_{k + 1}": spec for k, spec in enumerate(specs)}


def _block_a(before: int, pooled: int) -> Mixed:
    return Mixed(
        {"branch1x1": (before, 64, 1, 1)}
        | _chain("branch5x5", (before, 48, 1, 1), (48, 64, 5, 1))
        | _chain("branch3x3dbl", (before, 64, 1, 1), (64, 96, 3, 1), (96, 96, 3, 1))
        | {"branch_pool": (before, pooled, 1, 1)},
        [
            ["branch1x1"],
            ["branch5x5_1", "branch5x5_2"],
            ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
            ["average", "branch_pool"],
        ],
    )


def _block_b(before: int) -> Mixed:
    return Mixed(
        {"branch3x3": (before, 384, 3, 2)} | _chain("branch3x3dbl", (before, 64, 1, 1), (64, 96, 3, 1), (96, 96, 3, 2)),
        [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["halved"]],
    )


def _block_c(before: int, c: int) -> Mixed:
    across, down = (1, 7), (7, 1)
    return Mixed(
        {"branch1x1": (before, 192, 1, 1)}
        | _chain("branch7x7", (before, c, 1, 1), (c, c, across, 1), (c, 192, down, 1))
        | _chain(
            "branch7x7dbl", (before, c, 1, 1), (c, c, down, 1), (c, c, across, 1), (c, c, down, 1), (c, 192, across, 1)
        )
        | {"branch_pool": (before, 192, 1, 1)},
        [
            ["branch1x1"],
            ["branch7x7_1", "branch7x7_2", "branch7x7_3"],
            [f"branch7x7dbl_{k}" for k in range(1, 6)],
            ["average", "branch_pool"],
        ],
    )


def _block_d(before: int) -> Mixed:
    return Mixed(
        _chain("branch3x3", (before, 192, 1, 1), (192, 320, 3, 2))
        | _chain("branch7x7x3", (before, 192, 1, 1), (192, 192, (1, 7), 1), (192, 192, (7, 1), 1), (192, 192, 3, 2)),
        [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{k}" for k in range(1, 5)], ["halved"]],
    )


def _block_e(before: int, pool: str) -> Mixed:
    across, down = (384, 384, (1, 3), 1), (384, 384, (3, 1), 1)
    return Mixed(
        {
            "branch1x1": (before, 320, 1, 1),
            "branch3x3_1": (before, 384, 1, 1),
            "branch3x3_2a": across,
            "branch3x3_2b": down,
            "branch3x3dbl_1": (before, 448, 1, 1),
            "branch3x3dbl_2": (448, 384, 3, 1),
            "branch3x3dbl_3a": across,
            "branch3x3dbl_3b": down,
            "branch_pool": (before, 192, 1, 1),
        },
        [
            ["branch1x1"],
            ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
            ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
            [pool, "branch_pool"],
        ],
    )


class InceptionV3(nn.Module):
    """Images to the 2,048 features of the last pool."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv((3, 32, 3, 2))
        self.Conv2d_2a_3x3 = Conv((32, 32, 3, 1), same=False)
        self.Conv2d_2b_3x3 = Conv((32, 64, 3, 1))
        self.Conv2d_3b_1x1 = Conv((64, 80, 1, 1))
        self.Conv2d_4a_3x3 = Conv((80, 192, 3, 1), same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        # The last block's pool is of the maximum: a slip of 2015 that the distance has kept.
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "maximum")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 299, 299) in [-1, 1] to (B, 2048)."""
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def inception(weights: Mapping[str, Tensor]) -> InceptionV3:
    """The network with its weights; those of the classes are left aside. Raises ConfigError where they do not fit."""
    return load(InceptionV3(), weights, aside=("fc.", "AuxLogits."))
