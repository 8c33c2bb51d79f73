"""Exact and near duplicates among the pictures of a pack.

Copies of a picture, recompressed as JPEG, scaled or slightly brightened, differ from it in fine ripples that average
out over a few pixels. Different pictures differ somewhere by more, however much else they share: icons on the same
background, letters of two typefaces. So two pictures are near duplicates if, after their contrast and brightness are
aligned, the difference averaged over some pixels is nowhere more than a share of the contrast.

Only pairs whose coarse maps correlate are compared: 8 x 8 mean values of brightness (and of alpha), 4 x 4 of each
colour difference. They are found through their leading principal components, whose distance is never more than that of
the maps; so no pair is missed as long as the number of pictures is within the limit.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Of coarse maps: nearly all copies stay above 0.99, and below half of the greatest difference.
MIN_CORRELATION = 0.985
_MAX_MAP_DIFFERENCE = 0.3  # of a cell, per contrast
# Of the mean difference at its greatest, in levels, and per level of contrast (standard deviation): of brightness and
# alpha, and of colour differences, which JPEG keeps at half the resolution. See benchmarks/duplicates.py.
LIMITS = (2.5, 0.2)
COLOUR_LIMITS = (6.0, 0.3)
MAX_GAIN = 1.25  # of contrast

SIDE = 32  # positions a side at most at which pictures are compared; larger ones are averaged down
_CELLS, _COLOUR_CELLS = 8, 4
_COMPONENTS = 16
_FLAT = 2.0  # levels of contrast: in less there is no structure to compare

_BLOCK = 2_048  # pictures compared with each other at once
_MAX_COMPARISONS = (
    20_000_000_000  # of maps, those of similar pictures first: all of 200,000 pictures, in about a minute
)
_MAX_MAP_PAIRS = 20_000_000  # whose maps are compared in full: half a minute; more are those of a series
_MAX_VALUES = 1_000_000_000  # of pictures in pairs: half a minute
_CHUNK_VALUES = 1 << 22  # of pixels at a time, for the memory: 16 MB in floats
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BLUE, _RED = 0.564, 0.713


class NearDuplicates(NamedTuple):
    """Pairs of different but nearly equal pictures, and what was not compared."""

    pairs: NDArray[np.int64]  # (P, 2) indices, the lower one first, in order
    flat: int  # pictures without structure, which are not compared
    complete: bool  # False: there are so many, or so many are alike, that not all were compared


def exact_duplicates(images: NDArray[np.uint8]) -> list[list[int]]:
    """Groups of indices of pictures (N, H, W, C) with the same bytes, in order."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        groups[hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()].append(i)
    return [group for group in groups.values() if len(group) > 1]


def near_duplicates(images: NDArray[np.uint8], skip: set[int]) -> NearDuplicates:
    """Find pairs of near duplicates among pictures (N, H, W, C), without those in `skip`: known exact copies."""
    maps, contrast = _look(images)
    chosen = np.flatnonzero((contrast >= _FLAT) & ~np.isin(np.arange(len(images)), list(skip)))
    maps = maps[chosen]
    complete = len(chosen) ** 2 // 2 <= _MAX_COMPARISONS
    pairs = [np.empty((0, 2), np.int64)]
    maps_left, values_left = _MAX_MAP_PAIRS, _MAX_VALUES // images[0].size
    for some in _candidates(maps):
        alike = some[_maps_are_alike(maps, some[:maps_left])]
        near = chosen[alike[:values_left]]
        pairs.append(near[_are_near(images, near)])
        if len(some) > maps_left or len(alike) > values_left:
            complete = False
            break
        maps_left, values_left = maps_left - len(some), values_left - len(alike)
    found = np.sort(np.concatenate(pairs), axis=1)
    return NearDuplicates(found[np.lexsort(found.T[::-1])], int((contrast < _FLAT).sum()), complete)


