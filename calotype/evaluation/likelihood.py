"""The likelihood of held-out images, in bits per dimension."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from calotype.core.display import Display
from calotype.core.model import Batch, Bits
from calotype.core.rng import Noise, fold
from calotype.data import PackedDataset
from calotype.evaluation import controls
from calotype.evaluation.evaluate import NORMAL
from calotype.evaluation.report import Value

# Held-out images for the likelihood, by its kind: a bound takes many network calls, what is exact takes one.
LIKELIHOOD_BATCH = range(8, 65)  # images at a time, and of large ones fewer:
LIKELIHOOD_VALUES = 2**16
LIKELIHOOD_IMAGES = 2_000  # at most


def asked(bits_per_dim: Callable[[Batch, Noise], Bits], packed: PackedDataset, seed: int) -> Callable[[Tensor], Tensor]:
    """A function from image indices in the data set, int64 (B,), to their bits as text, for `likelihoods`."""

    def ask(indices: Tensor) -> Tensor:
        noise = Noise.per_image(fold(seed, "likelihood"), indices.tolist(), "cpu")
        batch = packed.read(indices.numpy())
        bits = bits_per_dim(batch, noise)
        binary = bool(bits.images) or len(batch.images.unique()) <= 2
        told = json.dumps([bits.per_image.tolist(), bits.kind, bits.images, bits.enough, binary])
        return torch.tensor(list(told.encode()), dtype=torch.uint8)

    return ask


def likelihoods(
    ask: Callable[[Sequence[Tensor]], Iterable[Tensor]], packed: PackedDataset, seed: int, display: Display
) -> list[Value]:
    """Bits per dimension of held-out images; for binary pictures nats as well.

    Args:
        ask: evaluates batches of images by the function of `asked`; the first batch determines how many are enough.
    """
    most = torch.from_numpy(controls.chosen(packed.held_out, LIKELIHOOD_IMAGES, seed, "likelihood"))
    at_once = max(LIKELIHOOD_BATCH[0], min(LIKELIHOOD_BATCH[-1], LIKELIHOOD_VALUES // packed.spec.dims))
    found: list[float] = []
    name, binary, wanted, left = "", True, len(most), [most[:at_once]]
    while left:
        for answer in ask(left):
            per_image, kind, images, enough, of_two_values = json.loads(bytes(answer.tolist()))
            found += per_image
            wanted = min(wanted, enough)
            name = f"{kind}, {images}" if images else kind
            binary = binary and of_two_values
            display.count("held-out images for the likelihood", len(found), wanted)
        left = list(most[len(found) : wanted].split(at_once)) if len(found) < wanted else []
    values = torch.tensor(found, dtype=torch.float64)
    bits = [_mean(f"bits/dim ({name})", values)]
    return [*bits, _mean(f"nats ({name})", values * packed.spec.dims * math.log(2))] if binary else bits


def _mean(name: str, per_image: Tensor) -> Value:
    value = float(per_image.mean())
    if len(per_image) < 2:
        return Value(name, "samples", value, None, None, len(per_image), "of one held-out image: no interval")
    error = float(per_image.std()) / len(per_image) ** 0.5
    return Value(name, "samples", value, value - NORMAL * error, value + NORMAL * error, len(per_image))
