from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.data.decoding.fit import fill_hidden, fit_picture, with_channels
from tests.pictures import noise

FITS = ["crop", "pad", "stretch"]
sides = st.integers(1, 50)


@settings(max_examples=200, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([1, 3, 4]), st.sampled_from([1, 3, 4]), st.sampled_from(FITS))
def test_any_size_becomes_any_other(h, w, height, width, found, channels, fit):
    fitted = fit_picture(noise(0, h, w, found), width=width, height=height, channels=channels, fit=fit)
    assert fitted.shape == (height, width, channels)
    assert fitted.dtype == np.uint8
    assert fitted.flags.c_contiguous


@settings(max_examples=100, deadline=None)
@given(
    sides, sides, sides, sides, st.integers(0, 255), st.sampled_from([1, 3, 4]), st.sampled_from(["crop", "stretch"])
)
def test_a_constant_picture_stays_constant(h, w, height, width, value, channels, fit):
    pixels = np.full((h, w, channels), value, np.uint8)
    pixels[:, :, 3:] = 255
    fitted = fit_picture(pixels, width=width, height=height, channels=channels, fit=fit)
    assert (fitted == pixels[0, 0]).all()


@settings(max_examples=100, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([1, 3, 4]))
def test_padding_is_black_or_transparent_around_a_constant_picture(h, w, height, width, channels):
    pixels = np.full((h, w, channels), 200, np.uint8)
    pixels[:, :, 3:] = 255
    fitted = fit_picture(pixels, width=width, height=height, channels=channels, fit="pad")
    visible = fitted[:, :, -1] > 0
    rows, columns = visible.any(1), visible.any(0)
    assert (fitted[visible] == pixels[0, 0]).all()
    np.testing.assert_array_equal(visible, rows[:, None] & columns)  # one rectangle
    assert rows.all() or columns.all()  # which touches two borders
    if channels == 4:
        assert (fitted[~visible] == [200, 200, 200, 0]).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_right_size_is_left_bit_for_bit(fit, channels):
    pixels = noise(1, 28, 28, channels)
    np.testing.assert_array_equal(fit_picture(pixels, width=28, height=28, channels=channels, fit=fit), pixels)


def test_visible_pixels_of_the_right_size_are_left_bit_for_bit():
    pixels = np.maximum(noise(1, 28, 28, 4), 1)
    pixels[:5, :, 3] = 0
    fitted = fit_picture(pixels, width=28, height=28, channels=4, fit="crop")
    np.testing.assert_array_equal(fitted[5:], pixels[5:])
    np.testing.assert_array_equal(fitted[:, :, 3], pixels[:, :, 3])


def test_a_crop_that_needs_no_scaling_is_cut_on_whole_pixels():
    pixels = noise(2, 32, 45)
    fitted = fit_picture(pixels, width=32, height=32, channels=3, fit="crop")
    np.testing.assert_array_equal(fitted, pixels[:, 6:38])


def test_cropping_keeps_the_middle_and_padding_keeps_all():
    pixels = np.zeros((20, 60, 1), np.uint8)
    pixels[:, 20:40] = 255
    assert (fit_picture(pixels, width=10, height=10, channels=1, fit="crop") > 200).all()
    padded = fit_picture(pixels, width=30, height=30, channels=1, fit="pad")[:, :, 0]
    assert (padded[[0, 9, 20, 29]] == 0).all()
    assert (padded[10:20, 12:18] > 200).all()


def test_reduction_is_anti_aliased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255  # beyond what 16 columns can show: only their mean is left
    fitted = fit_picture(stripes, width=16, height=16, channels=1, fit="stretch")
    assert np.abs(fitted.astype(int) - 127.5)[:, 3:-3].max() <= 1  # the filter is three pixels wide to each side
    assert np.abs(fitted.astype(int) - 127.5).max() <= 16


def test_overshoot_is_clipped_and_does_not_wrap():
    edge = np.zeros((32, 32, 1), np.uint8)
    edge[:, 16:] = 255
    fitted = fit_picture(edge, width=20, height=20, channels=1, fit="stretch")[:, :, 0].astype(int)
    assert (fitted[:, :8] < 60).all()
    assert (fitted[:, 12:] > 195).all()


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (0, 255, 0)])
@pytest.mark.parametrize("size", [7, 16, 50])
def test_rgba_edges_keep_their_colour(hidden, size):
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, :, :3] = hidden
    pixels[10:30, 10:30] = (200, 40, 60, 255)
    fitted = fit_picture(pixels, width=size, height=size, channels=4, fit="stretch")
    visible = fitted[:, :, 3] > 0
    assert 0 < visible.mean() < 1
    assert (fitted[:, :, :3] == (200, 40, 60)).all()  # the hidden ones get the mean of the visible


def test_hidden_colours_become_the_mean_weighted_by_alpha():
    pixels = np.array([[[100, 0, 0, 255], [200, 0, 0, 85], [7, 7, 7, 0]]], np.uint8)
    assert fill_hidden(pixels)[0, 2].tolist() == [125, 0, 0, 0]
    assert (fill_hidden(np.full((2, 2, 4), 0, np.uint8)) == 0).all()


def test_channels_are_converted_as_stated():
    gray = with_channels(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8), 1)
    np.testing.assert_array_equal(gray[0, :, 0], [76, 150, 29, 9])  # ITU-R BT.601
    half = np.array([[[100, 0, 255, 128], [100, 0, 255, 0], [100, 0, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(with_channels(half, 3)[0], [[177, 127, 255], [255] * 3, [100, 0, 255]])
    assert with_channels(np.full((1, 1, 1), 5, np.uint8), 4).tolist() == [[[5, 5, 5, 255]]]