def _chunk(values: int) -> int:
    """The number of rows per chunk, by the values per row."""
    return max(1, _CHUNK_VALUES // values)


def _look(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coarse maps (N, D) and contrasts (N,) of pictures."""
    maps, contrasts, step = [], [], _chunk(images[0].size)
    for start in range(0, len(images), step):
        planes = _planes(images[start : start + step])
        maps.append(_maps(planes))
        contrasts.append(_contrast(planes))
    return np.concatenate(maps), np.concatenate(contrasts)


def _planes(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness, then alpha, then differences of colour, of pictures (N, H, W, C): float32 (N, P, h, w) in levels.

    Colours are composited over black. h and w are at most SIDE.
    """
    channels, (height, width) = images.shape[3], images.shape[1:3]
    values = images.astype(np.float32)
    if channels == 4:
        values[..., :3] *= values[..., 3:] / 255
    if channels == 1:
        planes = values[:, None, :, :, 0]
    else:
        luma = values[..., :3] @ _LUMA
        colour = [(values[..., 2] - luma) * np.float32(_BLUE), (values[..., 0] - luma) * np.float32(_RED)]
        planes = np.stack([luma, *([values[..., 3]] if channels == 4 else []), *colour], axis=1)
    return _averaged(planes, min(height, SIDE), min(width, SIDE))


def _averaged(planes: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Mean values of planes (..., H, W) in rows x columns cells."""
    height, width = planes.shape[-2:]
    if (height, width) == (rows, columns):
        return planes
    return np.asarray(_averaging(rows, height) @ planes @ _averaging(columns, width).T, np.float32)


def _averaging(cells: int, pixels: int) -> NDArray[np.float32]:
    """The matrix (cells, pixels) of means over equal intervals, with fractional weights for pixels at their ends."""
    edges = np.linspace(0, pixels, cells + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, pixels + 1)) - np.maximum(edges[:-1, None], np.arange(pixels))
    return np.asarray(np.clip(overlap, 0, None) * cells / pixels, np.float32)


def _bright(planes: NDArray[np.float32]) -> int:
    """The number of planes of brightness and alpha."""
    return {1: 1, 3: 1, 4: 2}[planes.shape[1]]


def _contrast(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """The standard deviation of all planes together: (N,)."""
    return np.asarray(np.sqrt(planes.var(axis=(2, 3)).sum(1)), np.float32)


def _maps(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coarse maps as vectors (N, D) of length 1 and mean 0 in each plane, whose products are correlations."""
    bright = _bright(planes)
    fine, coarse = (
        _averaged(planes[:, :bright], _CELLS, _CELLS),
        _averaged(planes[:, bright:], _COLOUR_CELLS, _COLOUR_CELLS),
    )
    scale = np.float32(_CELLS / _COLOUR_CELLS)  # each coarse cell stands for so many squared
    parts = [(part - part.mean((2, 3), keepdims=True)).reshape(len(planes), -1) for part in (fine, coarse * scale)]
    flat = np.concatenate(parts, axis=1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), np.float32)


def _candidates(maps: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
    """Pairs (P, 2) of maps (N, D) that may correlate, in batches, each pair once.

    In the order of their first principal component, maps are compared block by block with those that follow, as far as
    that component allows, and as far as there are comparisons for.
    """
    if len(maps) < 2:
        return
    _, vectors = np.linalg.eigh(maps.T @ maps)
    leading = np.asarray(maps @ vectors[:, ::-1][:, :_COMPONENTS], np.float32)
    order = np.argsort(leading[:, 0], kind="stable")
    leading = leading[order]
    reach = np.float32((2 - 2 * MIN_CORRELATION) ** 0.5)  # the distance of vectors of length 1
    half = np.einsum("nd,nd->n", leading, leading) / 2
    # |a - b|^2 <= reach^2 where a . b - |a|^2 / 2 - |b|^2 / 2 >= -reach^2 / 2: one product
    ones = np.ones((len(maps), 1), np.float32)
    left = np.concatenate([leading, ones, -half[:, None]], axis=1)
    right = np.concatenate([leading, -half[:, None], ones], axis=1).T
    farthest = max(_BLOCK, _MAX_COMPARISONS // len(maps))
    for start in range(0, len(maps), _BLOCK):
        stop = min(start + _BLOCK, len(maps))
        end = int(np.searchsorted(leading[:, 0], leading[stop - 1, 0] + reach, side="right"))
        for other in range(start, min(end, stop + farthest), _BLOCK):
            block = left[start:stop] @ right[:, other : other + _BLOCK] >= -(reach**2) / 2
            rows, columns = np.divmod(np.flatnonzero(block), block.shape[1])
            later = columns + other > rows + start
            yield order[np.stack([rows[later] + start, columns[later] + other], 1)]


def _maps_are_alike(maps: NDArray[np.float32], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whether the maps of pairs (P, 2) correlate and differ little everywhere: (P,)."""
    found, step = [np.empty(0, np.int64)], _chunk(maps.shape[1])
    weights = _map_weights(maps.shape[1])
    for start in range(0, len(pairs), step):
        one, other = maps[pairs[start : start + step].T]
        alike = np.einsum("nd,nd->n", one, other) >= MIN_CORRELATION
        alike &= (np.abs(one - other) * weights).max(1) <= _MAX_MAP_DIFFERENCE
        found.append(start + np.flatnonzero(alike))
    return np.concatenate(found)


def _map_weights(values: int) -> NDArray[np.float32]:
    """The weights that convert values of a map to contrasts: (D,)."""
    bright = values if values == _CELLS**2 else values - 2 * _COLOUR_CELLS**2
    return np.repeat(np.array([_CELLS, _COLOUR_CELLS], np.float32), [bright, values - bright])


def _are_near(images: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the pictures of pairs (P, 2) are near duplicates: (P,)."""
    found, step = [np.empty(0, np.bool_)], _chunk(images[0].size)
    for start in range(0, len(pairs), step):
        one, other = (_planes(images[some]) for some in pairs[start : start + step].T)
        contrasts = np.stack([_contrast(one), _contrast(other)])
        gain, bright = contrasts[0] / contrasts[1], _bright(one)
        difference = one - gain[:, None, None, None] * other
        difference[:, :bright] -= difference[:, :bright].mean((2, 3), keepdims=True)
        worst, lower = np.abs(_smooth(_smooth(difference))).max((2, 3)), contrasts.min(0)[:, None]  # (n, P), (n, 1)
        near = (worst[:, :bright] <= LIMITS[0] + LIMITS[1] * lower).all(1)
        near &= (worst[:, bright:] <= COLOUR_LIMITS[0] + COLOUR_LIMITS[1] * lower).all(1)
        found.append(near & (np.maximum(gain, 1 / gain) <= MAX_GAIN))
    return np.concatenate(found)


def _smooth(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 3 x 3 positions of planes (N, P, h, w), those on the edge repeated beyond it."""
    wide = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    return np.asarray((rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9, np.float32)
