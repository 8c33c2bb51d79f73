"""Input pictures for a trained model: fitted to its size, with the classes that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calotype.core.display import Display, packing_on
from calotype.data import prepare
from calotype.data.classes import check_seen
from calotype.errors import ConfigError
from calotype.runs.run import TrainedModel


class Given(NamedTuple):
    """Pictures, and their classes where the model has classes."""

    images: Tensor  # uint8 (n, C, H, W)
    labels: Tensor | None  # int64 (n,)


def given(
    model: TrainedModel, source: str, labels: Sequence[str] | None, most: int | None, display: Display, verb: str
) -> Given:
    """The first `most` pictures of a source, or all.

    Args:
        source: of pictures as for train, or one picture.
        labels: classes by name or number, in turn; None: those of the pictures.
        verb: for messages, the action on the pictures.

    Raises:
        CalotypeError: the source cannot be read, or classes are missing or unknown to the model.
    """
    wants_labels = bool(model.class_names) and labels is None
    asked = None if wants_labels else model.labels(labels)  # before pictures are packed, since a name may be unknown
    packed = prepare(
        replace(
            model.run.config.data,
            source=source,
            width=model.spec.width,
            height=model.spec.height,
            channels=model.spec.channels,
            labels=wants_labels,
            labels_from="",  # a table of the pictures that were learned is not there beside others
            stream=False,
            to_learn=False,
        ),
        progress=packing_on(display),
    )
    count = len(packed) if most is None else min(len(packed), most)
    if count < len(packed):
        display.message(f"the first {count} of {len(packed)} pictures are {verb}")
    found = packed.read(np.arange(count))
    if not wants_labels:
        return Given(found.images, None if asked is None else torch.tensor([asked(i) for i in range(count)]))
    names = packed.class_names
    if found.labels is None or not set(names) <= set(model.class_names):
        raise ConfigError(
            f"the model knows the classes {', '.join(model.class_names[:20])}, but the pictures do not say theirs: "
            "give --labels, or folders of those names"
        )
    classes = [model.class_names.index(names[int(label)]) for label in found.labels]
    check_seen(classes, model.class_names, model.spec.unseen)
    return Given(found.images, torch.tensor(classes))
