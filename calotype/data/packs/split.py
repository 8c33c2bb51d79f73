"""The split into training and held-out pictures.

Near duplicates form a group, and a group stays on one side of the split. The side is derived from the hash of one of
its members, so a picture keeps its side when others are added, with two exceptions: another picture joins its group, or
its class is so small that bounds apply to its held-out share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calotype.data.records import Split
from calotype.errors import DataError

HELD_OUT_SHARE = 0.1
"""Share of the pictures that are held out where the source has no split of its own."""

# No less and no more is held out of a class; of some hundred pictures the hash alone nearly always stays between. At
# most one of 2 to 9 pictures is held out, and at least one of 10 or more.
LEAST_SHARE, MOST_SHARE = 0.05, 0.2

RULE = (
    f"{HELD_OUT_SHARE:.0%} by the hash of the packed pixels, equal and nearly equal pictures on one side, "
    f"and {LEAST_SHARE:.0%} to {MOST_SHARE:.0%} of each class"
)
SERIES_RULE = f"{HELD_OUT_SHARE:.0%} by the hash of the packed pixels; all pictures are nearly equal to others"
OWN_RULE = "the split of the source"
LAST_RULE = f"the last {HELD_OUT_SHARE:.0%} of the pages of the only file"
NO_RULE = "none: the pictures are to be measured"
RULES = (RULE, SERIES_RULE, LAST_RULE, OWN_RULE, NO_RULE)
"""Those in force: where its source is there, a pack of another one is made again."""

_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication is one to one, and its high bits depend on all bits


class SplitResult(NamedTuple):
    """Whether each picture is held out, bool (N,), and the rule as a sentence."""

    held_out: NDArray[np.bool_]
    rule: str


def own_split(own: Sequence[Split | None]) -> SplitResult | None:
    """The split that the source states, if both its sides have pictures.

    Raises:
        DataError: it leaves nothing to train on.
    """
    if set(own) == {"held_out"}:
        raise DataError("no picture of the source's training split can be used: see `calotype check` for the reasons")
    if not {"train", "held_out"} <= set(own):
        return None
    return SplitResult(np.array([split == "held_out" for split in own]), OWN_RULE)


def nothing_held_out(n: int) -> SplitResult:
    """The split of n pictures without training: none is held out."""
    return SplitResult(np.zeros(n, np.bool_), NO_RULE)


def last_held_out(n: int) -> SplitResult:
    """The split of the n pages of one file: the last are held out, since adjacent pages are similar."""
    held_out = np.arange(n) >= n - max(1, round(HELD_OUT_SHARE * n))
    return SplitResult(held_out, LAST_RULE)


def split_by_hash(
    hashes: NDArray[np.uint64], near: NDArray[np.int64], labels: NDArray[np.int64] | None = None
) -> SplitResult:
    """Hold out a share of the pictures of each class; every class keeps training pictures.

    Args:
        hashes: uniform hash of each picture's pixels (N,); equal pictures have equal hashes.
        near: pairs of pictures (P, 2) that belong on the same side.
        labels: the class of each (N,); None without classes.

    Raises:
        DataError: all pictures are the same, or none can be held out without leaving a class empty.
    """
    if hashes.min() == hashes.max():
        raise DataError(
            f"all {len(hashes)} pictures are the same once packed, but a model learns from different ones: add others"
        )
    groups, rule = _group(hashes, near, labels), RULE
    if len(groups.hashes) == 1:  # a film, each picture nearly the one before: only equal ones are kept together
        groups, rule = _group(hashes, near[:0], labels), SERIES_RULE
    held_out = np.zeros(len(groups.hashes), np.bool_)
    for label in np.unique(groups.labels):
        own = np.flatnonzero(groups.labels == label)
        held_out[own[_of_class(groups.hashes[own], groups.sizes[own])]] = True
    # Groups with pictures of several classes may have taken all of one.
    for label in np.unique(groups.contents[:, 1]):
        own = groups.contents[groups.contents[:, 1] == label, 0]
        if held_out[own].all():
            held_out[own[np.argmax(groups.hashes[own])]] = False
    if not held_out.any():
        chosen = _least_missed(groups)
        if chosen is None and rule is RULE and len(near):  # each class one group: only equal ones are kept together
            return split_by_hash(hashes, near[:0], labels)._replace(rule=SERIES_RULE)
        if chosen is None:
            raise DataError(
                f"each of {len(np.unique(groups.contents[:, 1]))} classes has one picture, or equal ones alone, so "
                "that none can be held out: add others, or pass over the classes with --no-labels"
            )
        held_out[chosen] = True
    return SplitResult(held_out[groups.members], rule)


class _Groups(NamedTuple):
    """G groups of pictures, each of which stays on one side."""

    members: NDArray[np.int64]  # the group of each picture (N,)
    hashes: NDArray[np.uint64]  # (G,)
    sizes: NDArray[np.int64]  # (G,)
    labels: NDArray[np.int64]  # the class that each counts to (G,)
    contents: NDArray[np.int64]  # rows (group, class of some of its pictures)


def _group(hashes: NDArray[np.uint64], near: NDArray[np.int64], labels: NDArray[np.int64] | None) -> _Groups:
    """Group equal pictures and pairs. The picture with the smallest mixed hash represents its group.

    The mixed hash is independent of the hash: a group of any size is held out as often as a single picture, and a
    picture that joins a group of k becomes its representative with probability 1 / (k + 1).
    """
    classes = np.zeros(len(hashes), np.int64) if labels is None else labels
    members = _components(np.unique(hashes, return_inverse=True)[1].astype(np.int64), near)
    order = np.lexsort((classes, hashes * _MIX, members))
    chosen = order[np.flatnonzero(np.diff(members[order], prepend=-1))]
    contents = np.unique(np.stack([members, classes], 1), axis=0)
    return _Groups(members, hashes[chosen], np.bincount(members), classes[chosen], contents)


def _components(members: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers 0..G-1 of the groups, once the groups of pairs of pictures are joined."""
    parent = list(range(int(members.max()) + 1))

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for one, other in members[pairs].tolist():
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    roots = np.array([root(group) for group in range(len(parent))], np.int64)
    return np.unique(roots[members], return_inverse=True)[1].astype(np.int64)


