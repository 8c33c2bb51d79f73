"""Views of latents: reconstructions of real images, and the effect of the directions of largest variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.core.model import Batch, Encodable

PAIRS = 24  # of images and what comes back
ROWS, STEPS = 6, 7  # of traversals
REACH = 2.5  # standard deviations on either side
FEW = 64  # latents, that are looked at one by one; of more, the directions along which images differ the most


class Views(NamedTuple):
    """Pictures of latents; each field may be empty."""

    pairs: Sequence[tuple[Tensor, Tensor]]  # images and what comes back of them, uint8 (C, H, W)
    traversals: Sequence[tuple[str, Tensor]]  # captions, and images along a latent, uint8 (STEPS, C, H, W)


NOTHING = Views((), ())


def views(model: Encodable, batch: Batch, device: torch.device) -> Views:
    """Look at the latents of a model.

    Args:
        batch: held-out images, at least 2; the first are shown, and the variance is estimated from all.
        device: of the model.
    """
    images = batch.images.to(device)
    labels = None if batch.labels is None else batch.labels.to(device)
    latents = torch.cat(
        [
            model.encode(images[k : k + PAIRS], None if labels is None else labels[k : k + PAIRS])
            for k in range(0, len(images), PAIRS)
        ]
    )
    shown = slice(0, PAIRS)
    back = model.decode(latents[shown], None if labels is None else labels[shown])
    pairs = list(zip(batch.images[shown], back.cpu(), strict=True))
    traversals = []
    for caption, direction in _directions(latents):
        steps = torch.linspace(-REACH, REACH, STEPS, device=device, dtype=latents.dtype)[:, None]
        same = None if labels is None else labels[:1].expand(STEPS)
        traversals.append((caption, model.decode(latents[:1] + steps * direction, same).cpu()))
    return Views(pairs, traversals)


def _directions(latents: Tensor) -> list[tuple[str, Tensor]]:
    """Captions, and steps of one standard deviation along the leading principal directions of latents (N, L)."""
    centred = (latents - latents.mean(0)).double()
    if latents.shape[1] <= FEW:
        deviations = centred.std(0)
        chosen = deviations.argsort(descending=True, stable=True)[:ROWS].tolist()
        axes = torch.eye(latents.shape[1], dtype=latents.dtype, device=latents.device)
        return [
            (f"latent {k}, ± {REACH:g} × {float(deviations[k]):.2f}", axes[k] * deviations[k].to(latents.dtype))
            for k in chosen
            if deviations[k] > 0
        ]
    _, sizes, along = torch.linalg.svd(centred, full_matrices=False)
    shares = sizes.square() / sizes.square().sum().clamp(min=1e-12)
    deviations = sizes / max(1, len(latents) - 1) ** 0.5
    return [
        (f"direction {k + 1}, {float(shares[k]):.1%} of the variance", (along[k] * deviations[k]).to(latents.dtype))
        for k in range(min(ROWS, len(sizes)))
        if sizes[k] > 0
    ]
