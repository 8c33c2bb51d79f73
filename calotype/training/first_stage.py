"""The first stage of a latent model: its run, and the latent maps that it makes of the pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from calotype.core.caches import cache_folder
from calotype.core.config import plain
from calotype.core.files import write_new
from calotype.core.model import GenerativeModel, HasLatentMap
from calotype.core.rng import Noise, fold, permutation
from calotype.core.untrusted import NotPlain, check_regular, open_regular
from calotype.data import PackedDataset
from calotype.data.packs.cache import new_pack
from calotype.errors import ConfigError
from calotype.families.latents import Latents, latents_of
from calotype.runs.run import TrainedModel, load

PRESETS = {True: "codes", False: "map"}  # of a first stage, by whether the second models codes
MEASURED = 1_000  # training images by which the range of latents is found
FIRST_SHARE = 0.35  # of a budget for both: pictures come back well long before a second stage draws well
SEED = 0  # of images that are binarised at random, once for all
AT_ONCE = 2**22  # values of pictures in a batch

MAPS = "maps.u8"

Counted = Callable[[int, int], None]
"""Told how many pictures are done, of how many."""


def first_stage(path: Path, second: type[GenerativeModel], name: str, device: str) -> TrainedModel:
    """The model of a run whose latents a second model can learn.

    Args:
        second: the family of the second model.
        name: the name of that family, for messages.

    Raises:
        CalotypeError: for a path that is no run, or a model without a single map of latents that suits the second.
    """
    first = load(path, device=device)
    if not isinstance(first.model, HasLatentMap):
        raise ConfigError(f"{path} is a {first.run.config.family} model, without maps of latents: train a vae first")
    try:
        codes = first.model.latent_map().codes
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be a first stage: {error}") from error
    if codes and not second.models_codes:
        raise ConfigError(
            f"{path} has codes, whose numbers have no order, but {name} needs latents that are real numbers: train the "
            "first stage without model.code, or an autoregressive second stage"
        )
    return first


def with_data_of(
    first: TrainedModel, settings: Mapping[str, Mapping[str, Any]], size: str | None
) -> dict[str, dict[str, Any]]:
    """Settings with the data entries of the first stage as defaults.

    Raises:
        ConfigError: for settings that the first stage does not allow.
    """
    chosen = {section: dict(values) for section, values in settings.items()}
    known = plain(first.run.config.data)
    if size is not None:
        raise ConfigError(
            f"the size of pictures is that of the first stage, {known['width']}x{known['height']}: leave out --size"
        )
    data = chosen.setdefault("data", {})
    for key in ("width", "height", "channels"):
        if data.get(key, 0) not in (0, known[key]):
            raise ConfigError(f"data.{key} is {data[key]}, but it is {known[key]} in the first stage: leave it out")
        data[key] = known[key]
    for key in ("fit", "value_range", "pages"):
        data.setdefault(key, known[key])
    return chosen


def check_settings(training: Mapping[str, Any]) -> None:
    """Raise ConfigError for training settings that a second stage does not support."""
    if training.get("flips"):
        raise ConfigError(
            "training.flips mirrors maps of latents, which are not those of mirrored pictures: leave it out, or give "
            "both stages pictures that are mirrored already"
        )


def _check_pictures(first: TrainedModel, packed: PackedDataset) -> None:
    """Raise ConfigError if the shape or the classes of pictures differ from those of the first stage."""
    if packed.spec.shape != first.spec.shape:
        raise ConfigError(
            f"the pictures are {packed.spec.shape}, channels, rows and columns, but those of the first stage are "
            f"{first.spec.shape}: leave out their size and channels"
        )
    if first.class_names and first.class_names != packed.class_names:
        raise ConfigError(
            f"the first stage has the classes {', '.join(first.class_names[:20])}, but the pictures have "
            f"{', '.join(packed.class_names[:20]) or 'none'}: train it with --no-labels, or on these pictures"
        )


def measured(first: TrainedModel, packed: PackedDataset, run: str) -> Latents:
    """The quantisation of the maps of these pictures. Raises ConfigError if they do not match the first stage."""
    _check_pictures(first, packed)
    order = permutation(fold(SEED, "latents"), len(packed.train))[:MEASURED]
    indices = np.sort(packed.train[order])
    parts = [_maps(first, packed, part) for part in _portions(indices, packed)]
    return latents_of(first.model, torch.cat(parts), run, first.digest)


def encoded(first: TrainedModel, packed: PackedDataset, latents: Latents, counted: Counted) -> PackedDataset:
    """The maps of all pictures as bytes, a data set in place of the pictures; cached beside the packs.

    Raises:
        DataError: the disk has no room.
    """
    spec = latents.spec(packed.spec)
    named = f"{packed.digest[:16]}-{first.digest[:16]}"
    target = cache_folder("latents") / named
    shape = (len(packed), spec.height, spec.width, spec.channels)
    about = repr(sorted((k, v) for k, v in asdict(latents).items() if k != "run")).encode()
    if not _is_there(target, about, shape):
        with new_pack(target, needed=int(np.prod(shape))) as folder:
            digest = hashlib.blake2b(about)

            def write(file: BinaryIO) -> None:
                done = 0
                for part in _portions(np.arange(len(packed)), packed):
                    maps = latents.to_bytes(_maps(first, packed, part)).permute(0, 2, 3, 1).contiguous()
                    data = maps.cpu().numpy().data
                    digest.update(data)
                    file.write(data)
                    done += len(part)
                    counted(done, len(packed))

            write_new(folder / MAPS, write)
            write_new(folder / "digest", lambda file: file.write(digest.digest()))
    return replace(packed, spec=spec, images=np.memmap(target / MAPS, np.uint8, "r", shape=shape))


def _is_there(target: Path, about: bytes, shape: tuple[int, ...]) -> bool:
    """Whether the maps of these pictures exist and match their checksum, for which all of them are read."""
    try:
        with open_regular(target / "digest", 64) as file:
            known = file.read()
        check_regular(target / MAPS)
        if (target / MAPS).stat().st_size != int(np.prod(shape)):
            return False
        digest = hashlib.blake2b(about)
        for start in range(0, shape[0], AT_ONCE):
            digest.update(np.memmap(target / MAPS, np.uint8, "r", shape=shape)[start : start + AT_ONCE].data)
    except (OSError, NotPlain):
        return False
    return digest.digest() == known


def _portions(indices: np.ndarray, packed: PackedDataset) -> list[np.ndarray]:
    size = max(1, min(256, AT_ONCE // packed.spec.dims))
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _maps(first: TrainedModel, packed: PackedDataset, indices: np.ndarray) -> torch.Tensor:
    """The maps of pictures: float (B, C, h, w)."""
    device = next(first.model.parameters()).device
    batch = packed.read(indices)
    model = cast(HasLatentMap, first.model)
    noise = Noise.per_image(fold(SEED, "prepared"), [int(i) for i in indices], "cpu")
    images = model.prepared(batch.images, noise).to(device)
    labels = None if batch.labels is None or not first.class_names else batch.labels.to(device)
    return model.to_map(images, labels)