def _of_class(hashes: NDArray[np.uint64], sizes: NDArray[np.int64]) -> list[int]:
    """The groups of a class that are held out: those below a fixed threshold, within bounds.

    A group above the largest permitted share of its class is never held out.
    """
    total = int(sizes.sum())
    able = np.flatnonzero(sizes <= max(1, int(MOST_SHARE * total)))
    if total < 2 or not len(able):
        return []
    pictures = int(sizes[able].sum())
    least = max(1, int(LEAST_SHARE * pictures)) if HELD_OUT_SHARE * pictures >= 1 else 0
    most = max(1, int(MOST_SHARE * pictures))
    threshold, taken, chosen = int(HELD_OUT_SHARE * 2**64), 0, []
    for group in able[np.argsort(hashes[able])].tolist():
        if int(hashes[group]) >= threshold and taken >= least:
            break
        if taken + int(sizes[group]) <= most:
            taken += int(sizes[group])
            chosen.append(group)
    return chosen


def _least_missed(groups: _Groups) -> int | None:
    """The smallest group whose removal leaves no class empty, by hash among equals; or None."""
    _, classes, homes = np.unique(groups.contents[:, 1], return_inverse=True, return_counts=True)
    needed = np.zeros(len(groups.hashes), np.bool_)
    needed[groups.contents[homes[classes] == 1, 0]] = True
    order = np.lexsort((groups.hashes, groups.sizes, needed))
    return None if needed[order[0]] else int(order[0])
