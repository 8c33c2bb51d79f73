from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.data.split import split_pictures
from calotype.errors import DataError

hash_lists = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=60).filter(lambda values: len(set(values)) > 1)


def held_out(values: list[int]) -> np.ndarray:
    return split_pictures(np.array(values, np.uint64), [None] * len(values)).held_out


@given(hash_lists, st.data())
def test_both_sides_have_pictures_and_equal_ones_are_on_one_side(values, data):
    values = values + data.draw(st.lists(st.sampled_from(values)))
    chosen = held_out(values)
    assert 0 < chosen.sum() < len(values)
    assert all(len(set(chosen[np.array(values, np.uint64) == np.uint64(value)])) == 1 for value in values)


@given(hash_lists)
def test_the_order_does_not_matter(values):
    np.testing.assert_array_equal(held_out(values)[::-1], held_out(values[::-1]))


def test_about_a_tenth_is_held_out_and_stays_so_when_pictures_are_added():
    values = np.random.default_rng(0).integers(0, 2**64 - 1, 4000, np.uint64).tolist()
    before, after = held_out(values[:2000]), held_out(values)
    np.testing.assert_array_equal(before, after[:2000])
    assert abs(after.sum() - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)  # four standard deviations of the binomial


def test_equal_pictures_only_cannot_be_split():
    with pytest.raises(DataError, match="the same"):
        held_out([5] * 20)


def test_the_split_of_the_source_comes_first():
    result = split_pictures(np.arange(4, dtype=np.uint64), ["train", "held_out", "train", "held_out"])
    assert result.held_out.tolist() == [False, True, False, True]
    with pytest.raises(DataError, match="training split"):
        split_pictures(np.arange(4, dtype=np.uint64), ["held_out"] * 4)
