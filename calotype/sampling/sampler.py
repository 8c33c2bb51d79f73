"""Drawing images from a model: the only caller of `model.sample` and `model.complete`.

Image i of seed s is the same in any selection and order. Its noise depends on (s, i) alone; and since floating-point
sums may depend on the shape of a batch, every call of the model has the same shape: the last batch is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calotype.core.model import Completable, GenerativeModel, ImageSpec
from calotype.core.rng import Noise, fold
from calotype.errors import ConfigError

# Images per call. A CPU is as fast with 16 as with more, and less is wasted on filling up; other devices want more.
BATCH: Mapping[str, int] = {"cpu": 16}
BATCH_ELSEWHERE = 64
LARGEST_CALL = 16 * 3 * 256 * 256  # values; larger images go in smaller calls, to bound memory


class Samples(NamedTuple):
    """A part of the requested images."""

    indices: tuple[int, ...]
    images: Tensor  # uint8 (n, C, H, W), on the CPU


def batch_size(model: GenerativeModel, device: torch.device) -> int:
    """Images per call of the model: a function of the image size and the kind of device alone."""
    wanted = BATCH.get(device.type, BATCH_ELSEWHERE)
    return max(1, min(wanted, LARGEST_CALL // model.spec.dims))


def check(model: GenerativeModel, labels: Callable[[int], int] | None, options: Any) -> None:
    """Raise ConfigError if a model does not support the request, before any image is drawn or folder claimed."""
    classes = model.spec.num_classes
    if labels is None and classes:
        raise ConfigError(f"the model has {classes} classes, but no labels were given: say which to draw")
    if labels is not None and not classes:
        raise ConfigError("labels were given, but the model was trained without classes: leave them out")
    if options is not None:
        model.check_options(options)


def stream(
    model: GenerativeModel,
    indices: Sequence[int],
    seed: int,
    labels: Callable[[int], int] | None = None,
    options: Any = None,
) -> Iterator[Samples]:
    """Draw the images of `indices` in batches, in their order.

    Args:
        model: in evaluation mode, on the device to use.
        seed: images of the same seed and index are the same.
        labels: the class of image i, for a model with classes.
        options: an instance of model.Options; None for its defaults.

    Raises:
        ConfigError: for labels that the model does not have, or lacks.
    """
    check(model, labels, options)
    for wanted, _, noise, chosen in _calls(model, indices, seed, labels):
        yield Samples(wanted, model.sample(noise, chosen, options)[: len(wanted)].cpu())


def complete(
    model: GenerativeModel,
    beginnings: Tensor,
    known: int,
    seed: int,
    labels: Callable[[int], int] | None = None,
    options: Any = None,
) -> Iterator[Samples]:
    """Completions of the beginnings of images, in batches, in their order.

    Args:
        model: in evaluation mode, on the device to use.
        beginnings: uint8 (n, C, H, W), of which the first `known` pixels in raster order count.
        known: from 0 to H W.
        seed: image i of the same beginning and seed is the same.
        labels: the class of image i, for a model with classes.
        options: an instance of model.Options; None for its defaults.

    Raises:
        ConfigError: for a model that cannot complete, images of another shape, and as for `stream`.
    """
    if not isinstance(model, Completable):
        raise cannot_complete()
    spec = model.spec
    if tuple(beginnings.shape[1:]) != spec.shape:
        raise ConfigError(f"beginnings are {tuple(beginnings.shape[1:])}, but the model draws {spec.shape}: fit them")
    if not 0 <= known <= spec.height * spec.width:
        raise ConfigError(f"{known} pixels are to be kept, but the images have {spec.height * spec.width}")
    check(model, labels, options)
    for wanted, filled, noise, chosen in _calls(model, range(len(beginnings)), seed, labels):
        images = beginnings[list(filled)].to(noise.device)
        yield Samples(wanted, model.complete(images, known, noise, chosen, options)[: len(wanted)].cpu())


def cannot_complete() -> ConfigError:
    """The error for a model that is not Completable."""
    return ConfigError("a model of this family cannot complete pictures: train an autoregressive one")


class _Call(NamedTuple):
    """One call of the model."""

    wanted: tuple[int, ...]
    filled: tuple[int, ...]  # the same, and the last again, so that all calls have the same shape
    noise: Noise
    labels: Tensor | None


def _calls(
    model: GenerativeModel, indices: Sequence[int], seed: int, labels: Callable[[int], int] | None
) -> Iterator[_Call]:
    """The calls by which images are drawn."""
    classes = model.spec.num_classes
    device = next(model.parameters()).device
    size = batch_size(model, device)
    for start in range(0, len(indices), size):
        wanted = tuple(indices[start : start + size])
        filled = wanted + wanted[-1:] * (size - len(wanted))
        chosen = None
        if labels is not None:
            chosen = torch.tensor([labels(i) for i in filled], device=device)
            if int(chosen.min()) < 0 or int(chosen.max()) >= classes:
                raise ConfigError(f"label {chosen.tolist()} is out of range: the model has classes 0 to {classes - 1}")
            if unseen := sorted(set(chosen.tolist()) & set(model.spec.unseen)):
                raise ConfigError(f"labels {unseen} are of classes without training pictures: draw others")
        yield _Call(wanted, filled, Noise.per_image(fold(seed, "sample"), filled, device), chosen)


def parts(model: GenerativeModel, indices: Sequence[int]) -> list[Tensor]:
    """The indices of each call of the model, int64: drawing them in parts gives the same images."""
    size = batch_size(model, next(model.parameters()).device)
    return list(torch.tensor(indices, dtype=torch.int64).split(size)) if len(indices) else []


def sample(
    model: GenerativeModel,
    indices: Sequence[int],
    seed: int,
    labels: Callable[[int], int] | None = None,
    options: Any = None,
) -> Tensor:
    """Draw the images of `indices`: uint8 (len(indices), C, H, W). Arguments and errors as for `stream`."""
    drawn = [part.images for part in stream(model, indices, seed, labels, options)]
    return torch.cat(drawn) if drawn else torch.empty(0, *model.spec.shape, dtype=torch.uint8)


def all_classes(spec: ImageSpec) -> Callable[[int], int] | None:
    """The default labels: the classes with training pictures in turn; None without classes.

    All defaults use this function, so no class is drawn that the model has never seen.
    """
    return cycle(spec.classes) if spec.num_classes else None


def cycle(labels: Sequence[int]) -> Callable[[int], int]:
    """Image i gets labels[i mod len(labels)]."""
    return lambda i: labels[i % len(labels)]
