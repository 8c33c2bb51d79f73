"""Which pictures are held out from training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.data.records import Split
from calotype.errors import DataError

HELD_OUT_SHARE = 0.1
"""Share of the pictures that are held out where the source has no split of its own."""


class SplitResult(NamedTuple):
    """Which pictures are held out, bool (N,), and by which rule, as a sentence."""

    held_out: NDArray[np.bool_]
    rule: str


def split_pictures(hashes: NDArray[np.uint64], own: Sequence[Split | None]) -> SplitResult:
    """Use the split of the source where both its sides have pictures, else hold out a share by the hash.

    Args:
        hashes: uniform hash of each picture's pixels (N,); equal pictures have equal hashes.
        own: the split that the source states for each.

    Raises:
        DataError: the source's split leaves nothing to train on, or all pictures are the same.
    """
    if set(own) == {"held_out"}:
        raise DataError("no picture of the source's training split can be used: see `calotype check` for the reasons")
    if {"train", "held_out"} <= set(own):
        return SplitResult(np.array([split == "held_out" for split in own]), "the split of the source")
    rule = f"{HELD_OUT_SHARE:.0%} by the hash of the packed pixels, equal pictures on one side"
    return SplitResult(_by_hash(hashes), rule)


def nothing_held_out(n: int) -> SplitResult:
    """The split of n pictures that are not to be learnt from."""
    return SplitResult(np.zeros(n, np.bool_), "none: the pictures are to be measured")


def last_held_out(n: int) -> SplitResult:
    """The split of the n pages of one file: the last are held out, since those beside each other are much alike."""
    held_out = np.arange(n) >= n - max(1, round(HELD_OUT_SHARE * n))
    return SplitResult(held_out, f"the last {HELD_OUT_SHARE:.0%} of the pages of the only file")


def _by_hash(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Below a fixed threshold, so that a picture keeps its side when others are added."""
    least, greatest = hashes.min(), hashes.max()
    if least == greatest:
        raise DataError(
            f"all {len(hashes)} pictures are the same once packed, but a model learns from different ones: add others"
        )
    held_out = hashes < np.uint64(int(HELD_OUT_SHARE * 2**64))
    if not held_out.any():
        held_out = hashes == least
    return np.asarray(held_out & (hashes != greatest))  # something is always left to train on
