from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.data.packs.split import OWN_RULE, RULE, SERIES_RULE, own_split, split_by_hash
from calotype.errors import DataError

hash_lists = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=60, unique=True)
NONE = np.empty((0, 2), np.int64)


def hashes_of(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


def held_out(values: list[int], near: np.ndarray = NONE, labels: list[int] | None = None) -> np.ndarray:
    return split_by_hash(hashes_of(values), near, None if labels is None else np.array(labels)).held_out


def random_hashes(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 2**64 - 1, n, np.uint64).tolist()


def draw_pairs(data: st.DataObject, n: int) -> np.ndarray:
    index = st.integers(0, n - 1)
    return np.array(data.draw(st.lists(st.tuples(index, index), max_size=n // 2)), np.int64).reshape(-1, 2)


@given(hash_lists, st.data())
def test_both_sides_have_pictures_and_alike_ones_are_on_one_side(values, data):
    values = values + data.draw(st.lists(st.sampled_from(values)))
    near = draw_pairs(data, len(values))
    result = split_by_hash(hashes_of(values), near)
    chosen = result.held_out
    assert 0 < chosen.sum() < len(values)
    assert all(len(set(chosen[hashes_of(values) == np.uint64(value)])) == 1 for value in values)
    if result.rule == RULE:
        assert (chosen[near[:, 0]] == chosen[near[:, 1]]).all()


@given(hash_lists, st.data())
def test_every_class_has_pictures_to_learn_from(values, data):
    labels = data.draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
    near = draw_pairs(data, len(values))
    try:
        chosen = held_out(values, near, labels)
    except DataError:  # none can be held out without leaving a class empty
        return
    assert 0 < chosen.sum()
    assert set(np.array(labels)[~chosen]) == set(labels)


@given(hash_lists, st.data())
def test_the_order_does_not_matter(values, data):
    near = draw_pairs(data, len(values))
    backwards = len(values) - 1 - near
    np.testing.assert_array_equal(held_out(values, near)[::-1], held_out(values[::-1], backwards))


def test_about_a_tenth_is_held_out_and_stays_so_when_pictures_are_added():
    values = random_hashes(4000)
    before, after = held_out(values[:2000]), held_out(values)
    np.testing.assert_array_equal(before, after[:2000])
    assert abs(after.sum() - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)  # four standard deviations of the binomial


def test_groups_of_near_copies_are_held_out_as_often_as_single_pictures():
    values = random_hashes(9000)
    near = np.array([(3 * k, 3 * k + j) for k in range(1500) for j in (1, 2)])  # 1,500 groups of three, 4,500 single
    chosen = held_out(values, near)
    assert (chosen[near[:, 0]] == chosen[near[:, 1]]).all()
    # Four standard deviations of 1,500 and of 4,500 coins.
    assert abs(chosen[:4500:3].mean() - 0.1) < 4 * np.sqrt(0.09 / 1500)
    assert abs(chosen[4500:].mean() - 0.1) < 4 * np.sqrt(0.09 / 4500)


def test_near_copies_that_are_added_hardly_ever_change_the_side_of_others():
    values = random_hashes(4000)
    before = held_out(values[:2000])
    after = held_out(values, np.array([(i, 2000 + i) for i in range(2000)]))[:2000]
    # A copy stands for the pair half of the time, and is then on the other side 2 * 0.1 * 0.9 of the time: 9 %.
    assert abs((before != after).mean() - 0.09) < 4 * np.sqrt(0.09 * 0.91 / 2000)


@pytest.mark.parametrize(("size", "least", "most"), [(1, 0, 0), (2, 0, 1), (9, 0, 1), (10, 1, 2), (40, 2, 8)])
def test_the_share_of_a_small_class_has_bounds(size, least, most):
    """Without them, 8 in a hundred classes of 40 pictures would have none or one held out."""
    counts = []
    for seed in range(200):
        labels = [0] * 300 + [1] * size
        counts.append(int(held_out(random_hashes(300 + size, seed), labels=labels)[300:].sum()))
    assert least == min(counts)
    assert max(counts) <= most


def test_a_large_group_is_not_held_out():
    near = np.array([(0, i) for i in range(1, 60)])  # 60 of 100 pictures are one
    for seed in range(50):
        chosen = held_out(random_hashes(100, seed), near)
        assert not chosen[:60].any()
        assert 2 <= chosen.sum() <= 8  # 5 to 20 % of the others


def test_a_series_is_split_all_the_same_and_said():
    near = np.array([(i, i + 1) for i in range(99)])
    result = split_by_hash(hashes_of(random_hashes(100)), near)
    assert result.rule == SERIES_RULE
    assert 0 < result.held_out.sum() <= 20


def test_a_class_whose_pictures_are_copies_of_others_keeps_them():
    """The only picture of class 1 is a near copy of one of class 0, whose side is that of the pair."""
    for seed in range(100):
        chosen = held_out(random_hashes(50, seed), np.array([(0, 49)]), [0] * 49 + [1])
        assert not chosen[49]


def test_equal_pictures_only_cannot_be_split():
    with pytest.raises(DataError, match="the same"):
        held_out([5] * 20)


def test_classes_of_one_picture_each_cannot_be_split():
    with pytest.raises(DataError, match=r"20 classes.*--no-labels"):
        held_out(random_hashes(20), labels=list(range(20)))


def test_the_split_of_the_source_comes_first():
    result = own_split(["train", "held_out", "train", "held_out"])
    assert result is not None
    assert result.held_out.tolist() == [False, True, False, True]
    assert result.rule == OWN_RULE
    assert own_split([None] * 4) is None
    assert own_split(["train"] * 4) is None
    with pytest.raises(DataError, match="training split"):
        own_split(["held_out"] * 4)
