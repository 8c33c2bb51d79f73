"""Warnings about a data set before training: classes and splits that are empty or nearly empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from calotype.data.config import FEWEST_TO_LEARN
from calotype.data.packs.packed import PackedDataset
from calotype.errors import DataError

FEW_HELD_OUT = 3  # pictures: what is measured on fewer says next to nothing
LISTED = 10  # names in a sentence
RARE = 10  # times as many pictures as a class has, in the largest one: below that repetition is no matter


def listed(names: Sequence[str]) -> str:
    """The first names of a list, in quotes, and the number of the others."""
    text = ", ".join(repr(name) for name in names[:LISTED])
    return text + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


def check_names(names: Sequence[str]) -> None:
    """Raise DataError if two classes have the same name, so that neither can be selected."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} class names stand for several classes each, such as {listed(twice[:1])}: rename them, or "
            "leave classes out with --no-labels"
        )


def all_notes(pack: PackedDataset) -> list[str]:
    """The warnings that apply to every training on the data set."""
    return [*class_notes(pack), *split_notes(pack)]


def split_notes(pack: PackedDataset) -> list[str]:
    """Warnings about a side of the split with almost no pictures."""
    found = []
    if pack.learned < FEWEST_TO_LEARN // 2:
        found.append(
            f"There are only {pack.learned} pictures to learn from: a model will memorise them. Add training pictures."
        )
    if len(pack.held_out) < FEW_HELD_OUT:
        count = len(pack.held_out)
        found.append(
            f"There {'is' if count == 1 else 'are'} only {count} held-out picture{'s' if count > 1 else ''}, on which "
            "the held-out loss, the best checkpoint and likelihoods rest: they say next to nothing. Add pictures."
        )
    return found


def class_notes(pack: PackedDataset) -> list[str]:
    """Warnings about classes without training pictures."""
    unseen = pack.spec.unseen
    if not unseen or pack.labels is None:
        return []
    held_out = np.bincount(pack.labels[pack.left_out], minlength=len(pack.class_names))
    measured, empty = [k for k in unseen if held_out[k]], [k for k in unseen if not held_out[k]]
    parts = [f"{pack.class_names[k]!r} (0 to learn from, {held_out[k]:,} held out)" for k in measured[:LISTED]]
    if len(measured) > LISTED:
        parts.append(f"{len(measured) - LISTED:,} more with held-out pictures alone")
    if empty:
        parts.append(f"without any picture {listed([pack.class_names[k] for k in empty])}")
    text = (
        f"{len(unseen):,} of {len(pack.class_names):,} classes have no pictures to learn from: {'; '.join(parts)}. "
        "Models draw and know none of them."
    )
    if measured:
        text += f" Their {len(pack.left_out):,} held-out pictures are left out of all that is measured."
    return [text + " Add training pictures of these classes, or remove the classes."]


def balance_notes(pack: PackedDataset) -> list[str]:
    """Warnings about classes so small that --balanced repeats their pictures many times."""
    counts = np.array(pack.class_counts)
    seen = np.flatnonzero(counts)
    largest = int(counts.max(initial=0))
    rare = [k for k in seen[np.argsort(counts[seen], kind="stable")].tolist() if RARE * counts[k] <= largest]
    if not rare:
        return []
    parts = [
        f"{pack.class_names[k]!r} ({counts[k]:,} training picture{'s' if counts[k] > 1 else ''}, each shown "
        f"{largest / counts[k]:,.0f} times)"
        for k in rare[:LISTED]
    ]
    more = f" and {len(rare) - LISTED:,} more" if len(rare) > LISTED else ""
    return [
        f"--balanced shows every class equally often, and so repeats in each epoch the pictures of {', '.join(parts)}"
        f"{more}, which a model may memorise. Add pictures of these classes, remove the classes, or leave out "
        "--balanced."
    ]
