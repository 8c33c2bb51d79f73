"""Equal and nearly equal pictures of a pack.

Nearly equal by dHash: the picture as 8 x 9 gray means, one bit per neighbouring pair in a row telling which of the two
is brighter. Two of the 64 bits' words at most 3 apart have one of their four 16-bit quarters in common, so only
pictures that share a quarter are compared.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 8, 9
MAX_DISTANCE = 3  # bits of 64: what another compression or scale changes
MIN_CORRELATION = 0.98  # of gray pixels: different drawings on one ground may share a dHash; copies stay above this

# Of a picture this flat (levels, standard deviation of the means) the bits are those of noise.
_FLAT = 2.0
# Quarters that very many pictures share, such as an empty upper edge, tell little, and cost the square of their
# number: the rarest come first, until this many comparisons are made, which takes a few seconds.
_MAX_COMPARISONS = 100_000_000
_LARGEST_BUCKET = 2_000  # pictures compared with each other at once; more are a series, and take gigabytes

_CHUNK_VALUES = 1 << 22  # of pixels at a time, for the memory: 16 MB in floats
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class NearDuplicates(NamedTuple):
    """Pairs of different but nearly equal pictures, and what was not compared."""

    pairs: NDArray[np.int64]  # (P, 2) indices, the lower one first, in order
    flat: int  # pictures without structure, which are not compared
    complete: bool  # False: so many are alike in part that not all were compared


def exact_duplicates(images: NDArray[np.uint8]) -> list[list[int]]:
    """Groups of indices of pictures (N, H, W, C) with the same bytes, in order."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(images: NDArray[np.uint8], skip: set[int]) -> NearDuplicates:
    """Find pairs of nearly equal pictures (N, H, W, C), without those in `skip`: copies that are known already."""
    chunk = _chunk(images)
    means = np.concatenate([_means(images[start : start + chunk]) for start in range(0, len(images), chunk)])
    flat = means.std(axis=(1, 2)) < _FLAT
    chosen = np.flatnonzero(~flat & ~np.isin(np.arange(len(images)), list(skip)))
    bits = (means[chosen, :, 1:] > means[chosen, :, :-1]).reshape(-1, 64)
    quarters = np.packbits(bits, axis=1).view(np.uint16)  # (N, 4)
    buckets = sorted(_buckets(quarters), key=len)
    sizes = np.array([len(bucket) for bucket in buckets], np.int64)
    within = (np.cumsum(sizes**2) <= _MAX_COMPARISONS) & (sizes <= _LARGEST_BUCKET)
    looks = _standardised(means[chosen])
    found = [_close(bucket, quarters.view(np.uint64)[:, 0], looks) for bucket in buckets[: int(within.sum())]]
    pairs = chosen[np.unique(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=0)]
    return NearDuplicates(_alike(images, pairs), int(flat.sum()), bool(within.all()))


def _close(bucket: NDArray[np.int64], words: NDArray[np.uint64], looks: NDArray[np.float32]) -> NDArray[np.int64]:
    """Pairs (P, 2) of a bucket whose dHashes are close and whose means correlate."""
    close = np.bitwise_count(words[bucket, None] ^ words[None, bucket]) <= MAX_DISTANCE
    close &= looks[bucket] @ looks[bucket].T >= MIN_CORRELATION
    return bucket[np.argwhere(np.triu(close, 1))]


def _alike(images: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the pairs (P, 2) whose gray pixels correlate."""
    kept = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), _chunk(images)):
        some = pairs[start : start + _chunk(images)]
        left, right = (_standardised(_gray(images[some[:, side]])) for side in (0, 1))
        kept.append(some[(left * right).sum(axis=1) >= MIN_CORRELATION])
    return np.concatenate(kept)


def _chunk(images: NDArray[np.uint8]) -> int:
    """How many pictures to take at a time."""
    return max(1, _CHUNK_VALUES // images[0].size)


def _standardised(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gray (N, H, W) as vectors (N, H W) of mean 0 and length 1, whose products are correlations."""
    flat = gray.reshape(len(gray), gray.shape[1] * gray.shape[2])
    centred = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6), np.float32)


def _gray(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Luma of pictures (N, H, W, C), alpha over black: float32 (N, H, W)."""
    channels = images.shape[3]
    gray = images[..., 0].astype(np.float32) if channels == 1 else images[..., :3].astype(np.float32) @ _LUMA
    return np.asarray(gray * (images[..., 3].astype(np.float32) / 255) if channels == 4 else gray, np.float32)


def _means(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean gray of 8 x 9 cells of pictures (N, H, W, C): float32 (N, 8, 9)."""
    gray = _gray(images)
    return np.asarray(_averaging(ROWS, gray.shape[1]) @ gray @ _averaging(COLUMNS, gray.shape[2]).T, np.float32)


def _averaging(cells: int, pixels: int) -> NDArray[np.float32]:
    """The matrix (cells, pixels) that takes the means of equal stretches of pixels, cut pixels counting in part."""
    edges = np.linspace(0, pixels, cells + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, pixels + 1)) - np.maximum(edges[:-1, None], np.arange(pixels))
    return np.asarray(np.clip(overlap, 0, None) * cells / pixels, np.float32)


def _buckets(quarters: NDArray[np.uint16]) -> Iterator[NDArray[np.int64]]:
    """Rows of (N, 4) that have a quarter in common, two or more, in order."""
    for quarter in quarters.T:
        order = np.argsort(quarter, kind="stable")
        edges = np.flatnonzero(np.diff(quarter[order])) + 1
        for bucket in np.split(order, edges):
            if len(bucket) > 1:
                yield bucket
